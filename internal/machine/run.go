package machine

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/x86"
)

// A Reason is why a machine ended.
type Reason uint8

// The reasons.
const (
	Stopped     Reason = iota // by [Machine.Stop] or the context
	PowerOff                  // ACPI soft-off
	Reset                     // keyboard controller, reset register, port 0x92
	DebugExit                 // the isa-debug-exit port
	TripleFault               // of the CPU in Exit.CPU; a PC resets
)

// String is the reason in words.
func (r Reason) String() string {
	return [...]string{"stopped", "power-off", "reset", "debug exit", "triple fault"}[r]
}

// An Exit says how a machine ended.
type Exit struct {
	Reason Reason
	Status int // DebugExit: value*2+1
	CPU    int // TripleFault
}

// control is what the CPUs' threads obey.
type control struct {
	mu      sync.Mutex
	changed *sync.Cond // any field below
	started bool
	ended   bool
	exit    Exit
	failure *hv.Failure // the triple fault in exit
	paused  bool
	running int           // threads that are not parked
	done    chan struct{} // closed when ended
	cpus    []*cpu
}

func (r *control) init() {
	r.changed = sync.NewCond(&r.mu)
	r.done = make(chan struct{})
}

// end ends the machine; the first call counts. Devices call it with their lock held.
func (r *control) end(e Exit) { r.endBy(e, nil) }

// crash ends the machine by a triple fault.
func (r *control) crash(f *hv.Failure) { r.endBy(Exit{Reason: TripleFault, CPU: f.CPU}, f) }

func (r *control) endBy(e Exit, f *hv.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended, r.exit, r.failure = true, e, f
	close(r.done)
	r.alert()
}

// alert makes all threads come to proceed.
func (r *control) alert() {
	r.changed.Broadcast()
	for _, c := range r.cpus {
		c.Wake()
	}
}

// proceed parks the calling thread while the machine is paused. It returns false when the machine has ended.
func (r *control) proceed(c *cpu) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused && !r.ended {
		c.answer()
		r.running--
		r.changed.Broadcast()
		for r.paused && !r.ended {
			r.changed.Wait()
		}
		r.running++
		if p, ok := c.vcpu.(hv.Pausable); ok {
			p.Paused()
		}
	}
	return !r.ended
}

// Run boots CPU 0 from boot and runs until the guest ends, Stop is called or ctx is done. It can be called once. With a nil boot the
// CPUs go on from what Load put into them.
func (m *Machine) Run(ctx context.Context, boot *x86.State) (Exit, error) {
	// Threads in Run hold a P each; timers, queues and the rest of the program need some too.
	if n := len(m.cpus) + 3; runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	if boot != nil {
		if err := m.cpus[0].vcpu.SetState(boot); err != nil {
			return Exit{}, fmt.Errorf("machine: CPU 0: %w", err)
		}
	}
	r := &m.run
	r.mu.Lock()
	if r.started {
		r.mu.Unlock()
		return Exit{}, errors.New("machine: it ran already")
	}
	r.started, r.cpus, r.running = true, m.cpus, len(m.cpus)
	r.mu.Unlock()
	m.feed()
	stop := context.AfterFunc(ctx, m.Stop)
	defer stop()

	errs := make([]error, len(m.cpus))
	var wg sync.WaitGroup
	for i, c := range m.cpus {
		wg.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			if errs[i] = c.loop(); errs[i] != nil {
				errs[i] = fmt.Errorf("machine: CPU %d: %w", i, errs[i])
				m.Stop()
			}
			r.mu.Lock()
			c.answer()
			r.running--
			r.changed.Broadcast()
			r.mu.Unlock()
		})
	}
	wg.Wait()
	if r.exit.Reason != Stopped {
		m.flush(ctx)
	}
	return r.exit, errors.Join(errs...)
}

// flush waits until the guest's last words on the serial ports are with their writers, or ctx is done: a writer may be stuck.
func (m *Machine) flush(ctx context.Context) {
	written := make(chan struct{})
	go func() {
		for _, u := range m.uarts {
			u.Flush()
		}
		close(written)
	}()
	select {
	case <-written:
	case <-ctx.Done():
	}
}

// Stop ends the machine as if its plug were pulled. It may be called from any goroutine, at any time.
func (m *Machine) Stop() { m.run.end(Exit{Reason: Stopped}) }

// Failure is the CPU that ended the machine by a triple fault, as it stood then, or nil.
func (m *Machine) Failure() *hv.Failure {
	m.run.mu.Lock()
	defer m.run.mu.Unlock()
	return m.run.failure
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.run.done }

// Pause stops all CPUs at an instruction boundary, then devices that work on their own, and the clock. It returns when they
// stand. Pausing a paused machine does nothing.
func (m *Machine) Pause() {
	r := &m.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paused {
		return
	}
	r.paused = true
	r.alert()
	for r.running > 0 && r.paused {
		r.changed.Wait()
	}
	if r.paused {
		m.pci.Pause()
		m.clk.Pause()
	}
}

