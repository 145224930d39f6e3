package chipset

import (
	"encoding/gob"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
)

// pitHz is the 8254's input: the NTSC colour carrier times 4, divided by 12, rounded as everyone does.
const pitHz = 1193182

// A PIT is an 8254 with a PC's wires: channel 0 is interrupt 0, channel 2 has its gate and output at port 0x61.
type PIT struct {
	clk   *clock.Clock
	irq   bus.Line
	alarm *clock.Timer

	ticking atomic.Bool // channel 0 is periodic; written with mu held

	mu    sync.Mutex
	s     pitState
	owed  owed
	again int64 // when what is owed is raised
	next  int64 // when channel 0 rises next; clock.Never when it does not
}

type pitState struct {
	Ch     [3]pitChannel
	Port61 uint8 // bits 0, 1: gate of channel 2 and speaker
	Next   int64
	Line   bool // the level of interrupt 0
	Owed   int
	Ended  int64 // periods of channel 0 that ended, of those since its Start
}

// pitChannel is one counter. Fields are exported for Save.
type pitChannel struct {
	Mode   uint8 // 0 to 5
	BCD    bool
	Access uint8 // 1 low byte, 2 high byte, 3 both
	Gate   bool
	Loaded bool   // a count was written since the control word
	Count  uint32 // 1 to 0x10000
	Start  int64  // machine time when it began to count; while Gate is low, how long it had counted

	HalfWrite   bool // the low byte came, the high one is due
	WriteLow    uint8
	HalfRead    bool
	Latched     bool
	Latch       uint16
	StatusLatch bool
	Status      uint8
}

// NewPIT makes a PIT whose channel 0 drives irq.
func NewPIT(clk *clock.Clock, irq bus.Line) *PIT {
	p := &PIT{clk: clk, irq: irq, next: clock.Never, again: clock.Never}
	for i := range p.s.Ch {
		p.s.Ch[i] = pitChannel{Mode: 3, Access: 3, Gate: i != 2, Count: 0x10000}
	}
	p.alarm = clk.NewTimer(p.fired)
	return p
}

// ticks is how long the channel has counted, in its clocks.
func (c *pitChannel) ticks(now int64) int64 {
	if !c.Gate {
		return scale(c.Start, pitHz, 1e9)
	}
	return scale(now-c.Start, pitHz, 1e9)
}

// value is the counting element (8254 data sheet, mode definitions).
func (c *pitChannel) value(now int64) uint16 {
	n, d := int64(c.Count), c.ticks(now)
	var v int64
	switch c.Mode {
	case 2:
		v = n - d%n
	case 3:
		v = n - 2*d%n
	default: // counts on through zero
		v = (n - d) & 0xFFFF
		if c.BCD {
			v = ((n-d)%10000 + 10000) % 10000
		}
	}
	if c.BCD {
		return toBCD16(v % 10000)
	}
	return uint16(v)
}

// out is the output pin.
func (c *pitChannel) out(now int64) bool {
	if !c.Loaded {
		return c.Mode != 0
	}
	n, d := int64(c.Count), c.ticks(now)
	switch c.Mode {
	case 0, 1:
		return d >= n
	case 2:
		return d%n != n-1
	case 3:
		return d%n < (n+1)/2
	}
	return d != n
}

// load begins a count.
func (c *pitChannel) load(v uint16, now int64) {
	c.Count = uint32(v)
	if c.BCD {
		c.Count = uint32(fromBCD16(v))
	}
	if c.Count == 0 {
		c.Count = 0x10000
		if c.BCD {
			c.Count = 10000
		}
	}
	c.Loaded, c.Start = true, now
	if !c.Gate {
		c.Start = 0
	}
}

