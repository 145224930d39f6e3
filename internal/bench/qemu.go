package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// newerQEMU is Debian's next QEMU, from bookworm-backports: fetched once by the host's apt with its state in a private directory, unpacked into
// the user's cache and not installed. It runs with its own libraries. The error says why it can't be had.
func newerQEMU(ctx context.Context) (program string, env []string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", nil, err
	}
	dir := filepath.Join(cache, "vitrine", "bench", "qemu-bookworm-backports")
	root := filepath.Join(dir, "root")
	program = filepath.Join(root, "usr/bin/qemu-system-x86_64")
	libraries := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	env = []string{"LD_LIBRARY_PATH=" + libraries + ":" + filepath.Join(root, "lib/x86_64-linux-gnu"), "QEMU_MODULE_DIR=" + filepath.Join(libraries, "qemu")}
	if _, err := os.Stat(program); err == nil {
		return program, env, nil
	}
	if err := fetchQEMU(ctx, dir, root); err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return program, env, nil
}

func fetchQEMU(ctx context.Context, dir, root string) error {
	for _, d := range []string{root, "lists/partial", "archives/partial", "etc"} {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	mirror, err := exec.CommandContext(ctx, "sh", "-c", `apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep debian$ | head -n 1`).Output()
	site := strings.TrimSpace(string(mirror))
	if err != nil || site == "" {
		return fmt.Errorf("no mirror of Debian in apt's sources")
	}
	conf := filepath.Join(dir, "apt.conf")
	sources := ""
	for _, suite := range []string{"bookworm", "bookworm-backports"} {
		sources += fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", site, suite)
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources), 0o644); err != nil {
		return err
	}
	settings := fmt.Sprintf("Dir::State::Lists %q;\nDir::State::status \"/var/lib/dpkg/status\";\nDir::Cache %q;\nDir::Cache::archives %q;\nDir::Etc::sourcelist %q;\n"+
		"Dir::Etc::sourceparts \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\nAPT::Default-Release \"\";\nAPT::Sandbox::User \"\";\nDebug::NoLocking \"1\";\n",
		filepath.Join(dir, "lists"), dir, filepath.Join(dir, "archives"), filepath.Join(dir, "sources.list"))
	if err := os.WriteFile(conf, []byte(settings), 0o644); err != nil {
		return err
	}
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "APT_CONFIG="+conf, "DEBIAN_FRONTEND=noninteractive")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lines[len(lines)-1])
		}
		return nil
	}
	if err := apt("update", "-q"); err != nil {
		return err
	}
	if err := apt("install", "-y", "-q", "--no-install-recommends", "--download-only", "-t", "bookworm-backports", "qemu-system-x86"); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "archives", "*.deb"))
	if len(debs) == 0 {
		return fmt.Errorf("apt fetched nothing: this QEMU is installed already")
	}
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w: %s", filepath.Base(deb), err, out)
		}
		os.Remove(deb)
	}
	return nil
}
