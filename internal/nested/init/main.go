// The first process of the outer guest: it loads modules, runs commands with their output on the second serial port, says on the third how
// the last ended, and powers off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/nested"
)

func main() {
	status, err := commands()
	if err != nil {
		fmt.Println("nested:", err) // the outer kernel's console
	} else {
		say(status)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

var mounts = []struct{ kind, at string }{
	{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"tmpfs", "/dev/shm"}, {"devpts", "/dev/pts"},
}

func commands() (status int, err error) {
	for _, m := range mounts {
		os.MkdirAll(m.at, 0o755)
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return 0, fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := load(); err != nil {
		return 0, err
	}
	list, err := lines(nested.CommandFile)
	if err != nil {
		return 0, err
	}
	env, err := lines(nested.EnvFile)
	if err != nil {
		return 0, err
	}
	dir, err := lines(nested.DirFile)
	if err != nil {
		return 0, err
	}
	out, err := serial("/dev/ttyS1")
	if err != nil {
		return 0, err
	}
	for _, words := range list {
		if status, err = run(strings.Split(words, "\x00"), strings.Join(dir, ""), env, out); status != 0 || err != nil {
			break
		}
	}
	drain(out)
	return status, err
}

func run(words []string, dir string, env []string, out *os.File) (status int, err error) {
	c := exec.Command(words[0], words[1:]...)
	c.Dir, c.Env, c.Stdout, c.Stderr = dir, env, out, out
	if err = c.Run(); c.ProcessState == nil {
		return 0, err
	}
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return c.ProcessState.ExitCode(), nil
}

// load loads the modules that the archive lists.
func load() error {
	names, err := lines(initramfs.ModuleList)
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// lines are a file's lines that are not empty.
func lines(path string) ([]string, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(p), func(r rune) bool { return r == '\n' }), nil
}

// serial opens a port that passes bytes as they are.
func serial(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200}
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// drain waits until what was written has left the port.
func drain(f *os.File) {
	unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
	time.Sleep(50 * time.Millisecond) // and QEMU has written it
}

func say(status int) {
	f, err := serial("/dev/ttyS2")
	if err != nil {
		fmt.Println("nested:", err)
		return
	}
	fmt.Fprintf(f, "exit %d\n", status)
	drain(f)
}
