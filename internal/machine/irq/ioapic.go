package irq

import (
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"sync"
)

// Bits of a redirection entry (82093AA data sheet 3.2.4).
const (
	redirLogical   = 1 << 11
	redirPending   = 1 << 12 // read-only, never seen: delivery is immediate
	redirActiveLow = 1 << 13
	redirRemoteIRR = 1 << 14 // read-only
	redirLevel     = 1 << 15
	redirMasked    = 1 << 16
	redirReadOnly  = redirPending | redirRemoteIRR
	redirWritable  = 0xFF<<56 | 0x1FFFF
)

// Registers of the I/O APIC: offsets in its page, and indices.
const (
	ioRegSel = 0x00
	ioWin    = 0x10
	ioEOI    = 0x40 // version 0x20 has it

	ioID      = 0
	ioVersion = 1
	ioArb     = 2
	ioRedir   = 0x10
)

// An IOAPIC has 24 pins, version 0x20.
type IOAPIC struct {
	chips *Chips

	mu    sync.Mutex
	sel   uint8
	id    uint32
	redir [Pins]uint64
	level uint32 // the pins' levels as the wires have them
}

func newIOAPIC(c *Chips) *IOAPIC {
	io := &IOAPIC{chips: c}
	for i := range io.redir {
		io.redir[i] = redirMasked
	}
	return io
}

// set is the level of a wire. All lines of this board are active high, whatever a pin's polarity bit says:
// firmware tables and drivers must agree with each other, not with the board.
// It returns false where an edge merged into one that waits.
func (io *IOAPIC) set(pin int, level bool) (seen bool) {
	io.mu.Lock()
	defer io.mu.Unlock()
	bit := uint32(1) << pin
	if !level {
		io.level &^= bit
		return true
	}
	if io.level&bit != 0 {
		return true
	}
	io.level |= bit
	if e := io.redir[pin]; e&redirLevel != 0 {
		io.service(pin)
	} else if e&redirMasked == 0 { // an edge at a masked pin is lost (82093AA 3.2.4, "interrupt mask")
		found, fresh := io.chips.deliver(redirMessage(e), nil)
		return fresh || !found
	}
	return true
}

// redirMessage is what a redirection entry sends.
func redirMessage(e uint64) message {
	return message{
		dest:    uint32(e >> 56),
		logical: e&redirLogical != 0,
		mode:    uint8(e >> 8 & 7),
		vector:  uint8(e),
		// An EOI is due for the two modes that put the vector into an ISR.
		level: e&redirLevel != 0 && e>>8&7 <= lowestPriority,
	}
}

// service delivers the interrupt of a level-triggered pin if it is high, unmasked and not in service already.
func (io *IOAPIC) service(pin int) {
	e := io.redir[pin]
	if e&redirLevel == 0 || e&(redirMasked|redirRemoteIRR) != 0 || io.level>>pin&1 == 0 {
		return
	}
	m := redirMessage(e)
	if found, _ := io.chips.deliver(m, nil); found && m.level {
		io.redir[pin] |= redirRemoteIRR
	}
}

// eoi ends the service of vector: a level that is still high interrupts again.
func (io *IOAPIC) eoi(vector uint8) {
	io.mu.Lock()
	defer io.mu.Unlock()
	for pin := range io.redir {
		if e := io.redir[pin]; e&redirRemoteIRR != 0 && uint8(e) == vector {
			io.redir[pin] &^= redirRemoteIRR
			io.service(pin)
		}
	}
}

// Read implements bus.Device.
func (io *IOAPIC) Read(off uint64, p []byte) {
	io.mu.Lock()
	defer io.mu.Unlock()
	var v uint32
	switch off &^ 3 {
	case ioRegSel:
		v = uint32(io.sel)
	case ioWin:
		v = io.readReg()
	}
	put32(p, off, v)
}

func (io *IOAPIC) readReg() uint32 {
	switch io.sel {
	case ioID, ioArb:
		return io.id
	case ioVersion:
		return (Pins-1)<<16 | 0x20
	}
	if pin := int(io.sel) - ioRedir; pin >= 0 && pin < 2*Pins {
		return uint32(io.redir[pin/2] >> (32 * (pin & 1)))
	}
	return 0
}

// Write implements bus.Device.
func (io *IOAPIC) Write(off uint64, p []byte) {
	v, ok := get32(p, off)
	if !ok {
		return
	}
	if off == ioEOI {
		io.eoi(uint8(v))
		return
	}
	io.mu.Lock()
	defer io.mu.Unlock()
	switch off {
	case ioRegSel:
		io.sel = uint8(v)
	case ioWin:
		io.writeReg(v)
	}
}

func (io *IOAPIC) writeReg(v uint32) {
	if io.sel == ioID {
		io.id = v & 0x0F000000
		return
	}
	i := int(io.sel) - ioRedir
	if i < 0 || i >= 2*Pins {
		return
	}
	pin, old := i/2, io.redir[i/2]
	e := old&^(0xFFFFFFFF<<(32*(i&1))) | uint64(v)<<(32*(i&1))
	e = e&redirWritable&^redirReadOnly | old&redirReadOnly
	if e&redirLevel == 0 {
		// Turning a pin to edge clears remote IRR: Linux's way to end an interrupt where there is no EOI register.
		e &^= redirRemoteIRR
	}
	io.redir[pin] = e
	io.service(pin)
}

// put32 answers a read of p at off in the 32-bit register that off lies in.
func put32(p []byte, off uint64, v uint32) {
	v >>= 8 * (off & 3)
	for i := range p {
		p[i] = byte(v)
		v >>= 8
	}
}

// get32 takes a write of a whole 32-bit register; others are dropped. Of an 8-byte write the first half counts.
func get32(p []byte, off uint64) (uint32, bool) {
	if len(p) < 4 || off&3 != 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(p), true
}

type ioapicState struct {
	Sel   uint8
	ID    uint32
	Redir [Pins]uint64
	Level uint32
}

// Save implements bus.Stateful.
func (io *IOAPIC) Save(enc *gob.Encoder) error {
	io.mu.Lock()
	defer io.mu.Unlock()
	return enc.Encode(ioapicState{io.sel, io.id, io.redir, io.level})
}

// Load implements bus.Stateful.
func (io *IOAPIC) Load(dec *gob.Decoder) error {
	var s ioapicState
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("ioapic: %w", err)
	}
	io.mu.Lock()
	defer io.mu.Unlock()
	io.sel, io.id, io.redir, io.level = s.Sel, s.ID, s.Redir, s.Level
	return nil
}
