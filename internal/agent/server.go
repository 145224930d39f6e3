package agent

import (
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// A server answers the host on one connection.
type server struct {
	conn  *wire.Conn
	setup func(*wire.Setup) error

	mu       sync.Mutex // guards what follows; held from a fork until the child is in byPID, so that no exit is missed
	byStream map[uint32]*command
	byPID    map[int]*command
}

func newServer(conn *wire.Conn) *server {
	return &server{conn: conn, byStream: map[uint32]*command{}, byPID: map[int]*command{}}
}

// serve answers until the host wants the guest off, or has gone. What it does for one frame never waits for a command.
func (s *server) serve() error {
	for {
		f, err := s.conn.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return place("the connection to the host", err)
		}
		switch f.Type {
		case wire.TypePowerOff:
			return nil
		case wire.TypeSetup:
			var m wire.Setup
			if err = m.Unmarshal(f.Payload); err == nil {
				err = s.setup(&m)
			}
			if err != nil {
				s.fail(0, 125, err)
			} else {
				s.conn.Send(wire.TypeReady, 0, nil) // a broken connection is seen by the next read
			}
		case wire.TypeStart:
			var m wire.Start
			if err := m.Unmarshal(f.Payload); err != nil {
				s.fail(f.Stream, 125, err)
			} else if status, err := s.start(f.Stream, &m); err != nil {
				s.fail(f.Stream, status, err)
			}
		default:
			if c := s.command(f.Stream); c != nil {
				c.receive(f)
			}
		}
	}
}

func (s *server) command(stream uint32) *command {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byStream[stream]
}

func (s *server) fail(stream uint32, status int, err error) {
	s.conn.Send(wire.TypeFailed, stream, wire.Failed{Status: uint64(status), Text: err.Error()}.Marshal())
}

// reap collects every process that ends: ours, and the orphans that the kernel gives to process 1.
func (s *server) reap(signals <-chan os.Signal) {
	for sig := range signals {
		switch sig {
		case unix.SIGCHLD:
			for s.reapOne() {
			}
		case unix.SIGUSR1, unix.SIGUSR2: // busybox's halt and poweroff
			powerOff()
		}
	}
}

func (s *server) reapOne() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if err == syscall.EINTR {
		return true
	}
	if pid <= 0 {
		return false
	}
	if c := s.byPID[pid]; c != nil {
		delete(s.byPID, pid)
		go c.finish(shellStatus(status))
	}
	return true
}

// shellStatus is a wait status as a shell's $? has it.
func shellStatus(w syscall.WaitStatus) int {
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
