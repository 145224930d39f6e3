// Package pci is a PCI bus without firmware: a host bridge, configuration space, and functions whose BARs the guest may move.
package pci

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
)

// Slots is how many devices a bus has room for.
const Slots = 32

// A Function is what sits in a slot. Its Save and Load include its Config.
type Function interface {
	// Config is the function's configuration space, always the same one.
	Config() *Config
	bus.Stateful
}

// A Pauser is a Function that works on its own, without a CPU that asks.
type Pauser interface {
	// Pause returns when the function touches neither RAM nor interrupts any more; Resume ends it.
	Pause()
	Resume()
}

// A Ringer is a Function that can wait for event counters.
type Ringer interface {
	// UseDoorbells has the function call [Config.AddDoorbell]. It is called once, by Attach.
	UseDoorbells() error
}

// Bus is bus 0. The host bridge is in slot 0.
type Bus struct {
	mmio  *bus.Bus
	lines [layout.PCIIRQs]*wire
	bells bus.Doorbeller // nil where the machine has none

	mu        sync.Mutex // guards all below, and the mapping of BARs. Config.mu comes after it.
	slots     [Slots]Function
	address   uint32 // port 0xCF8
	next      uint64 // where the next BAR is put
	conflicts uint64
}

// New makes a bus whose BARs appear on mmio. lines are the I/O APIC pins from [layout.PCIIRQ] on; a nil one is not connected.
func New(mmio *bus.Bus, lines [layout.PCIIRQs]bus.Line) *Bus {
	b := &Bus{mmio: mmio, next: layout.PCIMMIO}
	for i, l := range lines {
		b.lines[i] = &wire{line: l}
	}
	b.slots[0] = &hostBridge{NewConfig(hostBridgeID)}
	return b
}

// UseDoorbells has event counters take the writes that [Config.AddDoorbell] is about. Call it before Attach.
func (b *Bus) UseDoorbells(d bus.Doorbeller) { b.bells = d }

// Attach puts f into the first free slot, gives its BARs addresses and turns memory decoding on, as firmware would.
// Call it before a CPU runs.
func (b *Bus) Attach(f Function) (slot int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for slot < Slots && b.slots[slot] != nil {
		slot++
	}
	if slot == Slots {
		return 0, errors.New("pci: no free slot")
	}
	if r, ok := f.(Ringer); ok && b.bells != nil {
		if err := r.UseDoorbells(); err != nil {
			return 0, fmt.Errorf("pci: %w", err)
		}
	}
	c := f.Config()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.bars {
		if size := c.bars[i].size; size != 0 {
			a := (b.next + size - 1) &^ (size - 1)
			if a+size > layout.PCIMMIO+layout.PCIMMIOSize {
				return 0, fmt.Errorf("pci: no room for BAR %d of %#x bytes", i, size)
			}
			c.setBAR(i, a)
			b.next = (a + size + 0xFFF) &^ 0xFFF
		}
	}
	if pin := int(c.space[regIntPin]); pin != 0 {
		gsi := layout.PCIPin(slot, pin)
		c.space[regIntLine] = byte(gsi)
		c.line = &share{wire: b.lines[gsi-layout.PCIIRQ]}
	}
	c.space[regCommand] |= cmdMemory
	c.bus = b
	b.slots[slot] = f
	b.remapLocked(c)
	return slot, nil
}

// Function is what sits in slot, or nil.
func (b *Bus) Function(slot int) Function {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slot < 0 || slot >= Slots {
		return nil
	}
	return b.slots[slot]
}

// Conflicts counts the times that the guest put a BAR where something else was; such a BAR does not answer.
func (b *Bus) Conflicts() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conflicts
}

// remap makes the MMIO bus follow all BARs.
func (b *Bus) remap() {
	b.mu.Lock()
	defer b.mu.Unlock()
	var held []*Config
	for _, f := range b.slots {
		if f != nil {
			c := f.Config()
			c.mu.Lock()
			held = append(held, c)
		}
	}
	b.remapLocked(held...)
	for _, c := range held {
		c.mu.Unlock()
	}
}

// remapLocked first frees what moved, then maps what is not mapped. b.mu and each c.mu are held.
func (b *Bus) remapLocked(cs ...*Config) {
	for _, c := range cs {
		for i := range c.bars {
			r := &c.bars[i]
			if a, on := c.barAddress(i); r.mapped && (!on || a != r.at) {
				b.silence(c, i)
				b.mmio.Unmap(r.at)
				r.mapped = false
			}
		}
	}
	for _, c := range cs {
		for i := range c.bars {
			r := &c.bars[i]
			if a, on := c.barAddress(i); on && !r.mapped {
				if err := b.mmio.Map(a, r.size, r.dev); err != nil {
					b.conflicts++
					continue
				}
				r.at, r.mapped = a, true
				b.hang(c, i)
			}
		}
	}
}