// setGate is the gate pin: low stops the count; rising starts it again, or lets it go on in modes 0 and 4.
func (c *pitChannel) setGate(level bool, now int64) {
	switch {
	case level == c.Gate:
		return
	case !level:
		c.Start = now - c.Start
	case c.Mode == 0 || c.Mode == 4:
		c.Start = now - c.Start
	default:
		c.Start = now
	}
	c.Gate = level
}

// period is channel 0's, in its clocks, where it is periodic: no shorter than clock.MinPeriod. Else 0.
func (p *PIT) period() int64 {
	c := &p.s.Ch[0]
	if !c.Loaded || c.Mode != 2 && c.Mode != 3 {
		return 0
	}
	n := int64(c.Count)
	if least := scaleUp(clock.MinPeriod, pitHz, 1e9); n < least {
		n = (least + n - 1) / n * n
	}
	return n
}

// schedule finds when channel 0 rises first after now.
func (p *PIT) schedule(now int64) {
	c := &p.s.Ch[0]
	at := func(ticks int64) int64 { return c.Start + scaleUp(ticks, 1e9, pitHz) }
	p.next = clock.Never
	n := p.period()
	p.ticking.Store(n != 0)
	if n != 0 {
		p.next = min(p.again, at((c.ticks(now)/n+1)*n))
	} else if c.Loaded && (c.Mode == 0 || c.Mode == 4) && c.ticks(now) < int64(c.Count) {
		p.next = at(int64(c.Count))
	}
	p.alarm.Set(p.next)
}

// fired runs on the clock's goroutine.
func (p *PIT) fired() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clk.Now()
	if p.next > now {
		p.alarm.Set(p.next)
		return
	}
	p.rise(now)
}

// CatchUp raises a tick that is due or owed, on the thread of a CPU that has just taken an interrupt. A CPU that gets little of its host
// takes all its ticks so, one behind the other, before it goes on with what the ticks interrupted: Linux's timer_irq_works measures that.
func (p *PIT) CatchUp() {
	if !p.ticking.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.clk.Now(); p.owed > 0 || p.next <= now {
		p.rise(now)
	}
}

// rise is the output of channel 0 going high.
func (p *PIT) rise(now int64) {
	p.set(false)
	p.s.Line = true
	if n := p.period(); n != 0 {
		// How many periods ended since the last count.
		ended := p.s.Ch[0].ticks(now) / n
		p.again = after(now, p.owed.raise(p.irq, ended-p.s.Ended))
		p.s.Ended = ended
	} else {
		p.irq.Set(true)
	}
	p.schedule(now)
}

// set drives interrupt 0.
func (p *PIT) set(level bool) {
	p.s.Line = level
	p.irq.Set(level)
}

// Read implements bus.Device for ports 0x40 to 0x43.
func (p *PIT) Read(off uint64, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range b {
		if n := off + uint64(i); n < 3 {
			b[i] = p.s.Ch[n].read(p.clk.Now())
		} else {
			b[i] = 0xFF
		}
	}
}

func (c *pitChannel) read(now int64) uint8 {
	if c.StatusLatch {
		c.StatusLatch = false
		return c.Status
	}
	v := c.Latch
	if !c.Latched {
		v = c.value(now)
	}
	high := c.Access == 2
	if c.Access == 3 {
		high = c.HalfRead
		c.HalfRead = !c.HalfRead
	}
	if high || c.Access != 3 {
		c.Latched = false
	}
	if high {
		return uint8(v >> 8)
	}
	return uint8(v)
}

// Write implements bus.Device for ports 0x40 to 0x43.
func (p *PIT) Write(off uint64, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clk.Now()
	for i, v := range b {
		switch n := off + uint64(i); {
		case n == 3:
			p.control(v, now)
		case n < 3:
			if p.s.Ch[n].write(v, now) && n == 0 {
				p.owed, p.again, p.s.Ended = 0, clock.Never, 0
				p.set(p.s.Ch[0].out(now))
				p.schedule(now)
			}
		}
	}
}