// Resume lets a paused machine go on.
func (m *Machine) Resume() {
	r := &m.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.paused {
		return
	}
	m.clk.Resume()
	m.pci.Resume()
	r.paused = false
	r.changed.Broadcast()
}

// Paused tells whether the machine is paused.
func (m *Machine) Paused() bool {
	m.run.mu.Lock()
	defer m.run.mu.Unlock()
	return m.run.paused
}

// Sample copies the registers of the code that CPU i runs now. It returns false where it runs none: it is halted, or the backend cannot say.
func (m *Machine) Sample(i int, r *x86.Regs) bool {
	if i < 0 || i >= len(m.cpus) {
		return false
	}
	s, ok := m.cpus[i].vcpu.(hv.Sampler)
	return ok && s.Sample(r)
}

// Counters calls fn with the counters of CPU i, if it counts.
func (m *Machine) Counters(i int, fn func(name string, value uint64)) {
	if c, ok := m.cpus[i].vcpu.(hv.Counter); ok {
		c.Counters(fn)
	}
}

// VMCounters calls fn with the counters of the whole virtual machine, if the backend has some.
func (m *Machine) VMCounters(fn func(name string, value uint64)) {
	if c, ok := m.vm.(hv.Counter); ok {
		c.Counters(fn)
	}
}

// DirtyLogger is the log of the pages that the guest and its devices write, or nil where the backend has none.
func (m *Machine) DirtyLogger() hv.DirtyLogger {
	l, _ := m.vm.(hv.DirtyLogger)
	return l
}

// Registers fills regs with the registers of CPU i: of a running CPU as it is when asked, of a halted one as it sleeps.
func (m *Machine) Registers(i int, regs *x86.Regs) error {
	if i < 0 || i >= len(m.cpus) {
		return fmt.Errorf("machine: there is no CPU %d", i)
	}
	return m.cpus[i].registers(regs)
}

// registers asks the CPU's own thread, or looks itself where that stands still.
func (c *cpu) registers(regs *x86.Regs) error {
	if s, ok := c.vcpu.(hv.Sampler); ok && s.Sample(regs) {
		return nil
	}
	r := &c.m.run
	r.mu.Lock()
	for r.paused && r.running > 0 {
		r.changed.Wait()
	}
	if r.running == 0 { // and stays so while r.mu is held
		defer r.mu.Unlock()
		return c.copyRegisters(regs)
	}
	ask := &question{regs: regs, done: make(chan struct{})}
	c.mu.Lock()
	c.asked = append(c.asked, ask)
	c.mu.Unlock()
	r.mu.Unlock()
	c.Wake()
	<-ask.done
	return ask.err
}

// A question for the registers of a CPU, to its thread.
type question struct {
	regs *x86.Regs
	err  error
	done chan struct{}
}

// answer answers all questions; the CPU's thread calls it, and r.running counts that thread until it was called last.
func (c *cpu) answer() {
	c.mu.Lock()
	asked := c.asked
	c.asked = nil
	c.mu.Unlock()
	for _, q := range asked {
		q.err = c.copyRegisters(q.regs)
		close(q.done)
	}
}

func (c *cpu) copyRegisters(regs *x86.Regs) error {
	var s x86.State
	if err := c.vcpu.State(&s); err != nil {
		return err
	}
	*regs = s.Regs
	return nil
}

// saved is the machine's own part of Save.
type saved struct {
	Clock   int64
	CPUs    []x86.State
	Waiting []bool
}

// Save writes all state but RAM. The machine is paused.
func (m *Machine) Save(enc *gob.Encoder) error {
	s := saved{Clock: m.clk.Now()}
	for _, c := range m.cpus {
		var st x86.State
		if err := c.vcpu.State(&st); err != nil {
			return fmt.Errorf("machine: CPU %d: %w", c.id, err)
		}
		c.mu.Lock()
		s.CPUs, s.Waiting = append(s.CPUs, st), append(s.Waiting, c.waiting)
		c.mu.Unlock()
	}
	if err := enc.Encode(s); err != nil {
		return err
	}
	for _, d := range m.devices {
		if err := d.Save(enc); err != nil {
			return err
		}
	}
	return nil
}

// Load puts back what Save of a machine with the same Config wrote. The machine is paused; [Machine.Run] has not been called.
func (m *Machine) Load(dec *gob.Decoder) error {
	var s saved
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	if len(s.CPUs) != len(m.cpus) || len(s.Waiting) != len(m.cpus) {
		return fmt.Errorf("machine: the state is of %d CPUs, the machine has %d", len(s.CPUs), len(m.cpus))
	}
	m.clk.Restore(s.Clock)
	for i, c := range m.cpus {
		if err := c.vcpu.SetState(&s.CPUs[i]); err != nil {
			return fmt.Errorf("machine: CPU %d: %w", i, err)
		}
		c.mu.Lock()
		c.waiting = s.Waiting[i]
		c.mu.Unlock()
	}
	for _, d := range m.devices {
		if err := d.Load(dec); err != nil {
			return err
		}
	}
	return nil
}
