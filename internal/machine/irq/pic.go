package irq

import (
	"encoding/gob"
	"fmt"
	"sync"
)

// Ports of the PIC.
const (
	PICMaster = 0x20
	PICSlave  = 0xA0
	PICELCR   = 0x4D0
)

// elcrAllowed is what the edge/level register lets be level: not the timer, keyboard, cascade, RTC and FPU lines.
var elcrAllowed = [2]uint8{0xF8, 0xDE}

// A PIC is the pair of 8259As of a PC: the slave's output is the master's input 2.
type PIC struct {
	intr func(level bool) // told with mu held

	mu   sync.Mutex
	chip [2]i8259
	out  bool
	fell [16]bool // the input's last edge went away before it was acknowledged
}

// i8259 is the state of one chip, by the names of its data sheet. Fields are exported for Save.
type i8259 struct {
	IRR, ISR, IMR uint8
	Lines         uint8 // levels of the inputs
	ELCR          uint8
	Base          uint8 // ICW2
	Lowest        uint8 // the input with the lowest priority; 7 unless rotated
	ICW           uint8 // 0: ready; else which ICW is next, 2 to 4
	NeedICW4      bool
	Single        bool
	AutoEOI       bool
	RotateAEOI    bool
	SpecialMask   bool
	SpecialNested bool
	ReadISR       bool
	Poll          bool
}

func newPIC(intr func(bool)) *PIC {
	p := &PIC{intr: intr}
	for i := range p.chip {
		p.chip[i].reset()
		p.chip[i].IMR = 0xFF
	}
	return p
}

func (c *i8259) reset() {
	*c = i8259{Lines: c.Lines, ELCR: c.ELCR, Lowest: 7}
	c.IRR = c.Lines & c.ELCR
}

// pending is the highest-priority request that may interrupt now. With priorities rotated, the input after Lowest comes first.
func (c *i8259) pending(master bool) (irq uint8, ok bool) {
	isr := c.ISR
	if c.SpecialMask {
		isr &^= c.IMR
	}
	for i := uint8(1); i <= 8; i++ {
		n := (c.Lowest + i) & 7
		bit := uint8(1) << n
		if c.IRR&^c.IMR&bit != 0 && (isr&bit == 0 || c.SpecialNested && master && n == 2) {
			return n, true
		}
		if isr&bit != 0 && !c.SpecialMask && !(c.SpecialNested && master && n == 2) {
			return 0, false // it is in service; what follows is not more urgent
		}
	}
	return 0, false
}

func (c *i8259) setLine(n uint8, level bool) {
	bit := uint8(1) << n
	switch {
	case c.ELCR&bit != 0 && level:
		c.IRR |= bit
	case c.ELCR&bit != 0, !level:
		c.IRR &^= bit // an edge must be held until it is acknowledged
	case c.Lines&bit == 0:
		c.IRR |= bit
	}
	if level {
		c.Lines |= bit
	} else {
		c.Lines &^= bit
	}
}

// take begins the service of request n.
func (c *i8259) take(n uint8) {
	bit := uint8(1) << n
	if c.ELCR&bit == 0 {
		c.IRR &^= bit
	}
	if !c.AutoEOI {
		c.ISR |= bit
	} else if c.RotateAEOI {
		c.Lowest = n
	}
}

// inService is the request with the highest priority in service.
func (c *i8259) inService() (n uint8, ok bool) {
	isr := c.ISR
	if c.SpecialMask {
		isr &^= c.IMR // a non-specific EOI leaves masked requests in service
	}
	for i := uint8(1); i <= 8; i++ {
		if n := (c.Lowest + i) & 7; isr>>n&1 != 0 {
			return n, true
		}
	}
	return 0, false
}

// set is input n of the pair. It returns false where an edge merged into one that waits, unmasked.
func (p *PIC) set(n int, level bool) (seen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, bit := &p.chip[n>>3&1], uint8(1)<<(n&7)
	seen = !level || c.IMR&bit != 0 || !p.fell[n&15]
	p.fell[n&15] = !level && c.IRR&^c.IMR&bit != 0
	c.setLine(uint8(n&7), level)
	p.update()
	return seen
}

// update carries the slave's output to the master, and the master's out.
func (p *PIC) update() {
	_, slave := p.chip[1].pending(false)
	c := &p.chip[0]
	if slave {
		// The slave's INT goes low between two requests, so a new one is always an edge.
		c.Lines |= 1 << 2
		c.IRR |= 1 << 2
	} else {
		c.Lines &^= 1 << 2
		c.IRR &^= 1 << 2
	}
	_, out := c.pending(true)
	if out != p.out {
		p.out = out
		p.intr(out)
	}
}

