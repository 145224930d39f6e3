package files

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/fs"
)

// A Share is an export as the guest's process sees it: a server for a virtio file system.
type Share struct {
	fd, more int // both sockets
	answered fs.Answered
	reader   sync.WaitGroup

	mu   sync.Mutex // guards what follows, and sending
	out  []byte
	with map[uint32]int // slots that wait for an answer, and the socket that they went by
	busy bool           // one went by the first
	gone bool
}

var _ fs.Server = (*Share)(nil)

// newShare takes sockets over.
func newShare(fd, more int) *Share { return &Share{fd: fd, more: more, with: map[uint32]int{}} }

// Start implements [fs.Server].
func (s *Share) Start(answered fs.Answered) {
	s.answered = answered
	s.reader.Go(s.read)
}

var errGone = errors.New("the helper has ended")

// Submit implements [fs.Server].
func (s *Share) Submit(slot uint32, c *virtio.Chain) error {
	in, out := c.Segments()
	return s.submit(slot, in, out)
}

func (s *Share) submit(slot uint32, in, out []virtio.Segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return errGone
	}
	s.out = appendRequest(s.out[:0], slot, in, out)
	fd := s.fd
	if s.busy {
		fd = s.more
	}
	if err := send(fd, s.out); err != nil {
		return err
	}
	s.with[slot] = fd
	s.busy = true
	return nil
}

// read passes answers on until the helper has gone, and then fails what has none.
func (s *Share) read() {
	var b [answerSize + 1]byte
	for {
		n, err := receive(s.fd, b[:])
		if err != nil || n == 0 {
			break
		}
		slot, size, ok := parseAnswer(b[:n])
		if !ok {
			break
		}
		s.mu.Lock()
		fd, asked := s.with[slot]
		if fd == s.fd {
			s.busy = false
		}
		delete(s.with, slot)
		s.mu.Unlock()
		if asked {
			s.answered(slot, uint64(size))
		}
	}
	s.mu.Lock()
	s.gone = true
	left := s.with
	s.with = nil
	s.mu.Unlock()
	for slot := range left {
		s.answered(slot, fs.Failed)
	}
}

// Hang ends the connection: what was asked fails, and so does all that follows.
func (s *Share) Hang() {
	unix.Shutdown(s.fd, unix.SHUT_RDWR)
	unix.Shutdown(s.more, unix.SHUT_RDWR)
}

// Close implements [fs.Server].
func (s *Share) Close() error {
	s.Hang()
	s.reader.Wait()
	return errors.Join(unix.Close(s.fd), unix.Close(s.more))
}

// send and receive carry one packet. They block their thread, which wakes sooner than a goroutine by way of the poller.
func send(fd int, p []byte) error {
	for {
		err := unix.Sendto(fd, p, unix.MSG_NOSIGNAL, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

func receive(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return n, err
		}
	}
}
