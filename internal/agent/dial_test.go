package agent

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connectTo begins a connect to a port of this host and gives its outcome, under signals that come all the time.
func connectTo(t *testing.T, port int) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-stopped }()
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				_ = unix.Kill(unix.Getpid(), unix.SIGURG) // Go's own, handled and passed over
			}
		}
	}()
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	if err == unix.EINPROGRESS {
		err = connected(fd)
	}
	return err
}

func TestConnectOutlastsSignalsAndTellsItsOutcome(t *testing.T) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	port := name.(*unix.SockaddrInet4).Port
	if err := connectTo(t, port); err != unix.ECONNREFUSED {
		t.Errorf("to a port where nobody listens: %v, want %v", err, unix.ECONNREFUSED)
	}
	if err := unix.Listen(l, 16); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		if err := connectTo(t, port); err != nil {
			t.Errorf("to a port where somebody listens: %v", err)
		}
	}
}
