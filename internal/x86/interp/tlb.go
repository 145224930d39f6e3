package interp

import (
	"unsafe"

	"vitrine.dev/vitrine/internal/mem"
)

const (
	tlbBits  = 10
	tlbSize  = 1 << tlbBits
	tlbMask  = tlbSize - 1
	pageSize = mem.PageSize
)

// A tlbEntry maps one 4 KiB page of linear addresses to host memory. An access of n bytes at va hits where va-tag <= pageSize-n: one
// comparison settles the page and that the access stays inside of it.
type tlbEntry struct {
	read  uint64 // the page's linear address where reads are allowed, else invalidTag
	write uint64 // likewise for writes: D is set, the page holds no decoded code, its writes are not being logged
	page  unsafe.Pointer
	pa    mem.Addr // the page's physical address; low bits: see tlbset.go
}

// A tlb is direct mapped by the low bits of the page number.
type tlb struct {
	e [tlbSize]tlbEntry
}

// invalidTag is a page that selects another entry than i: no address that selects i matches it.
func invalidTag(i uint64) uint64 { return ^i << 12 }

// entry is the entry that va selects.
func (t *tlb) entry(va uint64) *tlbEntry { return &t.e[va>>12&tlbMask] }

// clear drops all translations.
func (t *tlb) clear() {
	for i := range t.e {
		t.e[i].read, t.e[i].write = invalidTag(uint64(i)), invalidTag(uint64(i))
	}
}
