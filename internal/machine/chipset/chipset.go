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

func load(dec *gob.Decoder, name string, state any) error {
	if err := dec.Decode(state); err != nil {
		return fmt.Errorf("chipset: %s: %w", name, err)
	}
	return nil
}
