package interp

import (
	"encoding/binary"
	"unsafe"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// What the TLB's fast path leaves: misses, accesses that cross pages, devices, tracked and watched pages.

// pageFault raises #PF. It returns false, as raise does.
func (c *CPU) pageFault(va uint64, code uint32) bool {
	c.cr2 = va
	c.stats.faults++
	return c.raiseCode(x86.PFV, code)
}

// nonCanonical raises #GP(0), or #SS(0) for a stack access, which who knows the segment makes of it.
func (c *CPU) nonCanonical() bool {
	c.raiseCode(x86.GP, 0)
	c.fault.canon = true
	return false
}

// leavesCanonical tells whether the last of n bytes at va is not canonical: that comes before what the first byte's page says.
func (c *CPU) leavesCanonical(va, n uint64) bool { return c.long && !c.canonical(va+n-1) }

// A place is where an access inside one page goes.
type place struct {
	e  *tlbEntry // nil: a device, or a watched page
	pa mem.Addr
}

// translate finds where va is, for an access that stays in its page.
func (c *CPU) translate(va uint64, write bool) (p place, ok bool) {
	if !c.long {
		va &= 0xFFFFFFFF
	} else if !c.canonical(va) {
		return p, c.nonCanonical()
	}
	as := c.tlbs.now
	if !c.aligned { // Another part of the same instruction may have filled it.
		e := c.tlb.entry(va)
		if page := va &^ 0xFFF; e.write == page || !write && e.read == page {
			return place{e, e.pa&^tlbFlags | mem.Addr(va&0xFFF)}, true
		}
	}
	acc := c.tlbs.access[as]
	if write {
		acc |= mmu.Write
	}
	c.stats.walks++
	t, code, ok := c.space.Walk(c.ram, va, acc)
	if !ok {
		return p, c.pageFault(va, code)
	}
	return place{c.fill(va, as, &t), t.Phys}, true
}

// misaligned raises #AC(0) where alignment is checked (SDM vol. 3A 6.15, interrupt 17) and va is not a multiple of size.
func (c *CPU) misaligned(va, size uint64) bool {
	return c.aligned && size > 1 && va&(size-1) != 0
}

// slowLoad reads size bytes (1, 2, 4, 8), zero-extended.
func (c *CPU) slowLoad(va, size uint64) (uint64, bool) {
	var b [8]byte
	if c.misaligned(va, size) {
		return 0, c.raiseCode(x86.ACV, 0)
	}
	if va&0xFFF+size > 4096 {
		if !c.slowLoadN(va, b[:size]) {
			return 0, false
		}
		return binary.LittleEndian.Uint64(b[:]), true
	}
	p, ok := c.translate(va, false)
	if !ok {
		return 0, false
	}
	c.watch(va, size, false)
	if p.e != nil {
		return p.e.load(va&0xFFF, size), true
	}
	c.physRead(p.pa, b[:size])
	return binary.LittleEndian.Uint64(b[:]), true
}

// slowStore writes the low size bytes (1, 2, 4, 8) of v.
func (c *CPU) slowStore(va, v, size uint64) bool {
	if c.misaligned(va, size) {
		return c.raiseCode(x86.ACV, 0)
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	if va&0xFFF+size > 4096 {
		return c.slowStoreN(va, b[:size])
	}
	p, ok := c.translate(va, true)
	if !ok {
		return false
	}
	c.watch(va, size, true)
	c.write(p, va, b[:size])
	return true
}

// write puts b, inside one page, at p, and says so where writes are tracked.
func (c *CPU) write(p place, va uint64, b []byte) {
	if p.e == nil {
		c.physWrite(p.pa, b)
		return
	}
	p.e.put(va&0xFFF, b)
	if p.e.write != va&^0xFFF {
		c.ram.Written(p.pa, len(b))
		c.ownMail()
		// The page's code may be gone, and its tracking with it.
		if p.e.read == va&^0xFFF && !c.ram.Tracked(p.pa) {
			c.retry(p.e, va)
		}
	}
}

// retry gives e, whose page is tracked no more, write permission: translate has just found that the store may be done.
func (c *CPU) retry(e *tlbEntry, va uint64) {
	e.write = va &^ 0xFFF
	if c.ram.Tracked(e.pa &^ tlbFlags) {
		e.write = invalidTag(va >> 12 & tlbMask)
	}
}

// slowLoadN fills p from va.
func (c *CPU) slowLoadN(va uint64, p []byte) bool {
	if c.leavesCanonical(va, uint64(len(p))) {
		return c.nonCanonical()
	}
	for len(p) > 0 {
		n := min(4096-va&0xFFF, uint64(len(p)))
		pl, ok := c.translate(va, false)
		if !ok {
			return false
		}
		c.watch(va, n, false)
		if pl.e != nil {
			copy(p[:n], pl.e.bytes(va&0xFFF, n))
		} else {
			c.physRead(pl.pa, p[:n])
		}
		p, va = p[n:], va+n
	}
	return true
}

// slowStoreN writes p at va, all of it or (a fault) nothing.
func (c *CPU) slowStoreN(va uint64, p []byte) bool {
	if !c.probeWrite(va, uint64(len(p))) {
		return false
	}
	for len(p) > 0 {
		n := min(4096-va&0xFFF, uint64(len(p)))
		pl, ok := c.translate(va, true)
		if !ok {
			return false
		}
		c.watch(va, n, true)
		c.write(pl, va, p[:n])
		p, va = p[n:], va+n
	}
	return true
}

// probeWrite raises what a store of n bytes at va would raise.
func (c *CPU) probeWrite(va, n uint64) bool {
	if c.leavesCanonical(va, n) {
		return c.nonCanonical()
	}
	for {
		if _, ok := c.translate(va, true); !ok {
			return false
		}
		k := 4096 - va&0xFFF
		if n <= k {
			return true
		}
		va, n = va+k, n-k
	}
}

// slowRMW gives the host address of the size bytes at va for an atomic read-modify-write, after which the caller reports the write to
// c.ram.Written and calls ownMail. p is nil, with ok, where there is none: a device, a watched page, or an access that crosses pages; then
// the caller holds c.vm.split over a load and a store.
func (c *CPU) slowRMW(va, size uint64) (p unsafe.Pointer, pa mem.Addr, ok bool) {
	if c.misaligned(va, size) {
		return nil, 0, c.raiseCode(x86.ACV, 0)
	}
	if va&0xFFF+size > 4096 {
		return nil, 0, c.probeWrite(va, size)
	}
	pl, ok := c.translate(va, true)
	if !ok || pl.e == nil {
		return nil, 0, ok
	}
	return unsafe.Pointer(pl.e.at8(va & 0xFFF)), pl.pa, true
}

// physRead reads inside one page: a device, or RAM that is being watched.
func (c *CPU) physRead(pa mem.Addr, p []byte) {
	if c.ram.ReadAt(p, pa) == nil {
		return
	}
	c.stats.mmio++
	c.park()
	for len(p) > 0 { // Devices see 1, 2, 4 or 8 bytes.
		n := chunk(len(p))
		c.io.ReadMMIO(pa, p[:n])
		p, pa = p[n:], pa+mem.Addr(n)
	}
	c.unpark()
}

// physWrite writes inside one page: a device, or RAM that is being watched.
func (c *CPU) physWrite(pa mem.Addr, p []byte) {
	if c.ram.WriteAt(p, pa) == nil {
		return
	}
	c.stats.mmio++
	c.park()
	for len(p) > 0 {
		n := chunk(len(p))
		c.io.WriteMMIO(pa, p[:n])
		p, pa = p[n:], pa+mem.Addr(n)
	}
	c.unpark()
	c.checkPending()
}

func chunk(n int) int {
	for _, k := range [...]int{8, 4, 2} {
		if n >= k {
			return k
		}
	}
	return 1
}

// load is the size bytes at off, in one access where size is 1, 2, 4 or 8.
func (e *tlbEntry) load(off, size uint64) uint64 {
	switch size {
	case 1:
		return uint64(*e.at8(off))
	case 2:
		return uint64(*e.at16(off))
	case 4:
		return uint64(*e.at32(off))
	}
	return *e.at64(off)
}

// put writes b at off, in one access where it is 1, 2, 4 or 8 bytes long.
func (e *tlbEntry) put(off uint64, b []byte) {
	switch len(b) {
	case 1:
		*e.at8(off) = b[0]
	case 2:
		*e.at16(off) = binary.LittleEndian.Uint16(b)
	case 4:
		*e.at32(off) = binary.LittleEndian.Uint32(b)
	case 8:
		*e.at64(off) = binary.LittleEndian.Uint64(b)
	default:
		copy(e.bytes(off, uint64(len(b))), b)
	}
}

// As the processor itself: accesses to descriptor tables and the TSS, which are a supervisor's at any CPL.

// sysLoad reads size bytes (1, 2, 4, 8).
func (c *CPU) sysLoad(va uint64, size int) (uint64, bool) {
	t, now, al := c.tlb, c.tlbs.now, c.aligned
	c.tlbs.now, c.aligned = asKernel, false
	c.tlb = &c.tlbs.cur.banks[asKernel].tlb
	v, ok := c.load(va, uint64(size))
	c.tlb, c.tlbs.now, c.aligned = t, now, al
	return v, ok
}

// sysStore writes the low size bytes (1, 2, 4, 8) of v.
func (c *CPU) sysStore(va, v uint64, size int) bool {
	t, now, al := c.tlb, c.tlbs.now, c.aligned
	c.tlbs.now, c.aligned = asKernel, false
	c.tlb = &c.tlbs.cur.banks[asKernel].tlb
	ok := c.store(va, v, uint64(size))
	c.tlb, c.tlbs.now, c.aligned = t, now, al
	return ok
}
