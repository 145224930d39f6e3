package kernel

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// fetchDNF fetches Fedora's kernel packages. rpm itself verifies them and turns them into archives.
func fetchDNF(ctx context.Context, o Options, work, files string) (string, error) {
	dir := filepath.Join(work, "rpms")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	run := func(args ...string) error {
		c := exec.CommandContext(ctx, args[0], args[1:]...)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
		c.WaitDelay = 3 * time.Second
		_, err := c.Output()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("%s: %s: check the network, or %s", args[0], failure(err), orKernel)
		}
		return nil
	}
	o.Progress("fetching kernel-core, kernel-modules-core and kernel-modules")
	err := run("dnf", "-q", "-y", "--setopt=cachedir="+filepath.Join(work, "dnf"), "--forcearch=x86_64",
		"download", "--destdir", dir, "kernel-core", "kernel-modules-core", "kernel-modules")
	if err != nil {
		return "", err
	}
	rpms, _ := filepath.Glob(filepath.Join(dir, "*.rpm"))
	if len(rpms) == 0 {
		return "", fmt.Errorf("dnf download left no package: %s", orKernel)
	}
	if err := run(append([]string{"rpmkeys", "--checksig"}, rpms...)...); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(files)
	if err != nil {
		return "", err
	}
	defer root.Close()
	for _, rpm := range rpms {
		if err := unpackRPM(ctx, rpm, root); err != nil {
			return "", fmt.Errorf("package %s: %w", filepath.Base(rpm), err)
		}
	}
	return "package " + filepath.Base(rpms[0]), nil
}

// unpackRPM reads the cpio archive that rpm2cpio makes of a package.
func unpackRPM(ctx context.Context, rpm string, root *os.Root) error {
	c := exec.CommandContext(ctx, "rpm2cpio", rpm)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	err = unpackCPIO(out, root, keepKernel)
	out.Close()
	if e := c.Wait(); err == nil && e != nil {
		err = fmt.Errorf("rpm2cpio: %w", e)
	}
	return err
}
