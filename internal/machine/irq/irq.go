// Package irq is the board's interrupt controllers: the 8259A pair, the I/O APIC and a local APIC a CPU.
//
// Locks are taken in this order: a device's, the PIC's or the I/O APIC's, a local APIC's. An end of interrupt goes from a
// local APIC to the I/O APIC, and an IPI from one local APIC to another, with no lock held. The CPU callbacks are called
// with locks of this package and of devices held, and must not call back.
package irq

import (
	"encoding/gob"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
	"vitrine.dev/vitrine/internal/machine/layout"
)

// Pins is the number of the I/O APIC's inputs.
const Pins = 24

// A CPU is told what its local APIC has for it. Calls come from any goroutine, with locks held: they must not block or call back.
type CPU interface {
	// Wake says that something became pending: a halted CPU must look again, a running one at its next boundary.
	Wake()
	// Init says that an INIT arrived; the local APIC is reset already.
	Init()
	// Startup says that a SIPI with this vector arrived.
	Startup(vector uint8)
}

// Config is what the controllers need from outside.
type Config struct {
	CPUs  []CPU // the index is the APIC id, below 255
	Clock *clock.Clock
	TSC   func(cpu int) uint64 // the guest's time stamp counter of a CPU
	TSCHz uint64
}

// Chips is all interrupt controllers of one machine. It is a [bus.MSI].
type Chips struct {
	PIC    *PIC
	IOAPIC *IOAPIC
	LAPIC  []*LAPIC

	wires
}

// New makes the controllers as firmware leaves them: everything masked, the PIC wired through LINT0 of CPU 0.
func New(cfg Config) *Chips {
	c := &Chips{}
	c.PIC = newPIC(func(level bool) {
		for _, l := range c.LAPIC {
			l.setExtINT(level)
		}
	})
	c.IOAPIC = newIOAPIC(c)
	for i := range cfg.CPUs {
		c.LAPIC = append(c.LAPIC, newLAPIC(c, i, cfg))
	}
	for gsi := range c.wires {
		c.wires[gsi].drive = func(level bool) bool { return c.drive(gsi, level) }
	}
	return c
}

// drive sets the level of a wire that ends at an I/O APIC pin and, below 16, at the PIC. It returns false where an edge merged into one that waits.
func (c *Chips) drive(gsi int, level bool) (seen bool) {
	seen = true
	switch {
	case gsi == 2:
		seen = c.PIC.set(0, level)
	case gsi > 0 && gsi < 16: // the PIC's output is not wired to pin 0
		seen = c.PIC.set(gsi, level)
	}
	return c.IOAPIC.set(gsi, level) && seen
}

// wires are the inputs of the controllers.
type wires [Pins]wire

// ISA gives a new input of the ISA interrupt n, below 16: it reaches the PIC, and the I/O APIC's pin of the same number (pin 2 for interrupt 0,
// as the MADT says).
func (w *wires) ISA(n int) bus.Line {
	if n == 0 {
		return w.GSI(2)
	}
	return w.GSI(n)
}

// GSI gives a new input of the I/O APIC's pin n. The pin is high while any of its inputs is.
func (w *wires) GSI(n int) bus.Line { return &input{wire: &w[n]} }

// A wire has any number of inputs.
type wire struct {
	drive func(level bool) (seen bool)

	mu   sync.Mutex // held while the controllers are told, so that they see levels in order
	high int        // inputs that are high
}

type input struct {
	wire *wire
	high bool // guarded by wire.mu
}

// Set implements [bus.Line].
func (in *input) Set(level bool) { in.set(level) }

// Raise is Set(true) for who must know whether its edges are seen. It returns false where this one merged into an earlier one that no
// CPU has taken yet. An edge that is masked, or of a wire that is high already, counts as seen.
func (in *input) Raise() bool { return in.set(true) }

func (in *input) set(level bool) (seen bool) {
	w := in.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	if in.high == level {
		return true
	}
	in.high = level
	if level {
		w.high++
	} else {
		w.high--
	}
	if level && w.high > 1 || !level && w.high > 0 {
		return true
	}
	return w.drive(level)
}

// SignalMSI implements [bus.MSI] (SDM vol. 3A 11.11).
func (c *Chips) SignalMSI(addr uint64, data uint32) {
	if addr>>20 != layout.LAPIC>>20 {
		return // a device was told an address that is no CPU's
	}
	c.deliver(message{
		dest:    uint32(addr >> 12 & 0xFF),
		logical: addr>>2&1 != 0,
		mode:    uint8(data >> 8 & 7),
		vector:  uint8(data),
		level:   data>>15&1 != 0,
	}, nil)
}

// Delivery modes (SDM vol. 3A 11.6.1).
const (
	fixed          = 0
	lowestPriority = 1
	smi            = 2
	nmi            = 4
	initIPI        = 5
	startup        = 6
	extINT         = 7
)

// A message is an interrupt on its way to local APICs.
type message struct {
	dest      uint32
	logical   bool
	x2        bool // dest is 32 bits wide
	mode      uint8
	vector    uint8
	level     bool // level triggered: its EOI is told to the I/O APIC
	shorthand uint8
}

// deliver takes m to all local APICs it names. from is the sender of an IPI, else nil. It returns whether there was any, and whether
// it was new to one of them, not merged into an interrupt that waits there.
func (c *Chips) deliver(m message, from *LAPIC) (found, fresh bool) {
	if m.mode == lowestPriority {
		return c.deliverLowest(m)
	}
	for _, l := range c.LAPIC {
		if l.matches(m, from) {
			fresh = l.take(m) || fresh
			found = true
		}
	}
	return found, fresh
}

// deliverLowest chooses the CPU that works at the lowest priority; of equals, the one with the fewest interrupts waiting, the first.
func (c *Chips) deliverLowest(m message) (found, fresh bool) {
	var best *LAPIC
	var bestPriority int
	for _, l := range c.LAPIC {
		if !l.matches(m, nil) {
			continue
		}
		if p, ok := l.arbitration(); ok && (best == nil || p < bestPriority) {
			best, bestPriority = l, p
		}
	}
	if best == nil {
		return false, false
	}
	m.mode = fixed
	return true, best.take(m)
}

// Save implements [bus.Stateful].
func (c *Chips) Save(enc *gob.Encoder) error {
	for _, s := range c.parts() {
		if err := s.Save(enc); err != nil {
			return err
		}
	}
	return nil
}

// Load implements [bus.Stateful]. The levels of the wires come from the devices that drive them.
func (c *Chips) Load(dec *gob.Decoder) error {
	for _, s := range c.parts() {
		if err := s.Load(dec); err != nil {
			return err
		}
	}
	return nil
}

func (c *Chips) parts() []bus.Stateful {
	// The PIC comes last: its output is told to the local APICs.
	parts := []bus.Stateful{c.IOAPIC}
	for _, l := range c.LAPIC {
		parts = append(parts, l)
	}
	return append(parts, c.PIC)
}