// Acknowledge is the CPU's INTA cycle. It returns false where the request went away; hardware gives a spurious interrupt 7.
func (p *PIC) Acknowledge() (vector uint8, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.chip[0].pending(true)
	if !ok {
		return 0, false
	}
	p.chip[0].take(n)
	vector = p.chip[0].Base + n
	if n == 2 {
		n, ok = p.chip[1].pending(false)
		if !ok {
			n = 7 // unreachable while update keeps input 2 equal to the slave's output
		} else {
			p.chip[1].take(n)
		}
		vector = p.chip[1].Base + n
	}
	p.update()
	return vector, true
}

// Ports gives the register pair of one chip (0 master, 1 slave), or their two ELCRs (2), as a bus.Device.
func (p *PIC) Ports(which int) PICPorts { return PICPorts{p, which} }

// PICPorts is a window to a PIC's registers.
type PICPorts struct {
	pic   *PIC
	which int
}

// Read implements bus.Device.
func (w PICPorts) Read(off uint64, b []byte) {
	w.pic.mu.Lock()
	defer w.pic.mu.Unlock()
	for i := range b {
		b[i] = w.pic.read(w.which, int(off&1)+i)
	}
	w.pic.update()
}

// Write implements bus.Device.
func (w PICPorts) Write(off uint64, b []byte) {
	w.pic.mu.Lock()
	defer w.pic.mu.Unlock()
	for i, v := range b {
		w.pic.write(w.which, int(off&1)+i, v)
	}
	w.pic.update()
}

func (p *PIC) read(which, off int) uint8 {
	switch {
	case off > 1:
		return 0xFF
	case which == 2:
		return p.chip[off].ELCR
	}
	c := &p.chip[which]
	switch {
	case c.Poll:
		c.Poll = false
		n, ok := c.pending(which == 0)
		if !ok {
			return 0
		}
		c.take(n)
		return 0x80 | n
	case off == 1:
		return c.IMR
	case c.ReadISR:
		return c.ISR
	}
	return c.IRR
}

func (p *PIC) write(which, off int, v uint8) {
	switch {
	case off > 1:
		return
	case which == 2:
		c := &p.chip[off]
		c.ELCR = v & elcrAllowed[off]
		c.IRR |= c.Lines & c.ELCR
		return
	}
	c := &p.chip[which]
	if off == 0 {
		c.command(v)
		return
	}
	switch c.ICW {
	case 2:
		c.Base = v &^ 7
		switch {
		case !c.Single:
			c.ICW = 3
		case c.NeedICW4:
			c.ICW = 4
		default:
			c.ICW = 0
		}
	case 3: // the cascade is soldered
		c.ICW = 0
		if c.NeedICW4 {
			c.ICW = 4
		}
	case 4:
		c.AutoEOI, c.SpecialNested, c.ICW = v&2 != 0, v&0x10 != 0, 0
	default:
		c.IMR = v
	}
}

// command is ICW1, OCW2 or OCW3.
func (c *i8259) command(v uint8) {
	switch {
	case v&0x10 != 0: // ICW1
		c.reset()
		c.ICW, c.NeedICW4, c.Single = 2, v&1 != 0, v&2 != 0
	case v&8 != 0: // OCW3
		if v&4 != 0 {
			c.Poll = true
		}
		if v&2 != 0 {
			c.ReadISR = v&1 != 0
		}
		if v&0x40 != 0 {
			c.SpecialMask = v&0x20 != 0
		}
	default:
		c.ocw2(v)
	}
}

func (c *i8259) ocw2(v uint8) {
	n := v & 7
	switch v >> 5 {
	case 0, 4: // rotate in automatic EOI mode: off, on
		c.RotateAEOI = v>>5 == 4
	case 1, 5: // non-specific EOI, and rotate
		if m, ok := c.inService(); ok {
			c.ISR &^= 1 << m
			if v>>5 == 5 {
				c.Lowest = m
			}
		}
	case 3, 7: // specific EOI, and rotate
		c.ISR &^= 1 << n
		if v>>5 == 7 {
			c.Lowest = n
		}
	case 6:
		c.Lowest = n
	}
}

// picState is what Save writes.
type picState struct{ Chip [2]i8259 }

// Save implements bus.Stateful.
func (p *PIC) Save(enc *gob.Encoder) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return enc.Encode(picState{p.chip})
}

// Load implements bus.Stateful.
func (p *PIC) Load(dec *gob.Decoder) error {
	var s picState
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("pic: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range s.Chip {
		s.Chip[i].Lowest &= 7
		s.Chip[i].ELCR &= elcrAllowed[i]
	}
	p.chip, p.out = s.Chip, false
	p.intr(false)
	p.update()
	return nil
}
