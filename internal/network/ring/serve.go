package ring

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
)

// Serve carries frames between n and the card at the other end of the ring that files are, which New gave. It returns when ctx ends, which is no
// error, or when the other side broke the ring. The files are closed then, and n is down. Descriptors that come from another process must become
// files without a detour: [os.File.Fd] would have made them block.
func Serve(ctx context.Context, files []*os.File, n network.Network) error {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if len(files) != 3 {
		return fmt.Errorf("network: ring: %d files, not 3", len(files))
	}
	mapping, err := memory(files[0])
	if err != nil {
		return err
	}
	defer unix.Munmap(mapping)
	s := &server{n: n, bell: files[1], far: files[2], link: wordAt(mapping, linkAt), more: make(chan struct{}, 1), stop: make(chan struct{})}
	s.up, s.down = halves(mapping)
	if err := s.bell.SetReadDeadline(time.Time{}); err != nil { // it blocks, and could not be left
		return fmt.Errorf("network: ring: %w", err)
	}
	defer context.AfterFunc(ctx, func() { s.bell.SetReadDeadline(time.Unix(1, 0)) })()

	var give sync.WaitGroup
	give.Go(s.give)
	err = s.take()
	close(s.stop)
	give.Wait()
	if s.state&linkUp != 0 {
		n.Down()
	}
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// A server is the network's end of a ring.
type server struct {
	n         network.Network
	bell, far *os.File
	up, down  half
	link      *word
	state     uint64 // the link word that n knows of
	more      chan struct{}
	stop      chan struct{}
}

// take gives the network what the guest sends, until the bell can't be read any more.
func (s *server) take() error {
	var b [8]byte
	var f network.Frame
	for {
		s.relink()
		for {
			ok, err := s.up.get(&f)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			s.n.Send(f.Parts, f.Size, f.Offload) // it has room: who serves a ring is no ring
			if s.up.done(f.Size) {
				ring(s.far)
			}
		}
		s.wake() // there may be room
		if _, err := s.bell.Read(b[:]); err != nil {
			return err
		}
	}
}

// relink tells the network of a driver that came or went.
func (s *server) relink() {
	now := s.link.Load()
	if now == s.state {
		return
	}
	if s.state&linkUp != 0 {
		s.n.Down()
	}
	if s.state = now; now&linkUp != 0 {
		s.n.Up(network.Abilities(now), s.wake, func() {})
	}
}

func (s *server) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// give gives the guest what the network has for it.
func (s *server) give() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.more:
		}
		for f := s.n.Front(); f != nil; f = s.n.Front() {
			if !s.down.room(f.Size) {
				break
			}
			if s.down.put(f.Parts, f.Size, &f.Offload) {
				ring(s.far)
			}
			s.n.Pop()
		}
	}
}
