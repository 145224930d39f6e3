package mmu

import (
	"testing"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

const testRAM = 8 << 20

func newRAM(tb testing.TB) *mem.Memory {
	ram, err := mem.New(testRAM)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ram.Close() })
	return ram
}

const (
	p   = present
	w   = writable
	u   = user
	xd  = noExec
	ps  = large
	g   = global
	acc = accessed
	dty = dirty
)

// chain writes a walk for va: one entry a table from the top, each table a page from root on; the last entry is the leaf.
// It returns the addresses of the entries.
func chain(ram *mem.Memory, root mem.Addr, va uint64, levels int, entries ...uint64) []mem.Addr {
	var at []mem.Addr
	table := root
	for i, e := range entries {
		ea := table + mem.Addr(va>>(3+9*(levels-i))&511*8)
		if i < len(entries)-1 {
			table += 0x1000
			e |= uint64(table)
		}
		ram.Store64(ea, e)
		at = append(at, ea)
	}
	return at
}

func TestPermissionsOfFourLevels(t *testing.T) {
	const va, leaf = 0xFFFF8123_45678ABC, 0x300000
	all := Space{Mode: Level4, Root: 0x1000, WP: true, NXE: true}
	smap, smep, nowp, nonx := all, all, all, all
	smap.SMAP, smep.SMEP = true, true
	nowp.WP, nonx.NXE = false, false
	const prot = x86.PFPresent
	for _, c := range []struct {
		name    string
		s       Space
		entries [4]uint64 // top first
		a       Access
		fault   bool
		code    uint32
	}{
		{"kernel reads a kernel page", all, [4]uint64{p, p, p, p}, 0, false, 0},
		{"kernel writes a writable page", all, [4]uint64{p | w, p | w, p | w, p | w}, Write, false, 0},
		{"a read-only level makes it read-only", all, [4]uint64{p | w, p, p | w, p | w}, Write, true, prot | x86.PFWrite},
		{"WP off lets the kernel write", nowp, [4]uint64{p, p, p, p}, Write, false, 0},
		{"WP off does not let the user write", nowp, [4]uint64{p | u, p | u, p | u, p | u}, Write | User, true, prot | x86.PFWrite | x86.PFUser},
		{"user reads a user page", all, [4]uint64{p | u, p | u, p | u, p | u}, User, false, 0},
		{"a supervisor level keeps the user out", all, [4]uint64{p | u, p | u, p, p | u}, User, true, prot | x86.PFUser},
		{"user writes a user page", all, [4]uint64{p | u | w, p | u | w, p | u | w, p | u | w}, User | Write, false, 0},
		{"fetch of a page with XD", all, [4]uint64{p, p, p, p | xd}, Fetch, true, prot | x86.PFFetch},
		{"fetch under a level with XD", all, [4]uint64{p, p | xd, p, p}, Fetch, true, prot | x86.PFFetch},
		{"read of a page with XD", all, [4]uint64{p, p, p, p | xd}, 0, false, 0},
		{"XD is reserved without EFER.NXE", nonx, [4]uint64{p, p, p, p | xd}, 0, true, prot | x86.PFRsvd},
		{"fetch without NXE has no fetch bit", nonx, [4]uint64{p, p, p, 0}, Fetch, true, 0},
		{"not present, write by user", all, [4]uint64{p | u, p | u, p | u, 0}, Write | User, true, x86.PFWrite | x86.PFUser},
		{"not present at the top", all, [4]uint64{0, 0, 0, 0}, Fetch, true, x86.PFFetch},
		{"SMAP keeps the kernel off user pages", smap, [4]uint64{p | u, p | u, p | u, p | u}, 0, true, prot},
		{"SMAP with AC lets it", smap, [4]uint64{p | u, p | u, p | u, p | u}, AC, false, 0},
		{"SMAP does not concern fetches", smap, [4]uint64{p | u, p | u, p | u, p | u}, Fetch, false, 0},
		{"SMAP does not concern pages with one supervisor level", smap, [4]uint64{p | u, p | u, p, p | u}, 0, false, 0},
		{"SMEP keeps the kernel from running user pages", smep, [4]uint64{p | u, p | u, p | u, p | u}, Fetch, true, prot | x86.PFFetch},
		{"SMEP lets it read them", smep, [4]uint64{p | u, p | u, p | u, p | u}, 0, false, 0},
		{"PS at the top is reserved", all, [4]uint64{p | ps, p, p, p}, 0, true, prot | x86.PFRsvd},
		{"an address above MAXPHYADDR is reserved", all, [4]uint64{p, p, p, p | 1<<PhysBits}, 0, true, prot | x86.PFRsvd},
		{"bit 51 is reserved", all, [4]uint64{p, p | 1<<51, p, p}, 0, true, prot | x86.PFRsvd},
		{"bits 52-62 are the software's", all, [4]uint64{p | 0x7FF<<52, p | 0x7FF<<52, p | 0x7FF<<52, p | 0x7FF<<52}, 0, false, 0},
	} {
		ram := newRAM(t)
		e := c.entries
		e[3] |= leaf
		if e[3]&p == 0 {
			e[3] = 0
		}
		chain(ram, c.s.Root, va, 4, e[0], e[1], e[2], e[3])
		got, code, ok := c.s.Walk(ram, va, c.a)
		if ok == c.fault || code != c.code {
			t.Errorf("%s: ok %v, code %#x; want ok %v, code %#x", c.name, ok, code, !c.fault, c.code)
		}
		if ok && got.Phys != leaf|va&0xFFF {
			t.Errorf("%s: at %#x, want %#x", c.name, got.Phys, leaf|va&0xFFF)
		}
	}
}

