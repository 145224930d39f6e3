package mmu

import (
	"bytes"
	"testing"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

func TestCodeIsWhatIsMapped(t *testing.T) {
	ram := newRAM(t)
	const page, va = 0x8000, 0x400000
	for i := range mem.Addr(mem.PageSize) {
		ram.WriteAt([]byte{byte(i)}, page+i)
	}
	chain(ram, 0x1000, va, 4, 3, 3, 3, page|3)
	long := x86.Regs{CR0: x86.CR0PE | x86.CR0PG, CR3: 0x1000, CR4: x86.CR4PAE, EFER: x86.EFERLMA | x86.EFERLME}
	long.Seg[x86.CS].Access = x86.SegLong
	real := x86.Regs{}
	real.Seg[x86.CS].Base = page - 0x100
	for _, c := range []struct {
		name  string
		r     x86.Regs
		rip   uint64
		first byte
		n     int
	}{
		{"in a page", long, va + 0x10, 0x10, 15},
		{"at a page's end, nothing behind it", long, va + 0xFFD, 0xFD, 3},
		{"nowhere", long, va + 0x1000, 0, 0},
		{"real mode, with CS's base", real, 0x120, 0x20, 15},
	} {
		c.r.RIP = c.rip
		got := Code(ram, &c.r)
		var want []byte
		for i := range c.n {
			want = append(want, c.first+byte(i))
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: % x, want % x", c.name, got, want)
		}
	}
}
