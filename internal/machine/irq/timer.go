package irq

import (
	"math"
	"math/bits"

	"vitrine.dev/vitrine/internal/machine/clock"
)

// Modes of the timer, bits 17 and 18 of its LVT entry.
const (
	timerOneShot  = 0
	timerPeriodic = 1
	timerDeadline = 2
)

// timer counts the LAPIC's bus clock, 1 GHz: a tick before division is a nanosecond, as CPUID leaf 0x15's crystal says.
// It is guarded by its LAPIC's mutex.
type timer struct {
	alarm *clock.Timer
	tsc   func() uint64
	tscHz uint64

	initial   uint32
	divideReg uint32
	divide    int64
	expires   int64  // machine time; clock.Never when it does not count
	deadline  uint64 // in TSC ticks; 0 when disarmed
}

func (t *timer) reset() {
	t.initial, t.divideReg, t.divide = 0, 0, 2
	t.stop()
}

func (t *timer) stop() {
	t.expires, t.deadline = clock.Never, 0
	t.alarm.Stop()
}

// period is the time that initial counts.
func (t *timer) period() int64 { return int64(t.initial) * t.divide }

// start counts from initial; 0 stops.
func (t *timer) start(now int64) {
	t.expires = clock.Never
	if t.initial != 0 {
		t.expires = now + t.period()
	}
	t.alarm.Set(t.expires)
}

// startDeadline arms for deadline.
func (t *timer) startDeadline(now int64) {
	t.expires = clock.Never
	if t.deadline != 0 {
		t.expires = now + t.untilDeadline()
	}
	t.alarm.Set(t.expires)
}

// untilDeadline is the time to the deadline in nanoseconds, rounded up, at most about a hundred years.
func (t *timer) untilDeadline() int64 {
	tsc := t.tsc()
	if t.deadline <= tsc {
		return 0
	}
	hi, lo := bits.Mul64(t.deadline-tsc, 1_000_000_000)
	if hi >= t.tscHz {
		return math.MaxInt64 / 4
	}
	ns, rem := bits.Div64(hi, lo, t.tscHz)
	if rem != 0 {
		ns++
	}
	return int64(min(ns, math.MaxInt64/4))
}

// current is the current-count register.
func (t *timer) current(now int64, mode uint32) uint32 {
	if t.expires == clock.Never || mode >= timerDeadline {
		return 0
	}
	left := t.expires - now
	if left <= 0 && mode == timerPeriodic {
		left = t.period() + left%t.period()
	}
	return uint32(max(left, 0) / t.divide)
}

// setDivide writes the divide configuration: 2, 4, 8 … 128, 1 by bits 3, 1 and 0. The count goes on from where it is.
func (t *timer) setDivide(v uint32, now int64, mode uint32) {
	count := t.current(now, mode)
	t.divideReg = v & 0xB
	t.divide = 1 << (((t.divideReg>>1&4 | t.divideReg&3) + 1) & 7)
	if t.expires != clock.Never && mode < timerDeadline {
		t.expires = now + int64(count)*t.divide
		t.alarm.Set(t.expires)
	}
}

func (l *LAPIC) timerMode() uint32 { return l.lvt[0] >> 17 & 3 }

// timerFired runs on the clock's goroutine.
func (l *LAPIC) timerFired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, now := &l.timer, l.clk.Now()
	if t.expires > now {
		if t.expires != clock.Never {
			t.alarm.Set(t.expires)
		}
		return // it was moved meanwhile
	}
	l.expire(now)
}

// setDeadline arms the timer. A deadline that has passed already interrupts at once: no host thread has to wake up for it.
func (l *LAPIC) setDeadline(tsc uint64) {
	t, now := &l.timer, l.clk.Now()
	t.deadline = tsc
	if tsc != 0 && t.untilDeadline() == 0 {
		t.alarm.Stop()
		l.expire(now)
		return
	}
	t.startDeadline(now)
}

// expire is what the timer does when its time has come.
func (l *LAPIC) expire(now int64) {
	t := &l.timer
	switch l.timerMode() {
	case timerDeadline:
		if t.untilDeadline() > 0 { // the TSC runs a little slower than the clock, or was written
			t.startDeadline(now)
			return
		}
		t.expires, t.deadline = clock.Never, 0
	case timerPeriodic:
		// Periods that were missed (the host stopped us) are not made up for.
		period := max(t.period(), clock.MinPeriod)
		t.expires += (now-t.expires)/period*period + period
		t.alarm.Set(t.expires)
	default:
		t.expires = clock.Never
	}
	if l.lvt[0]&lvtMasked == 0 {
		l.accept(uint8(l.lvt[0]), false)
	}
}

type timerState struct {
	Initial, DivideReg uint32
	Expires            int64
	Deadline           uint64
}

func (t *timer) save() timerState { return timerState{t.initial, t.divideReg, t.expires, t.deadline} }

func (t *timer) load(s timerState, mode uint32, now int64) {
	t.stop()
	t.setDivide(s.DivideReg, now, mode)
	t.initial, t.expires, t.deadline = s.Initial, s.Expires, s.Deadline
	switch {
	case mode == timerDeadline:
		t.startDeadline(now)
	case t.initial == 0:
		t.expires = clock.Never
	default:
		t.alarm.Set(t.expires)
	}
}