func TestAccessedAndDirtyBits(t *testing.T) {
	ram := newRAM(t)
	s := Space{Mode: Level4, Root: 0x1000, WP: true}
	const va = 0x7000
	at := chain(ram, s.Root, va, 4, p|w, p|w, p|w, p|w|0x300000)
	tr, _, _ := s.Walk(ram, va, 0)
	if tr.Write {
		t.Error("a clean page may be written without a walk: its dirty bit would stay clear")
	}
	for i, a := range at {
		if e := ram.Load64(a); e&(acc|dty) != acc {
			t.Errorf("level %d after a read: %#x, want A and not D", 4-i, e)
		}
	}
	if tr, _, _ = s.Walk(ram, va, Write); !tr.Write {
		t.Error("a dirty, writable page is not writable")
	}
	for i, a := range at {
		want := uint64(acc)
		if i == 3 {
			want |= dty
		}
		if e := ram.Load64(a); e&(acc|dty) != want {
			t.Errorf("level %d after a write: %#x, want %#x of A and D", 4-i, e, want)
		}
	}
	// A fault changes nothing.
	at = chain(ram, 0x9000, va, 4, p|w, p|w, p|w, p|0x300000)
	s.Root = 0x9000
	if _, _, ok := s.Walk(ram, va, Write); ok {
		t.Fatal("wrote a read-only page")
	}
	for i, a := range at {
		if e := ram.Load64(a); e&(acc|dty) != 0 {
			t.Errorf("level %d after a fault: %#x, want neither A nor D", 4-i, e)
		}
	}
}

