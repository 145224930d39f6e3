package agent

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// openTerminal makes a pseudo-terminal: the command has the slave as 0, 1 and 2.
func (c *command) openTerminal(size wire.Size) ([]*os.File, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, place("/dev/ptmx", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	c.stdin, c.input = wire.NewQueue(), master
	if err := c.addOutput(wire.TypeStdout, master); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, place("/dev/ptmx", err)
	}
	setSize(fd, size)
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return []*os.File{slave, slave, slave}, nil
}

func setSize(fd int, size wire.Size) {
	if size.Rows > 0 && size.Cols > 0 {
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Rows), Col: uint16(size.Cols)})
	}
}

func hasSlash(s string) bool { return strings.Contains(s, "/") }

// splitPath splits a PATH; an empty element is the working directory.
func splitPath(path string) []string {
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	dirs := strings.Split(path, ":")
	for i := range dirs {
		if dirs[i] == "" {
			dirs[i] = "."
		}
	}
	return dirs
}

func getenv(env []string, name string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}
