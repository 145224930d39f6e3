package chipset

import (
	"encoding/gob"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
)

// The HPET's capabilities (IA-PC HPET 1.0a, 2.3.4): 10 MHz, so that the 32 bits that Linux uses wrap in 429 s, which is longer
// than a host is likely to stop us; three 64-bit timers; legacy replacement.
const (
	hpetPeriod = 100 // ns
	hpetTimers = 3
	hpetCap    = hpetPeriod*1_000_000<<32 | 0x8086<<16 | 1<<15 | 1<<13 | (hpetTimers-1)<<8 | 1
	hpetRoutes = 0x00F00000 // I/O APIC pins 20 to 23
)

// HPETCapabilities is the low half of the capability register, which the HPET table repeats.
const HPETCapabilities = hpetCap & 0xFFFFFFFF

// Bits of a timer's configuration.
const (
	hpetLevel     = 1 << 1
	hpetEnable    = 1 << 2
	hpetPeriodic  = 1 << 3
	hpetSetVal    = 1 << 6
	hpet32        = 1 << 8
	hpetWritable  = hpetLevel | hpetEnable | hpetPeriodic | hpetSetVal | hpet32 | 0x1F<<9
	hpetFixed     = hpetRoutes<<32 | 1<<5 | 1<<4
	hpetOn        = 1 << 0 // of the general configuration
	hpetLegacyOn  = 1 << 1
	hpetBlockSize = 0x400
)

// HPETSize is the size of the HPET's register block.
const HPETSize = hpetBlockSize

// An HPET is the high precision event timer.
type HPET struct {
	clk   *clock.Clock
	pins  map[int]bus.Line // inputs of the pins 20 to 23
	irq0  bus.Line
	irq8  bus.Line
	gates []*gate
	alarm [hpetTimers]*clock.Timer

	ticking atomic.Uint32 // a bit for each timer that is periodic and on; written with mu held

	mu sync.Mutex
	s  hpetState
}

type hpetState struct {
	Config, Status uint64
	Count          uint64 // when it was turned on or off, or written
	Start          int64  // the machine time when it was turned on
	Timer          [hpetTimers]hpetTimer
}

type hpetTimer struct {
	Config, Comparator, Period uint64
	Next                       int64 // when it matches
	Again                      int64 // when it raises what is owed
	Owed                       owed
}

// NewHPET makes an HPET. line gives an input of an I/O APIC pin; irq0 and irq8 are what legacy replacement drives.
func NewHPET(clk *clock.Clock, line func(gsi int) bus.Line, irq0, irq8 bus.Line) *HPET {
	h := &HPET{clk: clk, irq0: irq0, irq8: irq8, pins: map[int]bus.Line{}}
	for gsi := range 24 {
		if hpetRoutes>>gsi&1 != 0 {
			h.pins[gsi] = line(gsi)
		}
	}
	for i := range h.s.Timer {
		h.s.Timer[i] = hpetTimer{Comparator: ^uint64(0), Next: clock.Never, Again: clock.Never}
		h.alarm[i] = clk.NewTimer(func() { h.fired(i) })
	}
	return h
}

// Gate gives a line that drives l while the HPET does not replace it: the PIT's and the RTC's. Call it before the machine runs.
func (h *HPET) Gate(l bus.Line) bus.Line {
	g := &gate{l: l}
	h.gates = append(h.gates, g)
	return g
}

type gate struct {
	l bus.Line

	mu            sync.Mutex // taken after a device's
	level, closed bool
}

func (g *gate) Set(level bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.level = level
	g.l.Set(level && !g.closed)
}

// Raise is as irq's.
func (g *gate) Raise() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.level = true
	if g.closed {
		return true
	}
	if r, ok := g.l.(interface{ Raise() bool }); ok {
		return r.Raise()
	}
	g.l.Set(true)
	return true
}

func (g *gate) setClosed(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
	g.l.Set(g.level && !closed)
}

