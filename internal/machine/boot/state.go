package boot

import (
	"encoding/binary"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Selectors of the loader's descriptor table, as Linux's boot protocols name them.
const (
	bootCS = 0x10
	bootDS = 0x18
	bootTS = 0x20
)

// Access words (x86.Segment.Access) of flat segments.
const (
	flatData = x86.SegGran | x86.SegBig | x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed
	flatCode = flatData | x86.SegCode
	longCode = flatCode&^x86.SegBig | x86.SegLong
	busyTSS  = x86.SegPresent | 0xB
	emptyLDT = x86.SegPresent | 0x2
)

// newState is a processor after its reset (SDM vol. 3A table 9-1), with a descriptor table in ram and flat segments: code in
// bootCS with the given access, data in bootDS. Interrupts are off.
func newState(ram *mem.Memory, code uint16) (*x86.State, error) {
	data := x86.Segment{Selector: bootDS, Limit: 0xFFFF_FFFF, Access: flatData}
	s := &x86.State{MSR: map[uint32]uint64{}}
	s.RFLAGS = x86.Fixed
	s.XCR0 = 1
	for i := range s.Seg {
		s.Seg[i] = data
	}
	s.Seg[x86.CS] = x86.Segment{Selector: bootCS, Limit: 0xFFFF_FFFF, Access: code}
	s.TR = x86.Segment{Selector: bootTS, Limit: 0x67, Access: busyTSS}
	s.LDTR = x86.Segment{Limit: 0xFFFF, Access: emptyLDT}
	s.FPU.FCW = 0x37F
	s.FPU.MXCSR = 0x1F80
	s.DR[6], s.DR[7] = 0xFFFF0FF0, 0x400

	gdt := make([]byte, bootTS+16) // a TSS descriptor is 16 bytes in long mode
	le := binary.LittleEndian
	le.PutUint64(gdt[bootCS:], descriptor(s.Seg[x86.CS]))
	le.PutUint64(gdt[bootDS:], descriptor(data))
	le.PutUint64(gdt[bootTS:], descriptor(s.TR))
	s.GDTR = x86.Table{Base: uint64(gdtAddr), Limit: uint16(len(gdt) - 1)}
	s.IDTR = x86.Table{}
	return s, ram.WriteAt(gdt, gdtAddr)
}

// descriptor encodes a segment whose base is 0 (SDM vol. 3A 3.4.5).
func descriptor(s x86.Segment) uint64 {
	limit := uint64(s.Limit)
	if s.Access&x86.SegGran != 0 {
		limit >>= 12
	}
	return limit&0xFFFF | limit>>16<<48 | uint64(s.Access)<<40
}

// enter32 makes the state of 32-bit protected mode without paging, at entry.
func enter32(ram *mem.Memory, entry uint32) (*x86.State, error) {
	s, err := newState(ram, flatCode)
	if err != nil {
		return nil, err
	}
	s.CR0 = x86.CR0PE | x86.CR0ET
	s.RIP = uint64(entry)
	return s, nil
}

// enter64 makes the state of long mode at entry, with the first 4 GiB and [lo, hi) mapped to themselves by tables of 4 levels or of 5.
func enter64(ram *mem.Memory, entry, lo, hi uint64, five bool) (*x86.State, error) {
	s, err := newState(ram, longCode)
	if err != nil {
		return nil, err
	}
	s.CR3, s.CR4 = uint64(pageTables), x86.CR4PAE
	root := pageTables
	if five {
		s.CR4 |= x86.CR4LA57
		root += mem.PageSize
		ram.Store64(pageTables, uint64(root)|pagePresent)
	}
	if err := identityMap(ram, root, lo, hi); err != nil {
		return nil, err
	}
	s.CR0 = x86.CR0PE | x86.CR0ET | x86.CR0PG
	s.EFER = x86.EFERLME | x86.EFERLMA
	s.RIP = entry
	return s, nil
}

// Bits of the entries of page tables: present and writable, and of a large page (SDM vol. 3A 4.5.4).
const (
	pagePresent = 1 | 1<<1
	pageLarge   = 1 << 7
)

// identityMap builds 4-level tables of 2 MiB pages: one page for the root, one for each 512 GiB that is used, one for each GiB.
func identityMap(ram *mem.Memory, root mem.Addr, lo, hi uint64) error {
	const giB = 1 << 30
	next := root + mem.PageSize
	table := func(at mem.Addr) mem.Addr { // the table that the entry at leads to
		if e := ram.Load64(at); e&1 != 0 {
			return mem.Addr(e &^ 0xFFF)
		}
		t := next
		next += mem.PageSize
		ram.Store64(at, uint64(t)|pagePresent)
		return t
	}
	mapGiB := func(a uint64) error {
		if next+2*mem.PageSize > cmdlineAddr {
			return noRoom(uint64(next), 2*mem.PageSize, ram)
		}
		pdpt := table(root + mem.Addr(a>>39&511*8))
		pd := table(pdpt + mem.Addr(a>>30&511*8))
		for i := range uint64(512) {
			ram.Store64(pd+mem.Addr(i*8), a+i<<21|pagePresent|pageLarge)
		}
		return nil
	}
	for a := uint64(0); a < 4*giB; a += giB {
		if err := mapGiB(a); err != nil {
			return err
		}
	}
	for a := max(lo&^(giB-1), 4*giB); a < hi; a += giB {
		if err := mapGiB(a); err != nil {
			return err
		}
	}
	return nil
}
