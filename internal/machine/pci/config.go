package pci

import (
	"encoding/binary"
	"fmt"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
)

// Registers of a type-0 header (PCI Local Bus 3.0 section 6.1) and the bits of them used here.
const (
	regVendor      = 0x00
	regDevice      = 0x02
	regCommand     = 0x04
	regStatus      = 0x06
	regRevision    = 0x08
	regClass       = 0x09
	regCacheLine   = 0x0C
	regLatency     = 0x0D
	regBAR         = 0x10
	regSubVendor   = 0x2C
	regSubDevice   = 0x2E
	regCapPointer  = 0x34
	regIntLine     = 0x3C
	regIntPin      = 0x3D
	firstCap       = 0x40
	spaceSize      = 0x100
	cmdMemory      = 1 << 1
	cmdMaster      = 1 << 2
	cmdIntDisable  = 1 << 10
	commandMask    = cmdMemory | cmdMaster | 1<<6 | 1<<8 | cmdIntDisable
	statusInt      = 1 << 3
	statusCapList  = 1 << 4
	statusW1C      = 0xF900
	barType64      = 0x4
	barPrefetch    = 0x8
	barFlags       = 0xF
	maxBARs        = 6
	minBARSize     = 16
	intA           = 1
	capVendor      = 0x09
	capMSIX        = 0x11
	msixTableEntry = 16
)

// CapVendor is the id of a vendor-specific capability.
const CapVendor = capVendor

// ID says what a function is to the guest.
type ID struct {
	Vendor, Device       uint16
	SubVendor, SubDevice uint16
	Class                uint32 // base class, subclass and interface: 0x010000 is a SCSI controller
	Revision             uint8
}

// Config is the configuration space of a type-0 function: the header, capabilities, MSI-X and the INTx pin.
// It is filled by the Add methods before [Bus.Attach], and locks itself from then on.
type Config struct {
	mu    sync.Mutex
	space [spaceSize]byte
	mask  [spaceSize]byte // bits that the guest may write
	w1c   [spaceSize]byte // bits that the guest clears by writing 1
	bars  [maxBARs]bar
	wins  []window
	bells []bell
	msix  *MSIX
	caps  int // where the next capability goes
	last  int // the byte that points to it

	intx  bool // what the function asserts
	level bool // what the wire is told: intx unless disabled
	line  bus.Line
	bus   *Bus
}

type bar struct {
	size   uint64
	is64   bool
	dev    bus.Device
	at     uint64 // where it is mapped; of use while mapped
	mapped bool
}

// bell is a register that only tells a device to look: writes to it are worth an event counter's 1.
type bell struct {
	bar int
	off uint64
	fd  int
	at  uint64 // where it rings; 0 where it does not, so that writes reach the device
}

// window is a run of configuration bytes that a device answers.
type window struct {
	off, n int
	dev    bus.Device
}

// NewConfig makes the configuration space of a function without BARs and capabilities.
func NewConfig(id ID) *Config {
	c := &Config{caps: firstCap, last: regCapPointer}
	le.PutUint16(c.space[regVendor:], id.Vendor)
	le.PutUint16(c.space[regDevice:], id.Device)
	le.PutUint16(c.space[regSubVendor:], id.SubVendor)
	le.PutUint16(c.space[regSubDevice:], id.SubDevice)
	c.space[regRevision] = id.Revision
	c.space[regClass], c.space[regClass+1], c.space[regClass+2] = byte(id.Class), byte(id.Class>>8), byte(id.Class>>16)
	le.PutUint16(c.mask[regCommand:], commandMask)
	le.PutUint16(c.w1c[regStatus:], statusW1C)
	c.mask[regCacheLine], c.mask[regLatency], c.mask[regIntLine] = 0xFF, 0xFF, 0xFF
	return c
}

var le = binary.LittleEndian

// AddBAR makes BAR i a memory range of size bytes, a power of two, answered by dev.
// With is64 it is 64 bits wide and takes BAR i+1 too.
func (c *Config) AddBAR(i int, size uint64, is64 bool, dev bus.Device) {
	if size < minBARSize || size&(size-1) != 0 || i < 0 || i >= maxBARs || is64 && i+1 >= maxBARs {
		panic(fmt.Sprintf("BUG: pci: BAR %d of %#x bytes", i, size))
	}
	c.bars[i] = bar{size: size, is64: is64, dev: dev}
	off := regBAR + 4*i
	mask := ^(size - 1)
	le.PutUint32(c.mask[off:], uint32(mask)&^barFlags)
	if is64 {
		c.space[off] |= barType64
		le.PutUint32(c.mask[off+4:], uint32(mask>>32))
	}
}

// AddCapability appends a capability: its id, the link, then body. It returns where the capability begins.
func (c *Config) AddCapability(id uint8, body []byte) int {
	off := c.caps
	c.caps = (off + 2 + len(body) + 3) &^ 3
	if c.caps > spaceSize {
		panic("BUG: pci: capabilities do not fit")
	}
	c.space[off] = id
	copy(c.space[off+2:], body)
	c.space[c.last] = byte(off)
	c.last = off + 1
	c.space[regStatus] |= statusCapList
	return off
}

// SetWritable lets the guest write n bytes at off.
func (c *Config) SetWritable(off, n int) {
	for i := off; i < off+n; i++ {
		c.mask[i] = 0xFF
	}
}

