package interp

// The invariant of this file: a target's host address and the bytes asked of it are inside one page of guest RAM.

import (
	"unsafe"

	"vitrine.dev/vitrine/internal/mem"
)

// A target is RAM inside one page that a string instruction may write.
type target struct {
	host unsafe.Pointer // nil: a device
	pa   mem.Addr       // where the write must be reported, if slow is set
	slow bool
}

// target finds where dst is in the host's memory. ok is false for a fault.
func (c *CPU) target(dst uint64) (t target, ok bool) {
	e := c.tlb.entry(dst)
	if off := dst - e.write; off < pageSize {
		return target{host: unsafe.Pointer(e.at8(off))}, true
	}
	p, pa, ok := c.slowRMW(dst, 1)
	return target{p, pa, true}, ok
}

func (t *target) bytes(n uint64) []byte { return unsafe.Slice((*byte)(t.host), n) }

// wrote reports that n bytes were written.
func (t *target) wrote(c *CPU, n uint64) {
	if t.slow {
		c.ram.Written(t.pa, int(n))
		c.ownMail()
	}
}

// fill repeats the low size bytes of v over n bytes.
func (t *target) fill(n, v, size uint64) {
	for size < 8 {
		v = v&sizeMask(int(size)) | v<<(8*size)
		size *= 2
	}
	p := t.bytes(n)
	if v == 0 {
		clear(p)
		return
	}
	for ; len(p) >= 8; p = p[8:] {
		*(*uint64)(unsafe.Pointer(&p[0])) = v
	}
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
}
