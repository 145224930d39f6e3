package foreign

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/x86"
)

var le = binary.LittleEndian

// A monitor runs commands of QEMU's human monitor.
type monitor interface {
	monitor(command string) (string, error)
	close() error
}

// monitorFresh is how old a monitor's answer may be that has all processors' registers: a look at each of them is one question.
const monitorFresh = time.Millisecond

// A monitorSource has registers from QEMU's monitor: a question takes about 1 ms of QEMU's main loop, and under KVM each processor leaves its guest for it.
type monitorSource struct {
	q     monitor
	name  string
	fresh time.Duration

	mu     sync.Mutex // guards what follows
	asked  time.Time
	regs   []x86.Regs
	halted []bool
	n      int
}

func newMonitorSource(q monitor, name string, fresh time.Duration) *monitorSource {
	s := &monitorSource{q: q, name: name, fresh: fresh}
	if s.ask() == nil {
		s.n = len(s.regs)
	}
	return s
}

// ask asks for all registers. The caller holds mu, or is alone.
func (s *monitorSource) ask() error {
	text, err := s.q.monitor("info registers -a")
	if err != nil {
		return err
	}
	s.regs, s.halted = parseRegisters(text)
	s.asked = time.Now()
	return nil
}

func (s *monitorSource) read(i int, r *x86.Regs) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.asked) > s.fresh {
		if err := s.ask(); err != nil {
			return false, fmt.Errorf("registers: %w", err)
		}
	}
	if i >= len(s.regs) {
		return false, guest.ErrNoRegisters
	}
	*r = s.regs[i]
	return !s.halted[i], nil
}

func (s *monitorSource) cpus() int    { return s.n }
func (s *monitorSource) how() string  { return s.name }
func (s *monitorSource) close() error { return s.q.close() }