// SetWindow makes dev answer the n bytes at off. It is called without the lock held, so it may call Read.
func (c *Config) SetWindow(off, n int, dev bus.Device) { c.wins = append(c.wins, window{off, n, dev}) }

// AddDoorbell says that what is written at off of BAR i does not matter, only that it was: where the machine can, such a write adds 1 to the event
// counter fd and does not reach the BAR's device. The counter stays the caller's, until after [Bus.Close].
func (c *Config) AddDoorbell(i int, off uint64, fd int) {
	c.bells = append(c.bells, bell{bar: i, off: off, fd: fd})
}

// UseINTA gives the function an interrupt pin, for [Config.SetINTx].
func (c *Config) UseINTA() { c.space[regIntPin] = intA }

// Read fills p from off, any length and alignment; beyond the 256 bytes it reads zero.
func (c *Config) Read(off int, p []byte) {
	for _, w := range c.wins {
		if off >= w.off && off+len(p) <= w.off+w.n {
			w.dev.Read(uint64(off-w.off), p)
			return
		}
	}
	clear(p)
	if off < 0 || off >= spaceSize {
		return
	}
	c.mu.Lock()
	copy(p, c.space[off:])
	c.mu.Unlock()
}

// Write changes the writable bits among p at off, and acts on what they say.
func (c *Config) Write(off int, p []byte) {
	if off < 0 || off >= spaceSize {
		return
	}
	p = p[:min(len(p), spaceSize-off)]
	for _, w := range c.wins {
		if off >= w.off && off+len(p) <= w.off+w.n {
			w.dev.Write(uint64(off-w.off), p)
			return
		}
	}
	c.mu.Lock()
	for i, v := range p {
		o := off + i
		c.space[o] = (c.space[o]&^c.mask[o] | v&c.mask[o]) &^ (v & c.w1c[o])
	}
	c.apply()
	c.mu.Unlock()
	if b := c.bus; b != nil && off < regBAR+4*maxBARs {
		b.remap()
	}
}

// apply makes the wire and MSI-X follow the registers. c.mu is held.
func (c *Config) apply() {
	if c.intx {
		c.space[regStatus] |= statusInt
	} else {
		c.space[regStatus] &^= statusInt
	}
	level := c.intx && le.Uint16(c.space[regCommand:])&cmdIntDisable == 0
	if level != c.level && c.line != nil {
		c.level = level
		c.line.Set(level)
	}
	if c.msix != nil {
		c.msix.setControl(le.Uint16(c.space[c.msix.cap+2:]))
	}
}

// SetINTx asserts or releases the function's interrupt pin.
func (c *Config) SetINTx(level bool) {
	c.mu.Lock()
	c.intx = level
	c.apply()
	c.mu.Unlock()
}

// barAddress is where the registers put BAR i, and whether it is decoded. c.mu is held.
func (c *Config) barAddress(i int) (uint64, bool) {
	b := &c.bars[i]
	if b.size == 0 {
		return 0, false
	}
	off := regBAR + 4*i
	a := uint64(le.Uint32(c.space[off:])) &^ barFlags
	if b.is64 {
		a |= uint64(le.Uint32(c.space[off+4:])) << 32
	}
	// All ones is a size being asked for, zero is no address yet.
	ones := a == ^(b.size-1) || !b.is64 && a == uint64(uint32(^(b.size-1)))
	return a, le.Uint16(c.space[regCommand:])&cmdMemory != 0 && a != 0 && !ones
}

// setBAR stores an address in BAR i. c.mu is held.
func (c *Config) setBAR(i int, a uint64) {
	off := regBAR + 4*i
	le.PutUint32(c.space[off:], le.Uint32(c.space[off:])&barFlags|uint32(a))
	if c.bars[i].is64 {
		le.PutUint32(c.space[off+4:], uint32(a>>32))
	}
}

// ConfigState is a Config to be carried over.
type ConfigState struct {
	Space []byte
	INTx  bool
	MSIX  MSIXState
}

// State copies the registers and MSI-X's table.
func (c *Config) State() ConfigState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ConfigState{Space: append([]byte(nil), c.space[:]...), INTx: c.intx}
	if c.msix != nil {
		s.MSIX = c.msix.state()
	}
	return s
}

// SetState puts back what State of the same kind of function gave, and maps its BARs where they were.
func (c *Config) SetState(s ConfigState) error {
	if len(s.Space) != spaceSize {
		return fmt.Errorf("pci: configuration space of %d bytes", len(s.Space))
	}
	c.mu.Lock()
	for i := range c.space {
		fixed := ^(c.mask[i] | c.w1c[i])
		if i == regStatus {
			fixed &^= statusInt
		}
		if (c.space[i]^s.Space[i])&fixed != 0 {
			c.mu.Unlock()
			return fmt.Errorf("pci: state is another function's: byte %#x is %#x, here %#x", i, s.Space[i], c.space[i])
		}
	}
	if c.msix != nil {
		if err := c.msix.setState(s.MSIX); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	copy(c.space[:], s.Space)
	c.intx = s.INTx
	c.apply()
	c.mu.Unlock()
	if c.bus != nil {
		c.bus.remap()
	}
	return nil
}
