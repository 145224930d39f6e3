package interp

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// rdtsc reads the host's time-stamp counter.
func rdtsc() uint64

// A tscClock is a CPU's time-stamp counter: the host's since the VM was made, at a rate in whole MHz, moved.
type tscClock struct {
	base, mul uint64
	offset    atomic.Uint64
}

// TSC is the guest's time-stamp counter now. It may be called from any goroutine.
func (c *CPU) TSC() uint64 {
	hi, lo := bits.Mul64(rdtsc()-c.tsc.base, c.tsc.mul)
	return hi<<1 + lo>>63 + c.tsc.offset.Load()
}

// TSCHz is the rate of guests' time-stamp counters: the host's, rounded to 1 MHz, for with a crystal of 1 GHz finer ratios overflow the 32 bits in which
// native_calibrate_tsc() multiplies (Linux, arch/x86/kernel/tsc.c). Guests count at exactly this rate.
func TSCHz() uint64 { return (hostHz() + 5e5) / 1e6 * 1e6 }

// tscMul is the guest's rate by the host's, times 2^63.
func tscMul() uint64 {
	mul, _ := bits.Div64(TSCHz()>>1, TSCHz()<<63, hostHz())
	return mul
}

// hostHz is the rate of the host's counter, measured against its monotonic clock over 20 ms.
var hostHz = sync.OnceValue(func() uint64 {
	t0, c0 := bothClocks()
	time.Sleep(20 * time.Millisecond)
	t1, c1 := bothClocks()
	return uint64(float64(c1-c0) / t1.Sub(t0).Seconds())
})

// bothClocks reads both at the same moment: the closest of some attempts.
func bothClocks() (t time.Time, tsc uint64) {
	best := ^uint64(0)
	for range 10 {
		a := rdtsc()
		now := time.Now()
		b := rdtsc()
		if b-a < best {
			best, t, tsc = b-a, now, a+(b-a)/2
		}
	}
	return t, tsc
}
