// Package agent runs inside the guest, as its first process: it makes the guest's world and runs commands in it.
//
// It is the same program that runs on the host, started by the kernel as /init of an initramfs. The guest's processor may be slow, so
// its imports are few (a test holds them) and nothing is done that no command needs.
package agent

import (
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// Main returns at once in every process but the init of a guest that we booted; there it never returns.
// A program that can be such an init calls it before anything else.
func Main() {
	if os.Getpid() != 1 || len(os.Args) == 0 || os.Args[0] != "/init" {
		return
	}
	if _, err := os.Lstat(ModuleList); err != nil {
		return
	}
	if err := run(); err != nil {
		os.Stderr.WriteString("vitrine: " + err.Error() + "\n")
	}
	powerOff()
}

// run is the guest from the first process's start until it should power off.
func run() error {
	signals := catchSignals()
	if err := loadModules(ModuleList); err != nil {
		return err
	}
	stream, err := dial()
	if err != nil {
		return err
	}
	conn := wire.NewConn(stream)
	if _, err := conn.Hello(wire.AbilityUser); err != nil {
		return place("hello", err)
	}
	s := newServer(conn)
	s.setup = setup
	go s.reap(signals)
	return s.serve()
}

// catchSignals gives what is sent to the first process. A signal must be caught and not ignored: what is ignored, commands would inherit.
func catchSignals() <-chan os.Signal {
	c := make(chan os.Signal, 16)
	signal.Notify(c, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	return c
}

// dialTimeout is how long the host may take to answer; a vsock's own limit of 2 seconds is short on a busy host.
const dialTimeout = 30

// dial connects to the host by vsock. The socket does not block: a vsock's blocking connect fails with EINTR at any signal, also at those
// by which Go's scheduler preempts (vsock_connect's sock_intr_errno of a finite timeout), and cannot be taken up again.
func dial() (*os.File, error) {
	const where = "connecting to the host by vsock"
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, place("vsock", err)
	}
	limit := unix.Timeval{Sec: dialTimeout}
	_ = unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit) // or its own limit
	err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: wire.Port})
	if err == unix.EINPROGRESS {
		err = connected(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, place(where, err)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// connected waits for the outcome of a connect that is in progress.
func connected(fd int) error {
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1); err == nil {
			break
		} else if err != unix.EINTR {
			return err
		}
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

func powerOff() {
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Stderr.WriteString("vitrine: power off: " + err.Error() + "\n")
	for {
		_ = unix.Pause()
	}
}

// place says where an error happened.
func place(where string, err error) error {
	if err == nil {
		return nil
	}
	return errors.New(where + ": " + err.Error())
}