func (h *HPET) setLegacy() {
	for _, g := range h.gates {
		g.setClosed(h.s.Config&hpetLegacyOn != 0)
	}
}

func (h *HPET) count(now int64) uint64 {
	if h.s.Config&hpetOn == 0 {
		return h.s.Count
	}
	return h.s.Count + uint64(now-h.s.Start)/hpetPeriod
}

// output is the line that timer i drives, or nil.
func (h *HPET) output(i int) bus.Line {
	switch {
	case h.s.Config&hpetLegacyOn != 0 && i == 0:
		return h.irq0
	case h.s.Config&hpetLegacyOn != 0 && i == 1:
		return h.irq8
	}
	return h.pins[int(h.s.Timer[i].Config>>9&0x1F)]
}

// schedule finds when timer i matches next, strictly after the count c.
func (h *HPET) schedule(i int, now int64) {
	t := &h.s.Timer[i]
	t.Next = clock.Never
	h.ticking.And(^(uint32(1) << i))
	if h.s.Config&hpetOn != 0 && t.Config&hpetEnable != 0 {
		if t.Config&hpetPeriodic != 0 {
			h.ticking.Or(1 << i)
		}
		c := h.count(now)
		d := t.Comparator - c
		if t.Config&hpet32 != 0 {
			if d = uint64(uint32(d)); d == 0 {
				d = 1 << 32
			}
		}
		if d != 0 && d < 1<<55 { // a thousand years
			t.Next = now - (now-h.s.Start)%hpetPeriod + int64(d)*hpetPeriod
		}
	}
	h.alarm[i].Set(min(t.Next, t.Again))
}

// fired runs on the clock's goroutine.
func (h *HPET) fired(i int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, now := &h.s.Timer[i], h.clk.Now()
	if at := min(t.Next, t.Again); at > now {
		h.alarm[i].Set(at)
		return
	}
	h.match(i, now)
}

// CatchUp is as the PIT's.
func (h *HPET) CatchUp() {
	if h.ticking.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clk.Now()
	for i := range h.s.Timer {
		if t := &h.s.Timer[i]; h.ticking.Load()>>i&1 != 0 && (t.Owed > 0 || t.Next <= now) {
			h.match(i, now)
		}
	}
}

// match counts the matches of timer i that have passed and raises its interrupt.
func (h *HPET) match(i int, now int64) {
	t := &h.s.Timer[i]
	var matches int64
	if t.Next <= now {
		matches = 1
		if t.Config&hpetPeriodic != 0 && t.Period != 0 {
			period := t.Period
			if least := uint64(clock.MinPeriod / hpetPeriod); period < least {
				period *= (least + period - 1) / period
			}
			matches += int64(uint64(now-t.Next) / hpetPeriod / period)
			t.Comparator += uint64(matches) * period
			if t.Config&hpet32 != 0 {
				t.Comparator = uint64(uint32(t.Comparator))
			}
		}
	}
	t.Again = after(now, h.raise(i, matches))
	h.schedule(i, now)
}

// raise makes the interrupt for so many matches of timer i, and tells after what time it is called for more.
func (h *HPET) raise(i int, matches int64) (again int64) {
	t, l := &h.s.Timer[i], h.output(i)
	switch {
	case l == nil:
	case t.Config&hpetLevel != 0:
		h.s.Status |= 1 << i
		l.Set(true)
	case t.Config&hpetPeriodic != 0:
		again := t.Owed.raise(l, matches)
		l.Set(h.shared(i))
		return again
	default:
		l.Set(true)
		l.Set(h.shared(i))
	}
	return clock.Never
}

// Read implements bus.Device.
func (h *HPET) Read(off uint64, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	putLE(p, off&7, h.reg(off&^7))
}