func TestPageSizes(t *testing.T) {
	const va = 0x0000_5A5A_5BCD_E123
	for _, c := range []struct {
		name    string
		mode    Mode
		entries []uint64
		want    uint64 // 0: reserved
		size    uint64
	}{
		{"1 GiB", Level4, []uint64{p, p | ps | 3<<30}, 3<<30 | va&(1<<30-1), 1 << 30},
		{"1 GiB with PAT", Level4, []uint64{p, p | ps | 1<<12 | 3<<30}, 3<<30 | va&(1<<30-1), 1 << 30},
		{"1 GiB misaligned", Level4, []uint64{p, p | ps | 3<<30 | 1<<21}, 0, 0},
		{"2 MiB", Level4, []uint64{p, p, p | ps | 7<<21}, 7<<21 | va&(1<<21-1), 2 << 20},
		{"2 MiB misaligned", Level4, []uint64{p, p, p | ps | 7<<21 | 1<<13}, 0, 0},
		{"4 KiB by 5 levels", Level5, []uint64{p, p, p, p, p | 0x123000}, 0x123000 | va&0xFFF, 4096},
		{"4 KiB with bit 7, PAT", Level4, []uint64{p, p, p, p | 1<<7 | 0x123000}, 0x123000 | va&0xFFF, 4096},
	} {
		ram := newRAM(t)
		s := Space{Mode: c.mode, Root: 0x1000}
		levels := 4
		if c.mode == Level5 {
			levels = 5
		}
		chain(ram, s.Root, va, levels, c.entries...)
		tr, code, ok := s.Walk(ram, va, 0)
		if ok != (c.want != 0) || ok && (uint64(tr.Phys) != c.want || tr.Size != c.size) || !ok && code != x86.PFPresent|x86.PFRsvd {
			t.Errorf("%s: %#x size %#x ok %v code %#x; want %#x size %#x", c.name, tr.Phys, tr.Size, ok, code, c.want, c.size)
		}
	}
}

func TestLegacyPaging(t *testing.T) {
	const va = 0xC0123456
	for _, c := range []struct {
		name     string
		pse      bool
		pde, pte uint32
		a        Access
		want     mem.Addr
		code     uint32
		ok       bool
	}{
		{"4 KiB", false, p | w | 0x2000, p | w | 0x345000, Write, 0x345456, 0, true},
		{"4 MiB", true, p | ps | 0x400000, 0, 0, 0x400000 | va&0x3FFFFF, 0, true},
		{"4 MiB above 4 GiB", true, p | ps | 0x400000 | 1<<13, 0, 0, 1<<32 | 0x400000 | va&0x3FFFFF, 0, true},
		{"4 MiB with bit 21", true, p | ps | 0x400000 | 1<<21, 0, 0, 0, x86.PFPresent | x86.PFRsvd, false},
		{"bit 7 without PSE", false, p | ps | 0x2000, p | 0x345000, 0, 0x345456, 0, true},
		{"read-only for the user", false, p | u | w | 0x2000, p | u | 0x345000, User | Write, 0, x86.PFPresent | x86.PFUser | x86.PFWrite, false},
		{"no table", false, 0, 0, 0, 0, 0, false},
	} {
		ram := newRAM(t)
		s := Space{Mode: Legacy, Root: 0x1000, PSE: c.pse, WP: true}
		ram.Store32(0x1000+va>>22*4, c.pde)
		ram.Store32(0x2000+va>>12&1023*4, c.pte)
		tr, code, ok := s.Walk(ram, va, c.a)
		if ok != c.ok || code != c.code || ok && tr.Phys != c.want {
			t.Errorf("%s: %#x, code %#x, ok %v; want %#x, %#x, %v", c.name, tr.Phys, code, ok, c.want, c.code, c.ok)
		}
	}
}

func TestPAEUsesItsRegisters(t *testing.T) {
	ram := newRAM(t)
	const va = 0xC0200ABC
	ram.Store64(0x1020+3*8, p|0x2000)
	ram.Store64(0x2000+va>>21&511*8, p|0x3000)
	ram.Store64(0x3000+va>>12&511*8, p|0x456000|xd)
	e, ok := LoadPDPTE(ram, 0x1020)
	if !ok {
		t.Fatal("PDPTEs were refused")
	}
	s := Space{Mode: PAE, Root: 0x1020, PDPTE: e, NXE: true}
	ram.Store64(0x1020+3*8, 0) // not looked at again
	if tr, _, ok := s.Walk(ram, va, 0); !ok || tr.Phys != 0x456ABC {
		t.Errorf("at %#x, ok %v; want 0x456abc", tr.Phys, ok)
	}
	if _, code, ok := s.Walk(ram, va, Fetch); ok || code != x86.PFPresent|x86.PFFetch {
		t.Errorf("fetch: ok %v, code %#x", ok, code)
	}
	ram.Store64(0x3000+va>>12&511*8, p|0x456000|1<<60)
	if _, code, ok := s.Walk(ram, va, 0); ok || code != x86.PFPresent|x86.PFRsvd {
		t.Errorf("bit 60: ok %v, code %#x; want reserved", ok, code)
	}
	ram.Store64(0x1020+3*8, p|w|0x2000)
	if _, ok := LoadPDPTE(ram, 0x1020); ok {
		t.Error("a PDPTE with R/W set was loaded")
	}
}