// write takes a byte of the count; it returns true when the count is whole.
func (c *pitChannel) write(v uint8, now int64) bool {
	switch {
	case c.Access == 1:
		c.load(uint16(v), now)
	case c.Access == 2:
		c.load(uint16(v)<<8, now)
	case !c.HalfWrite:
		c.HalfWrite, c.WriteLow = true, v
		return false
	default:
		c.HalfWrite = false
		c.load(uint16(v)<<8|uint16(c.WriteLow), now)
	}
	return true
}

// control is a control word, a counter latch or a read-back command.
func (p *PIT) control(v uint8, now int64) {
	n := v >> 6
	if n == 3 {
		for i := range p.s.Ch {
			if v>>(i+1)&1 != 0 {
				p.s.Ch[i].readBack(v, now)
			}
		}
		return
	}
	c := &p.s.Ch[n]
	access := v >> 4 & 3
	if access == 0 {
		c.latch(now)
		return
	}
	mode := v >> 1 & 7
	if mode > 5 {
		mode -= 4
	}
	*c = pitChannel{Mode: mode, BCD: v&1 != 0, Access: access, Gate: c.Gate, Count: c.Count, Start: c.Start}
	if c.BCD && c.Count > 10000 {
		c.Count = 10000
	}
	if n == 0 {
		p.owed, p.again, p.s.Ended = 0, clock.Never, 0
		p.set(c.out(now))
		p.schedule(now)
	}
}

func (c *pitChannel) latch(now int64) {
	if !c.Latched {
		c.Latched, c.Latch = true, c.value(now)
	}
}

func (c *pitChannel) readBack(v uint8, now int64) {
	if v&0x20 == 0 {
		c.latch(now)
	}
	if v&0x10 != 0 || c.StatusLatch {
		return
	}
	c.StatusLatch, c.Status = true, c.Access<<4|c.Mode<<1
	if c.BCD {
		c.Status |= 1
	}
	if c.out(now) {
		c.Status |= 0x80
	}
	if !c.Loaded {
		c.Status |= 0x40
	}
}

// Port61 is system control port B: the gate and the output of channel 2, the speaker's enable, and the refresh toggle.
func (p *PIT) Port61() bus.Device { return port61{p} }

type port61 struct{ p *PIT }

func (d port61) Read(_ uint64, b []byte) {
	p := d.p
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clk.Now()
	v := p.s.Port61
	if p.s.Ch[2].out(now) {
		v |= 0x20
	}
	if now/15085&1 != 0 { // memory refresh, each 15.085 us
		v |= 0x10
	}
	putLE(b, 0, uint64(v))
}

func (d port61) Write(_ uint64, b []byte) {
	p := d.p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s.Port61 = b[0] & 3
	p.s.Ch[2].setGate(b[0]&1 != 0, p.clk.Now())
}

// Save implements bus.Stateful.
func (p *PIT) Save(enc *gob.Encoder) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s.Next, p.s.Owed = p.next, int(p.owed)
	return enc.Encode(p.s)
}

// Load implements bus.Stateful.
func (p *PIT) Load(dec *gob.Decoder) error {
	var s pitState
	if err := load(dec, "PIT", &s); err != nil {
		return err
	}
	for i := range s.Ch {
		c := &s.Ch[i]
		c.Count = min(max(c.Count, 1), 0x10000)
		c.Mode = min(c.Mode, 5)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.s, p.next, p.again, p.owed = s, s.Next, clock.Never, owed(min(max(s.Owed, 0), maxOwed))
	p.irq.Set(p.s.Line)
	p.alarm.Set(p.next)
	return nil
}

func toBCD16(v int64) uint16 {
	return uint16(v/1000%10<<12 | v/100%10<<8 | v/10%10<<4 | v%10)
}

func fromBCD16(v uint16) int64 {
	return int64(v>>12)*1000 + int64(v>>8&15)*100 + int64(v>>4&15)*10 + int64(v&15)
}