func (h *HPET) reg(off uint64) uint64 {
	switch off {
	case 0x000:
		return hpetCap
	case 0x010:
		return h.s.Config
	case 0x020:
		return h.s.Status
	case 0x0F0:
		return h.count(h.clk.Now())
	}
	if i := int(off-0x100) / 0x20; off >= 0x100 && i < hpetTimers {
		t := &h.s.Timer[i]
		switch off & 0x1F {
		case 0x00:
			return t.Config | hpetFixed
		case 0x08:
			return t.Comparator
		}
	}
	return 0
}

// Write implements bus.Device.
func (h *HPET) Write(off uint64, p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clk.Now()
	reg := off &^ 7
	v := mergeLE(h.reg(reg), off&7, p)
	switch reg {
	case 0x010:
		h.configure(v, now)
		return
	case 0x020:
		h.clearStatus(mergeLE(0, off&7, p))
		return
	case 0x0F0:
		if h.s.Config&hpetOn == 0 {
			h.s.Count = v
		}
		return
	}
	i := int(reg-0x100) / 0x20
	if reg < 0x100 || i >= hpetTimers {
		return
	}
	t := &h.s.Timer[i]
	switch reg & 0x1F {
	case 0x00:
		h.drop(i)
		t.Config = v & hpetWritable
		if t.Config&hpetPeriodic == 0 {
			t.Config &^= hpetSetVal
		}
		if t.Config&hpet32 != 0 {
			t.Comparator, t.Period = uint64(uint32(t.Comparator)), uint64(uint32(t.Period))
		}
	case 0x08:
		if t.Config&hpet32 != 0 {
			v = uint64(uint32(v))
		}
		// A periodic timer takes the first write after SETVAL as its comparator, others as its period (2.3.9.2.2).
		if t.Config&(hpetPeriodic|hpetSetVal) != hpetPeriodic {
			t.Comparator = v
		}
		if t.Config&hpetPeriodic != 0 {
			t.Period = v
		}
		if off&7 == 0 || len(p) > 4 {
			t.Config &^= hpetSetVal
		}
	}
	h.schedule(i, now)
}

// configure is the general configuration register.
func (h *HPET) configure(v uint64, now int64) {
	v &= hpetOn | hpetLegacyOn
	was := h.s.Config
	for i := range h.s.Timer {
		h.drop(i)
	}
	if was&hpetOn != 0 {
		h.s.Count = h.count(now)
	}
	h.s.Config = v
	h.s.Start = now
	h.setLegacy()
	for i := range h.s.Timer {
		h.schedule(i, now)
	}
}

// drop lowers timer i's line and forgets its status, and what it owes.
func (h *HPET) drop(i int) {
	h.clearStatus(1 << i)
	h.s.Timer[i].Owed, h.s.Timer[i].Again = 0, clock.Never
}

func (h *HPET) clearStatus(bits uint64) {
	for i := range h.s.Timer {
		if bits&h.s.Status>>i&1 != 0 {
			h.s.Status &^= 1 << i
			if l := h.output(i); l != nil && !h.shared(i) {
				l.Set(false)
			}
		}
	}
}

// shared tells whether another timer holds timer i's line high.
func (h *HPET) shared(i int) bool {
	for j := range h.s.Timer {
		if j != i && h.s.Status>>j&1 != 0 && h.output(j) == h.output(i) {
			return true
		}
	}
	return false
}

// Save implements bus.Stateful.
func (h *HPET) Save(enc *gob.Encoder) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return enc.Encode(h.s)
}

// Load implements bus.Stateful.
func (h *HPET) Load(dec *gob.Decoder) error {
	var s hpetState
	if err := load(dec, "HPET", &s); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.s = s
	h.setLegacy()
	for i := range h.s.Timer {
		if l := h.output(i); l != nil && s.Status>>i&1 != 0 {
			l.Set(true)
		}
		h.alarm[i].Set(min(h.s.Timer[i].Next, h.s.Timer[i].Again))
	}
	return nil
}
