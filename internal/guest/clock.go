package guest

import "time"

// timekeeper reads the kernel's clock (include/linux/timekeeper_internal.h).
func (k *Kernel) timekeeper() (object, bool) {
	// Without a type of its own up to v6.12: a sequence counter, padded to 8 bytes, and the timekeeper. Then tk_data, and since v6.17 one a clock.
	off := uint64(8)
	if f, ok := k.structure("tk_data").field("timekeeper"); ok {
		off = f.Off
	}
	for _, name := range []string{"tk_core", "timekeeper_data"} {
		at := k.address(name)
		if at == 0 {
			continue
		}
		if t, err := k.load("timekeeper", at+off); err == nil && plausible(t) {
			return t, true
		}
	}
	return object{}, false
}

// plausible tells whether a timekeeper's time is one: between 2001 and 2100, or just after the epoch, for want of a clock.
func plausible(t object) bool {
	s := t.uint("xtime_sec")
	return s < 4102444800 && t.uint("tkr_mono.shift") < 64 && t.int("offs_boot") >= 0
}

// BootTime is when the guest booted, by its own clock; zero where that cannot be read.
func (k *Kernel) BootTime() time.Time {
	t, ok := k.timekeeper()
	if !ok {
		return time.Time{}
	}
	return time.Unix(0, t.int("offs_real")-t.int("offs_boot")).UTC()
}

// Uptime is how long the guest has been up, sleep included, as of its last tick; 0 where that cannot be read.
func (k *Kernel) Uptime() time.Duration {
	t, ok := k.timekeeper()
	if !ok {
		return 0
	}
	return time.Duration(t.int("tkr_mono.base") + int64(t.uint("tkr_mono.xtime_nsec")>>t.uint("tkr_mono.shift")) + t.int("offs_boot"))
}
