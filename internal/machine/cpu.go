package machine

import (
	"errors"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine/irq"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// A cpu is one processor and the thread that runs it. Its [irq.CPU] methods are called with devices' locks held.
type cpu struct {
	m    *Machine
	id   int
	vcpu hv.VCPU
	bell bell

	mu      sync.Mutex
	init    bool // an INIT came
	sipi    bool // a SIPI came after it
	vector  uint8
	waiting bool // for a SIPI
	asked   []*question
}

func newCPU(m *Machine, id int) *cpu { return &cpu{m: m, id: id, waiting: id != 0} }

// Wake implements [irq.CPU].
func (c *cpu) Wake() {
	if !c.bell.ring() {
		c.vcpu.Kick()
	}
}

// Init implements [irq.CPU].
func (c *cpu) Init() {
	c.mu.Lock()
	c.init, c.sipi = true, false
	c.mu.Unlock()
	c.Wake()
}

// Startup implements [irq.CPU].
func (c *cpu) Startup(vector uint8) {
	c.mu.Lock()
	c.sipi, c.vector = c.waiting || c.init, vector
	c.mu.Unlock()
	c.Wake()
}

// loop runs the processor until the machine ends. It is on its own thread.
func (c *cpu) loop() error {
	for {
		// Read before anything is looked at: what comes later makes wait return at once.
		seen := c.bell.seen()
		if !c.m.run.proceed(c) {
			return nil
		}
		c.answer()
		runs, err := c.events()
		if err != nil {
			return err
		}
		if !runs {
			c.bell.wait(seen)
			continue
		}
		exit, err := c.vcpu.Run()
		if err != nil {
			return err
		}
		switch exit {
		case hv.Halted:
			c.bell.wait(seen)
		case hv.Shutdown:
			c.m.run.crash(c.crash())
		}
	}
}

// crash describes the processor after a triple fault.
func (c *cpu) crash() *hv.Failure {
	f := &hv.Failure{CPU: c.id, Fault: hv.Crash, What: "triple fault"}
	if c.copyRegisters(&f.Regs) == nil {
		f.Code = mmu.Code(c.m.ram, &f.Regs)
	}
	return f
}

// events does what INIT and SIPI ask for, and tells whether the processor runs.
func (c *cpu) events() (runs bool, err error) {
	c.mu.Lock()
	init, sipi, vector := c.init, c.sipi, c.vector
	c.init, c.sipi = false, false
	c.waiting = (c.waiting || init) && !sipi
	waiting := c.waiting
	c.mu.Unlock()
	if !init && !sipi {
		return !waiting, nil
	}
	if c.id == 0 {
		// The boot CPU would go to the reset vector, where this board has no firmware.
		c.m.run.end(Exit{Reason: Reset})
		return false, nil
	}
	s, err := c.initState()
	if err != nil {
		return false, err
	}
	if waiting {
		s.MP = x86.WaitForSIPI
	} else {
		s.RIP = 0
		s.Seg[x86.CS].Selector, s.Seg[x86.CS].Base = uint16(vector)<<8, uint64(vector)<<12
	}
	return !waiting, c.vcpu.SetState(s)
}

// initState is the processor's state after INIT (SDM vol. 3A table 9-1): FPU, most MSRs and the TSC stay.
func (c *cpu) initState() (*x86.State, error) {
	var s x86.State
	if err := c.vcpu.State(&s); err != nil {
		return nil, err
	}
	s.Regs = x86.Regs{RIP: 0xFFF0, RFLAGS: x86.Fixed, CR0: x86.CR0ET | s.CR0&(x86.CR0CD|x86.CR0NW), XCR0: s.XCR0,
		KernelGSBase: s.KernelGSBase, LSTAR: s.LSTAR}
	s.GPR[x86.RDX] = 0x600
	for i := range s.Seg {
		s.Seg[i] = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed}
	}
	s.Seg[x86.CS] = x86.Segment{Selector: 0xF000, Base: 0xFFFF0000, Limit: 0xFFFF,
		Access: x86.SegPresent | x86.SegS | x86.SegCode | x86.SegWritable | x86.SegAccessed}
	s.LDTR = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | 2}
	s.TR = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | 11}
	s.GDTR, s.IDTR = x86.Table{Limit: 0xFFFF}, x86.Table{Limit: 0xFFFF}
	s.DR = [8]uint64{6: 0xFFFF0FF0, 7: 0x400}
	s.MP, s.Pending, s.NMI, s.NMIMasked, s.Shadow = x86.Runnable, x86.Event{}, false, false, false
	return &s, nil
}

// A bell wakes a thread that waits. A ring between seen and wait is not lost.
type bell struct {
	rings   atomic.Uint32
	waiting atomic.Bool
}

// seen is what wait is given.
func (b *bell) seen() uint32 { return b.rings.Load() }

// ring makes wait return. It tells whether a thread waited.
func (b *bell) ring() bool {
	b.rings.Add(1)
	if !b.waiting.Load() {
		return false
	}
	futexWake(&b.rings)
	return true
}

// wait blocks until there is a ring after seen.
func (b *bell) wait(seen uint32) {
	b.waiting.Store(true)
	for b.rings.Load() == seen {
		futexWait(&b.rings, seen)
	}
	b.waiting.Store(false)
}

// boardIO is the board's ports and device memory, the same for all processors.
type boardIO struct{ m *Machine }

func (io boardIO) ReadPort(port uint16, p []byte)  { io.m.ports.Read(uint64(port), p) }
func (io boardIO) WritePort(port uint16, p []byte) { io.m.ports.Write(uint64(port), p) }
func (io boardIO) ReadMMIO(a mem.Addr, p []byte)   { io.m.mmio.Read(uint64(a), p) }
func (io boardIO) WriteMMIO(a mem.Addr, p []byte)  { io.m.mmio.Write(uint64(a), p) }

// cpuIO is the machine as one processor sees it that has its LAPIC from the board.
type cpuIO struct {
	boardIO
	*irq.LAPIC
}

func (io *cpuIO) ReadMMIO(a mem.Addr, p []byte) {
	if io.Claims(a) {
		io.LAPIC.ReadMMIO(uint64(a), p)
		return
	}
	io.boardIO.ReadMMIO(a, p)
}

func (io *cpuIO) WriteMMIO(a mem.Addr, p []byte) {
	if io.Claims(a) {
		io.LAPIC.WriteMMIO(uint64(a), p)
		return
	}
	io.boardIO.WriteMMIO(a, p)
}

// Acknowledge also lets the timers raise what they owe: the interrupt that they waited for has been taken.
func (io *cpuIO) Acknowledge() (vector uint8, ok bool) {
	if vector, ok = io.LAPIC.Acknowledge(); ok {
		for _, t := range io.m.tickers {
			t.CatchUp()
		}
	}
	return vector, ok
}

// remoteIO is the machine as a processor sees it that has its LAPIC from the backend ([hv.IRQChip]).
type remoteIO struct{ boardIO }

var (
	_ hv.IO = (*cpuIO)(nil)
	_ hv.IO = remoteIO{}
)

// errMSR becomes #GP.
var errMSR = errors.New("machine: no such MSR")

func (remoteIO) ReadMSR(uint32) (uint64, error) { return 0, errMSR }
func (remoteIO) WriteMSR(uint32, uint64) error  { return errMSR }
func (remoteIO) Pending() bool                  { return false }
func (remoteIO) TakeNMI() bool                  { return false }
func (remoteIO) Acknowledge() (uint8, bool)     { return 0, false }
func (remoteIO) CR8() uint64                    { return 0 }
func (remoteIO) SetCR8(uint64)                  {}
