package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/control"
)

// twice is how close two Ctrl-C are one wish: an end at once.
const twice = time.Second

// signals is what this process does with those it gets while a guest runs:
// Ctrl-C goes to the guest's command, or ends what was not so far yet; Ctrl-C twice ends the guest at once; SIGTERM and SIGHUP stop it.
type signals struct {
	cancel context.CancelFunc
	c      chan os.Signal
	done   chan struct{}
	status atomic.Int32 // 128+n of a signal that ended the guest

	mu       sync.Mutex // guards what follows
	m        *vitrine.Machine
	terminal bool
	restore  func()
}

func watchSignals(cancel context.CancelFunc) *signals {
	s := &signals{cancel: cancel, c: make(chan os.Signal, 8), done: make(chan struct{})}
	signal.Notify(s.c, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGWINCH)
	go s.loop()
	return s
}

// attach hands signals to a machine from now on.
func (s *signals) attach(m *vitrine.Machine, terminal bool) {
	s.mu.Lock()
	s.m, s.terminal = m, terminal
	s.mu.Unlock()
	s.resize()
}

// atExit is called before this process ends by itself in the middle of all.
func (s *signals) atExit(restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restore = restore
}

// stop ends the watching.
func (s *signals) stop() {
	signal.Stop(s.c)
	close(s.c)
	<-s.done
}

// caught gives the status that a signal which ended the guest asks for.
func (s *signals) caught() (int, bool) {
	n := s.status.Load()
	return int(n), n != 0
}

func (s *signals) loop() {
	defer close(s.done)
	var last time.Time
	for sig := range s.c {
		s.mu.Lock()
		m := s.m
		s.mu.Unlock()
		switch sig {
		case unix.SIGWINCH:
			s.resize()
		case unix.SIGINT, unix.SIGQUIT:
			again := time.Since(last) < twice
			last = time.Now()
			if again || m == nil || !m.Signal(sig.(unix.Signal)) {
				s.end(sig)
			}
			if again && m == nil {
				s.give(sig) // what runs now does not heed the context
			}
		default:
			if m == nil {
				s.end(sig)
				continue
			}
			s.status.Store(int32(128 + sig.(unix.Signal)))
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), control.StopTime)
				defer cancel()
				m.Stop(ctx)
			}()
		}
	}
}

// end ends the guest, or its making, at once.
func (s *signals) end(sig os.Signal) {
	s.status.Store(int32(128 + sig.(unix.Signal)))
	s.cancel()
}

// give ends this process.
func (s *signals) give(sig os.Signal) {
	s.mu.Lock()
	restore := s.restore
	s.mu.Unlock()
	if restore != nil {
		restore()
	}
	os.Exit(128 + int(sig.(unix.Signal)))
}

func (s *signals) resize() {
	s.mu.Lock()
	m, terminal := s.m, s.terminal
	s.mu.Unlock()
	if rows, cols := terminalSize(os.Stdout); m != nil && terminal && rows > 0 {
		m.Resize(rows, cols)
	}
}
