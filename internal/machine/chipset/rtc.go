package chipset

import (
	"encoding/gob"
	"sync"
	"time"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
)

// CMOS addresses of the MC146818 and of what a PC's firmware keeps in its RAM.
const (
	rtcSecond  = 0x00
	rtcAlarm   = 0x01 // alarms are at odd addresses after their registers
	rtcMinute  = 0x02
	rtcHour    = 0x04
	rtcWeekday = 0x06
	rtcDay     = 0x07
	rtcMonth   = 0x08
	rtcYear    = 0x09
	rtcA       = 0x0A
	rtcB       = 0x0B
	rtcC       = 0x0C
	rtcD       = 0x0D
	rtcCentury = 0x32

	rtcBSet    = 1 << 7
	rtcBBinary = 1 << 2
	rtcB24     = 1 << 1

	// Flags of register C; the enables in register B have the same places.
	rtcPeriodic = 1 << 6
	rtcAlarmed  = 1 << 5
	rtcUpdated  = 1 << 4
	rtcIRQ      = 1 << 7
)

// An RTC is an MC146818 with 128 bytes of CMOS RAM, in UTC. It follows the host's wall clock, shifted by what the guest set;
// periodic interrupts follow the machine's.
type RTC struct {
	clk      *clock.Clock
	wall     func() time.Time
	irq      bus.Line
	update   *clock.Timer // each second while the guest wants update or alarm interrupts
	periodic *clock.Timer

	mu sync.Mutex
	s  rtcState
}

type rtcState struct {
	Index      uint8
	RAM        [128]uint8
	Shift      time.Duration // guest minus host
	Flags      uint8         // of register C
	LastSecond int64         // when UF was looked at last
	LastPeriod int64
	Next       int64 // of the periodic timer
}

// NewRTC makes one; wall is the host's time, memory the guest's RAM in bytes, cpus the number of CPUs.
func NewRTC(clk *clock.Clock, wall func() time.Time, irq bus.Line, memory uint64, cpus int) *RTC {
	r := &RTC{clk: clk, wall: wall, irq: irq}
	r.update, r.periodic = clk.NewTimer(r.updated), clk.NewTimer(r.ticked)
	r.s.Next = clock.Never
	c := &r.s.RAM
	c[rtcA], c[rtcB], c[rtcD] = 0x26, rtcB24, 0x80
	c[0x14] = 0x02 // equipment: FPU
	put16 := func(at int, v uint64) { c[at], c[at+1] = uint8(v), uint8(v>>8) }
	put16(0x15, 640)
	extended := min((memory-min(memory, 1<<20))>>10, 0xFFFF)
	put16(0x17, extended)
	put16(0x30, extended)
	put16(0x34, min((min(memory, 3<<30)-min(memory, 16<<20))>>16, 0xFFFF))
	if memory > 3<<30 {
		high := (memory - 3<<30) >> 16
		put16(0x5B, high)
		c[0x5D] = uint8(high >> 16)
	}
	c[0x5F] = uint8(cpus - 1)
	r.s.LastSecond = r.now().Unix()
	return r
}

func (r *RTC) now() time.Time { return r.wall().Add(r.s.Shift).UTC() }

// Read implements bus.Device for ports 0x70 and 0x71.
func (r *RTC) Read(off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		p[i] = 0xFF
		if off+uint64(i) == 1 {
			p[i] = r.read(r.s.Index)
		}
	}
}

func (r *RTC) read(i uint8) uint8 {
	if isTime(i) && r.s.RAM[rtcB]&rtcBSet == 0 {
		r.latch()
	}
	switch i {
	case rtcA:
		v := r.s.RAM[rtcA] &^ 0x80
		// An update is under way in the last 244 us of each second.
		if r.s.RAM[rtcB]&rtcBSet == 0 && r.now().Nanosecond() >= 1e9-244_000 {
			v |= 0x80
		}
		return v
	case rtcC:
		r.collect()
		v := r.s.Flags
		r.s.Flags = 0
		r.irq.Set(false)
		return v
	}
	return r.s.RAM[i]
}

func isTime(i uint8) bool {
	return i <= rtcYear && (i&1 == 0 || i >= rtcDay) || i == rtcCentury
}

// latch puts the time into the registers.
func (r *RTC) latch() {
	t, c := r.now(), &r.s.RAM
	hour, pm := t.Hour(), uint8(0)
	if c[rtcB]&rtcB24 == 0 {
		if hour >= 12 {
			pm = 0x80
		}
		hour = (hour+11)%12 + 1
	}
	c[rtcSecond], c[rtcMinute], c[rtcHour] = r.encode(t.Second()), r.encode(t.Minute()), r.encode(hour)|pm
	c[rtcWeekday], c[rtcDay], c[rtcMonth] = r.encode(int(t.Weekday())+1), r.encode(t.Day()), r.encode(int(t.Month()))
	c[rtcYear], c[rtcCentury] = r.encode(t.Year()%100), toBCD8(t.Year()/100)
}

