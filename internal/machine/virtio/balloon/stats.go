package balloon

import (
	"sync/atomic"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/mem"
)

// names are the statistics that a driver tells, by their tags (virtio 1.2 section 5.5.6.4); memory is in bytes.
var names = [...]string{
	"guest_swap_in", "guest_swap_out", "guest_major_faults", "guest_minor_faults", "guest_free_bytes", "guest_total_bytes",
	"guest_available_bytes", "guest_cache_bytes", "guest_hugetlb_allocations", "guest_hugetlb_failures",
}

const (
	statistics = len(names)
	statSize   = 10 // a tag of 2 bytes, a value of 8
)

// counters are the bytes that were given back to the host, and the requests that named what is not RAM.
type counters struct{ inflated, reported, refused atomic.Uint64 }

// discard gives [a, a+n) back to the host.
func (d *Device) discard(ram *mem.Memory, a mem.Addr, n uint64, count *atomic.Uint64) {
	given, err := ram.Discard(a, n)
	if err != nil {
		d.refused.Add(1)
		return
	}
	count.Add(given)
}

// takeStats reads what the driver tells. It returns true where the chain is to go back, so that the driver tells anew.
func (d *Device) takeStats(c *virtio.Chain) (again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if again, d.asked = d.asked, false; again {
		return true // what this chain holds is old
	}
	var p [statSize]byte
	for range 4 * statistics { // there may be tags that we do not know
		if n, _ := c.Read(p[:]); n < statSize {
			break
		}
		if tag := int(le.Uint16(p[:])); tag < statistics {
			d.stats[tag] = le.Uint64(p[2:])
		}
	}
	close(d.fresh)
	d.fresh = make(chan struct{})
	return false
}

// Refresh asks the driver for its statistics and waits for them, no longer than limit.
func (d *Device) Refresh(limit time.Duration) {
	d.mu.Lock()
	s, fresh := d.s, d.fresh
	if s == nil || !s.Has(FeatureStats) {
		d.mu.Unlock()
		return
	}
	d.asked = true
	d.mu.Unlock()
	s.Queues[statsQueue].Wake()
	select {
	case <-fresh:
	case <-time.After(limit):
	}
}

// Counters calls fn with the balloon's size, what was given back to the host so far, and the driver's last statistics, where it has told some.
func (d *Device) Counters(fn func(name string, value uint64)) {
	d.mu.Lock()
	target, actual, stats := d.target, d.actual, d.stats
	d.mu.Unlock()
	fn("balloon_target_bytes", uint64(target)*mem.PageSize)
	fn("balloon_bytes", uint64(actual)*mem.PageSize)
	fn("inflated_bytes", d.inflated.Load())
	fn("reported_free_bytes", d.reported.Load())
	fn("refused", d.refused.Load())
	if stats == [statistics]uint64{} {
		return
	}
	for i, v := range stats {
		fn(names[i], v)
	}
}
