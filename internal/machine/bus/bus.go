// Package bus routes an address to the device that claims it.
package bus

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// A Device answers reads and writes inside the range it is mapped at. Both may be called from several CPUs at once: devices lock
// themselves. len(p) is what the guest chose: 1, 2, 4 or 8, and off+len(p) may pass the range's end.
type Device interface {
	// Read fills p from offset off of the range.
	Read(off uint64, p []byte)
	// Write takes p at offset off of the range.
	Write(off uint64, p []byte)
}

type route struct {
	base, size uint64
	dev        Device
}

// A Bus is the port space or the MMIO space. Its zero value is an empty bus. Reads of unclaimed addresses give all ones, writes are dropped.
type Bus struct {
	mu     sync.Mutex // serialises Map and Unmap
	routes atomic.Pointer[[]route]
	misses atomic.Uint64
}

// Map gives [base, base+size) to dev.
func (b *Bus) Map(base, size uint64, dev Device) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.table()
	if size == 0 || base+size-1 < base {
		return fmt.Errorf("bus: range [%#x, +%#x) is empty or wraps", base, size)
	}
	i := sort.Search(len(old), func(i int) bool { return old[i].base+old[i].size > base })
	if i < len(old) && old[i].base < base+size {
		return fmt.Errorf("bus: range [%#x, +%#x) overlaps [%#x, +%#x)", base, size, old[i].base, old[i].size)
	}
	rs := slices.Insert(slices.Clone(old), i, route{base, size, dev})
	b.routes.Store(&rs)
	return nil
}

// Unmap frees the range that starts at base.
func (b *Bus) Unmap(base uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rs := slices.DeleteFunc(slices.Clone(b.table()), func(r route) bool { return r.base == base })
	b.routes.Store(&rs)
}

// Read serves a CPU's read of p at addr.
func (b *Bus) Read(addr uint64, p []byte) {
	if r := b.find(addr); r != nil {
		r.dev.Read(addr-r.base, p)
		return
	}
	b.misses.Add(1)
	for i := range p {
		p[i] = 0xFF
	}
}

// Write serves a CPU's write of p at addr.
func (b *Bus) Write(addr uint64, p []byte) {
	if r := b.find(addr); r != nil {
		r.dev.Write(addr-r.base, p)
		return
	}
	b.misses.Add(1)
}

// Misses counts the accesses that no device claimed.
func (b *Bus) Misses() uint64 { return b.misses.Load() }

func (b *Bus) table() []route {
	if t := b.routes.Load(); t != nil {
		return *t
	}
	return nil
}

func (b *Bus) find(addr uint64) *route {
	t := b.table()
	i := sort.Search(len(t), func(i int) bool { return t[i].base+t[i].size > addr })
	if i < len(t) && t[i].base <= addr {
		return &t[i]
	}
	return nil
}
