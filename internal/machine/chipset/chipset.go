// Package chipset is the small devices of a PC's board: timers, clock, keyboard controller, serial ports, ACPI power management,
// fw_cfg and the ports by which a guest ends.
//
// Each device locks itself. Interrupt lines and timers may be set with its lock held; functions that end the machine too, so those
// must not block or call back.
package chipset

import (
	"encoding/gob"
	"fmt"
	"math/bits"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
)

// scale is n*num/den without overflow in between, for n ≥ 0 and a result below 1<<63.
func scale(n int64, num, den uint64) int64 {
	hi, lo := bits.Mul64(uint64(max(n, 0)), num)
	q, _ := bits.Div64(hi%den, lo, den)
	return int64(q)
}

// scaleUp is scale, rounded up.
func scaleUp(n int64, num, den uint64) int64 {
	hi, lo := bits.Mul64(uint64(max(n, 0)), num)
	lo, c := bits.Add64(lo, den-1, 0)
	q, _ := bits.Div64((hi+c)%den, lo, den)
	return int64(q)
}

// putLE answers a read of p at byte off of the little-endian register v.
func putLE(p []byte, off uint64, v uint64) {
	v >>= 8 * off
	for i := range p {
		p[i] = byte(v)
		v >>= 8
	}
}

// mergeLE is register v after p is written at its byte off.
func mergeLE(v uint64, off uint64, p []byte) uint64 {
	for i, b := range p {
		sh := 8 * (off + uint64(i))
		if sh >= 64 {
			break
		}
		v = v&^(0xFF<<sh) | uint64(b)<<sh
	}
	return v
}

// maxOwed bounds the periodic interrupts that a timer makes up for: a second's worth for Linux.
const maxOwed = 250

// owed counts periodic interrupts that a guest has not seen: its CPU, or our timer, did not get to run in time. Guests count time by them,
// and Linux panics at boot where it sees fewer than 5 within 10 periods (timer_irq_works).
type owed int

// raise makes an edge for each of n periods that have passed: one now, the others when it is called again, after the time that it returns:
// clock.Never when nothing is owed, or when all that may be owed is and the guest takes nothing.
func (o *owed) raise(l bus.Line, n int64) (again int64) {
	*o = owed(min(int64(*o)+min(n, maxOwed), maxOwed))
	seen := true
	if r, ok := l.(interface{ Raise() bool }); ok {
		seen = r.Raise()
	} else {
		l.Set(true)
	}
	switch {
	case !seen && *o == maxOwed:
		return clock.Never
	case !seen:
		return 4 * clock.MinPeriod
	}
	if *o--; *o > 0 {
		return clock.MinPeriod
	}
	return clock.Never
}

// after is now+d, or clock.Never.
func after(now, d int64) int64 {
	if d == clock.Never {
		return d
	}
	return now + d
}

func load(dec *gob.Decoder, name string, state any) error {
	if err := dec.Decode(state); err != nil {
		return fmt.Errorf("chipset: %s: %w", name, err)
	}
	return nil
}
