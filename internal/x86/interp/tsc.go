package interp

import (
	"sync"
	"time"
)

// rdtsc reads the host's time-stamp counter.
func rdtsc() uint64

// A tscClock is a CPU's time-stamp counter: the host's, moved.
type tscClock struct {
	offset uint64
}

// TSC is the guest's time-stamp counter now. It may be called from any goroutine that does not race with the guest setting it.
func (c *CPU) TSC() uint64 { return rdtsc() + c.tsc.offset }

// TSCHz is the rate of the time-stamp counter: the host's, measured once against its monotonic clock over 20 ms and rounded to
// 10 kHz, which is well inside of what guests correct by themselves.
var TSCHz = sync.OnceValue(func() uint64 {
	t0, c0 := time.Now(), rdtsc()
	time.Sleep(20 * time.Millisecond)
	t1, c1 := time.Now(), rdtsc()
	hz := float64(c1-c0) / t1.Sub(t0).Seconds()
	return uint64(hz/1e4+0.5) * 1e4
})
