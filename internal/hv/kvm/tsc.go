package kvm

import (
	"errors"
	"fmt"
	"time"
)

// rdtsc reads the host's time stamp counter.
func rdtsc() uint64

// measureTSC is the rate of the host's counter against its monotonic clock, over 20 ms.
func measureTSC() uint64 {
	t0, c0 := time.Now(), rdtsc()
	time.Sleep(20 * time.Millisecond)
	t1, c1 := time.Now(), rdtsc()
	return uint64(float64(c1-c0) / t1.Sub(t0).Seconds())
}

// TSC is the guest's time stamp counter as this CPU reads it, for the LAPIC's deadline timer. It may be called from any goroutine.
func (v *VCPU) TSC() uint64 { return rdtsc() + v.offset.Load() }

// learnOffset finds what lies between the host's counter and the guest's: as KVM says since Linux 5.16, else as it looks.
func (v *VCPU) learnOffset() error {
	offset, err := tscOffset(v.fd)
	if err != nil {
		before := rdtsc()
		tsc, err := v.readMSR(msrTSC)
		if err != nil {
			return err
		}
		offset = tsc - (before + (rdtsc()-before)/2)
	}
	v.offset.Store(offset)
	return nil
}

// tolerance is how far two rates may differ and be the same, a part of so many: NTP slews a clock by up to 500 ppm, and Linux corrects 250 ppm of
// the counter's rate without a word.
const tolerance = 4000

// setRate gives the guest's counter a rate, before the CPU is prepared; 0 is the host's.
func (v *VCPU) setRate(hz uint64) error {
	now := v.tscHz
	if hz == 0 || max(hz, now)-min(hz, now) <= now/tolerance {
		return nil
	}
	err := errors.New("and it cannot be scaled here")
	if v.vm.chip && !v.prepared && v.vm.b.has(capTSCControl) != 0 {
		_, err = ioctl(v.fd, setTSCKHz, uintptr(hz/1000))
	}
	if err != nil {
		return v.wrap(fmt.Sprintf("the state's time stamp counter runs at %d MHz, this one at %d MHz", hz/1e6, now/1e6), err)
	}
	v.tscHz = hz
	return nil
}