// hang makes the doorbells in BAR i, which was just mapped, ring. One that cannot is the device's own register still.
func (b *Bus) hang(c *Config, i int) {
	for k := range c.bells {
		d := &c.bells[k]
		if a := c.bars[i].at + d.off; d.bar == i && b.bells != nil && b.bells.AddDoorbell(mem.Addr(a), d.fd) == nil {
			d.at = a
		}
	}
}

// silence takes the doorbells in BAR i away.
func (b *Bus) silence(c *Config, i int) {
	for k := range c.bells {
		if d := &c.bells[k]; d.bar == i && d.at != 0 {
			b.bells.RemoveDoorbell(mem.Addr(d.at), d.fd)
			d.at = 0
		}
	}
}

// Pause stops every function that works on its own; Resume lets them go on. CPUs must not run in between.
func (b *Bus) Pause() {
	b.each(func(f Function) error {
		if p, ok := f.(Pauser); ok {
			p.Pause()
		}
		return nil
	})
}

// Resume ends Pause.
func (b *Bus) Resume() {
	b.each(func(f Function) error {
		if p, ok := f.(Pauser); ok {
			p.Resume()
		}
		return nil
	})
}

// Close closes every function that can be closed. No CPU may run.
func (b *Bus) Close() error {
	return b.each(func(f Function) (err error) {
		c := f.Config()
		b.mu.Lock()
		for i := range c.bars {
			b.silence(c, i)
		}
		b.mu.Unlock()
		if f, ok := f.(io.Closer); ok {
			err = f.Close()
		}
		if c.msix != nil {
			err = errors.Join(err, c.msix.close())
		}
		return err
	})
}

// each calls fn with every function, without the lock, and joins the errors.
func (b *Bus) each(fn func(Function) error) error {
	b.mu.Lock()
	slots := b.slots
	b.mu.Unlock()
	var errs []error
	for i, f := range slots {
		if f != nil {
			if err := fn(f); err != nil {
				errs = append(errs, fmt.Errorf("pci: slot %d: %w", i, err))
			}
		}
	}
	return errors.Join(errs...)
}

type busState struct {
	Address uint32
	Slots   []int // the occupied ones, whose functions' states follow in this order
}

// Save implements [bus.Stateful] for the bus and all functions. They must be paused.
func (b *Bus) Save(enc *gob.Encoder) error {
	b.mu.Lock()
	s := busState{Address: b.address, Slots: b.occupied()}
	b.mu.Unlock()
	if err := enc.Encode(s); err != nil {
		return err
	}
	return b.each(func(f Function) error { return f.Save(enc) })
}

// Load implements [bus.Stateful]: the same functions must be in the same slots, and be paused.
func (b *Bus) Load(dec *gob.Decoder) error {
	var s busState
	if err := dec.Decode(&s); err != nil {
		return err
	}
	b.mu.Lock()
	b.address = s.Address
	here := b.occupied()
	b.mu.Unlock()
	if fmt.Sprint(here) != fmt.Sprint(s.Slots) {
		return fmt.Errorf("pci: state is of slots %v, here are %v", s.Slots, here)
	}
	for _, i := range here {
		if err := b.Function(i).Load(dec); err != nil {
			return fmt.Errorf("pci: slot %d: %w", i, err)
		}
	}
	return nil
}

func (b *Bus) occupied() (slots []int) {
	for i, f := range b.slots {
		if f != nil {
			slots = append(slots, i)
		}
	}
	return slots
}

// hostBridgeID is QEMU's generic PCIe host bridge: no driver binds to it and no kernel has quirks for it.
var hostBridgeID = ID{Vendor: 0x1B36, Device: 0x0008, SubVendor: 0x1AF4, SubDevice: 0x1100, Class: 0x060000}

type hostBridge struct{ config *Config }

func (h *hostBridge) Config() *Config             { return h.config }
func (h *hostBridge) Save(enc *gob.Encoder) error { return enc.Encode(h.config.State()) }
func (h *hostBridge) Load(dec *gob.Decoder) error {
	var s ConfigState
	if err := dec.Decode(&s); err != nil {
		return err
	}
	return h.config.SetState(s)
}

// wire is an interrupt line that several functions assert: high while any of them does.
type wire struct {
	mu   sync.Mutex
	n    int
	line bus.Line
}

// share is one function's hold on a wire. Set is called with its Config.mu held, and only when the level changes.
type share struct{ wire *wire }

// Set implements [bus.Line].
func (s *share) Set(level bool) {
	w := s.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.n > 0
	if level {
		w.n++
	} else {
		w.n--
	}
	if now := w.n > 0; now != was && w.line != nil {
		w.line.Set(now)
	}
}