// commit takes the time from the registers.
func (r *RTC) commit() {
	c := &r.s.RAM
	t := time.Date(fromBCD8(c[rtcCentury])*100+r.decode(c[rtcYear]), time.Month(r.decode(c[rtcMonth])), r.decode(c[rtcDay]),
		r.hour(c[rtcHour]), r.decode(c[rtcMinute]), r.decode(c[rtcSecond]), 0, time.UTC)
	r.s.Shift = t.Sub(r.wall())
	r.s.LastSecond = r.now().Unix()
}

func (r *RTC) hour(v uint8) int {
	if r.s.RAM[rtcB]&rtcB24 != 0 {
		return r.decode(v)
	}
	h := r.decode(v&0x7F) % 12
	if v&0x80 != 0 {
		h += 12
	}
	return h
}

func (r *RTC) encode(v int) uint8 {
	if r.s.RAM[rtcB]&rtcBBinary != 0 {
		return uint8(v)
	}
	return toBCD8(v)
}

func (r *RTC) decode(v uint8) int {
	if r.s.RAM[rtcB]&rtcBBinary != 0 {
		return int(v)
	}
	return fromBCD8(v)
}

func toBCD8(v int) uint8   { return uint8(v/10%10<<4 | v%10) }
func fromBCD8(v uint8) int { return int(v>>4)*10 + int(v&15) }

// Write implements bus.Device for ports 0x70 and 0x71.
func (r *RTC) Write(off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, v := range p {
		switch off + uint64(i) {
		case 0:
			r.s.Index = v & 0x7F // bit 7 masks NMIs on a PC; here it does not
		case 1:
			r.write(r.s.Index, v)
		}
	}
}

func (r *RTC) write(i, v uint8) {
	c := &r.s.RAM
	switch {
	case i == rtcC, i == rtcD:
	case isTime(i) && c[rtcB]&rtcBSet == 0:
		r.latch()
		c[i] = v
		r.commit()
	case i == rtcA:
		c[rtcA] = v & 0x7F
		r.schedule()
	case i == rtcB:
		was := c[rtcB]
		if v&rtcBSet != 0 && was&rtcBSet == 0 {
			r.latch()
		}
		if v&rtcBSet != 0 {
			v &^= rtcUpdated
		}
		c[rtcB] = v
		if v&rtcBSet == 0 && was&rtcBSet != 0 {
			r.commit()
		}
		r.schedule()
		r.raise()
	default:
		c[i] = v
	}
}

// period is the periodic interrupt's, in nanoseconds; 0 when it is off.
func (r *RTC) period() int64 {
	rate := r.s.RAM[rtcA] & 15
	switch {
	case rate == 0:
		return 0
	case rate <= 2: // as 8 and 9, with a 32,768 Hz crystal
		rate += 7
	}
	return 1e9 << (rate - 1) / 32768
}

// collect sets the flags of what has happened since it was called last, also where no interrupt is wanted.
func (r *RTC) collect() {
	if r.s.RAM[rtcB]&rtcBSet == 0 {
		if s := r.now().Unix(); s != r.s.LastSecond {
			r.s.LastSecond = s
			r.s.Flags |= rtcUpdated
			r.latch()
			if r.alarm() {
				r.s.Flags |= rtcAlarmed
			}
		}
	}
	if p := r.period(); p != 0 {
		if n := r.clk.Now() / p; n != r.s.LastPeriod {
			r.s.LastPeriod = n
			r.s.Flags |= rtcPeriodic
		}
	}
	r.raise()
}

// alarm compares the alarm registers with the latched time; 0xC0 and more matches all.
func (r *RTC) alarm() bool {
	for i := rtcSecond; i <= rtcHour; i += 2 {
		if a := r.s.RAM[i+rtcAlarm]; a < 0xC0 && a != r.s.RAM[i] {
			return false
		}
	}
	return true
}

func (r *RTC) raise() {
	if r.s.Flags&r.s.RAM[rtcB]&(rtcPeriodic|rtcAlarmed|rtcUpdated) != 0 {
		r.s.Flags |= rtcIRQ
		r.irq.Set(true)
		return
	}
	r.s.Flags &^= rtcIRQ
	r.irq.Set(false)
}

// schedule arms the timers for the interrupts that are wanted.
func (r *RTC) schedule() {
	b, now := r.s.RAM[rtcB], r.clk.Now()
	if b&rtcBSet == 0 && b&(rtcAlarmed|rtcUpdated) != 0 {
		r.update.Set(now + 1e9 - int64(r.now().Nanosecond()))
	} else {
		r.update.Stop()
	}
	r.s.Next = clock.Never
	if p := r.period(); p != 0 && b&rtcPeriodic != 0 {
		r.s.Next = (now/p + 1) * p
	}
	r.periodic.Set(r.s.Next)
}

// updated runs on the clock's goroutine, as ticked does.
func (r *RTC) updated() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
	r.schedule()
}

func (r *RTC) ticked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
	r.schedule()
}

// Save implements bus.Stateful.
func (r *RTC) Save(enc *gob.Encoder) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return enc.Encode(r.s)
}

// Load implements bus.Stateful.
func (r *RTC) Load(dec *gob.Decoder) error {
	var s rtcState
	if err := load(dec, "RTC", &s); err != nil {
		return err
	}
	s.Index &= 0x7F
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s = s
	r.raise()
	r.schedule()
	return nil
}
