package interp

import (
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// FuzzHostileGuest runs any bytes as code, descriptors and tables in any mode: whatever the guest does, Run comes back when it is kicked.
func FuzzHostileGuest(f *testing.F) {
	f.Add([]byte{0x0F, 0x05, 0x48, 0xCF, 0xF4}, []byte{0xFF, 0xFF, 0, 0, 0, 0x9B, 0xAF, 0}, uint16(0), uint64(0x33))
	f.Add([]byte{0xEA, 0, 0, 0, 0, 8, 0, 0xCD, 0x80}, []byte{0xFF, 0xFF, 0, 0, 0, 0x9B, 0xCF, 0}, uint16(0x13), uint64(8))
	f.Add([]byte{0xF3, 0xA4, 0xCF, 0xCB, 0x0F, 0x22, 0xC0}, []byte{0, 0, 8, 0, 0, 0xEC, 0, 0}, uint16(0x21), uint64(0))
	ram, err := mem.New(4 << 20)
	if err != nil {
		f.Fatal(err)
	}
	vm := NewVM(ram)
	c := vm.NewCPU(0, &noIO{})
	f.Fuzz(func(t *testing.T, code, tables []byte, how uint16, regs uint64) {
		if err := ram.Zero(0, 4<<20); err != nil {
			t.Fatal(err)
		}
		if len(code) > 4096 || len(tables) > 4096 || len(tables) == 0 {
			return
		}
		for _, a := range []mem.Addr{0x1000, 0x100F00, 0x2FF8} {
			ram.WriteAt(code, a)
		}
		for i := 0; i < 0x4000; i += len(tables) {
			ram.WriteAt(tables, mem.Addr(0x8000+i))
		}
		// Page tables for the first 4 MiB, by each kind of paging.
		ram.Store64(0x20000, 0x21007)
		ram.Store64(0x21000, 0x22007)
		ram.Store64(0x22000, 0x87|1<<8)
		ram.Store64(0x22008, 0x200087)
		c.Reset()
		var s x86.State
		c.State(&s)
		bit := func(n int, v uint64) uint64 { return uint64(how>>n&1) * v }
		s.CR0 = x86.CR0ET | bit(0, x86.CR0PE) | bit(0, 1)*bit(1, x86.CR0PG) | bit(2, x86.CR0WP) | bit(3, x86.CR0AM)
		s.CR3 = 0x20000
		s.CR4 = bit(5, x86.CR4PAE) | bit(6, x86.CR4PSE) | bit(7, x86.CR4SMAP) | bit(8, x86.CR4SMEP) | bit(9, x86.CR4FSGSBASE) | bit(10, x86.CR4OSFXSR) | bit(10, x86.CR4OSXSAVE)
		s.EFER = x86.EFERSCE | x86.EFERNXE
		if how&0x23 == 0x23 && how>>11&1 != 0 {
			s.EFER |= x86.EFERLME | x86.EFERLMA
		}
		dpl := uint16(how >> 12 & 3)
		if s.CR0&x86.CR0PE == 0 {
			dpl = 0
		}
		for i := range s.Seg {
			s.Seg[i] = x86.Segment{Selector: 0x10 | dpl, Limit: 0xFFFFFFFF, Access: 0xC093 | dpl<<5}
		}
		s.Seg[x86.CS] = x86.Segment{Selector: 8 | dpl, Limit: 0xFFFFFFFF, Access: 0x809B | dpl<<5 | uint16(how>>14&3)<<13}
		s.GDTR, s.IDTR = x86.Table{Base: 0x8000, Limit: 0x3FFF}, x86.Table{Base: 0x8000, Limit: 0xFFF}
		s.TR = x86.Segment{Selector: 0x28, Base: 0xA000, Limit: 0xFFF, Access: 0x8B}
		for i := range s.GPR {
			s.GPR[i] = regs >> (4 * i)
		}
		s.GPR[x86.RSP], s.RIP = 0x101000, 0x1000
		if err := c.SetState(&s); err != nil {
			t.Fatal(err)
		}
		defer time.AfterFunc(2*time.Millisecond, c.Kick).Stop()
		for range 50 {
			if exit := c.Run(); exit == hv.Kicked || exit == hv.Shutdown || exit == hv.Halted {
				break
			}
		}
		c.poll.And(^uint32(pollKick))
	})
}