func TestGlobalNeedsPGE(t *testing.T) {
	ram := newRAM(t)
	s := Space{Mode: Level4, Root: 0x1000}
	chain(ram, s.Root, 0, 4, p, p, p, p|g|0x5000)
	if tr, _, _ := s.Walk(ram, 0, 0); tr.Global {
		t.Error("global without CR4.PGE")
	}
	s.PGE = true
	if tr, _, _ := s.Walk(ram, 0, 0); !tr.Global {
		t.Error("not global with CR4.PGE")
	}
}

func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		va   uint64
		la57 bool
		want bool
	}{
		{0x00007FFF_FFFFFFFF, false, true}, {0x00008000_00000000, false, false}, {0xFFFF8000_00000000, false, true}, {0xFFFF7FFF_FFFFFFFF, false, false},
		{0x00FFFFFF_FFFFFFFF, true, true}, {0x01000000_00000000, true, false}, {0xFF000000_00000000, true, true}, {0x00008000_00000000, true, true},
	} {
		if got := Canonical(c.va, c.la57); got != c.want {
			t.Errorf("Canonical(%#x, %v) = %v", c.va, c.la57, got)
		}
	}
}

// FuzzWalk walks tables of a hostile guest: no panic, no endless loop, a fault or an address, and a second walk says the same.
func FuzzWalk(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 7, 0x10, 0, 0}, uint64(0x7FFF_FFFF_F000), uint64(0x1000), uint8(3), uint16(0xFFFF))
	f.Fuzz(func(t *testing.T, tables []byte, va, cr3 uint64, access uint8, how uint16) {
		ram := newRAM(t)
		for i := 0; i < testRAM && len(tables) > 0; i += len(tables) + 1<<13 {
			ram.WriteAt(tables[:min(len(tables), testRAM-i)], mem.Addr(i))
		}
		cr0 := uint64(x86.CR0PE | x86.CR0PG)
		if how&1 != 0 {
			cr0 |= x86.CR0WP
		}
		var cr4, efer uint64
		for i, b := range []uint64{x86.CR4PAE, x86.CR4PSE, x86.CR4PGE, x86.CR4LA57, x86.CR4SMEP, x86.CR4SMAP} {
			if how>>(1+i)&1 != 0 {
				cr4 |= b
			}
		}
		for i, b := range []uint64{x86.EFERLMA, x86.EFERNXE} {
			if how>>(8+i)&1 != 0 {
				efer |= b
			}
		}
		s := NewSpace(cr0, cr3, cr4, efer)
		s.PDPTE, _ = LoadPDPTE(ram, cr3)
		a := Access(access & 15)
		t1, code1, ok1 := s.Walk(ram, va, a)
		t2, code2, ok2 := s.Walk(ram, va, a)
		if ok1 != ok2 || code1 != code2 || ok1 && (t1.Phys != t2.Phys || t1.Size != t2.Size) {
			// Tables that contain themselves may change by their own accessed bits.
			if ok1 && ok2 {
				return
			}
			t.Skip()
		}
		if ok1 && a&Write != 0 && !t2.Write {
			t.Errorf("a write was allowed, and the page is not writable: %+v", t2)
		}
	})
}

func BenchmarkWalk4(b *testing.B) {
	ram := newRAM(b)
	s := Space{Mode: Level4, Root: 0x1000}
	chain(ram, s.Root, 0, 4, p, p, p, p|0x5000)
	for b.Loop() {
		s.Walk(ram, 0, 0)
	}
}
