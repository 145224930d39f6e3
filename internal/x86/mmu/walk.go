// Package mmu translates linear addresses to physical ones by the page tables in guest memory, as SDM vol. 3A chapter 4 says.
package mmu

import (
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// PhysBits is MAXPHYADDR: entries with address bits at or above it set are reserved (CPUID 0x80000008).
const PhysBits = 46

// Mode is how linear addresses are translated (SDM vol. 3A table 4-1).
type Mode uint8

// The paging modes.
const (
	NoPaging Mode = iota
	Legacy        // 32-bit paging
	PAE
	Level4
	Level5
)

// Access is what an access asks of a translation.
type Access uint8

// The bits of an Access.
const (
	Write Access = 1 << iota
	User         // at CPL 3, and not an implicit access to a descriptor table or the TSS
	Fetch
	AC // explicit, with RFLAGS.AC set: SMAP does not apply
)

// A Space is what the control registers say about translation.
type Space struct {
	Mode  Mode
	Root  mem.Addr  // of the top table
	PDPTE [4]uint64 // the registers that PAE paging loads with CR3
	PSE   bool      // Legacy: 4 MiB pages
	WP    bool
	NXE   bool
	SMEP  bool
	SMAP  bool
	PGE   bool
}

// A Translation is what one linear address means.
type Translation struct {
	Phys   mem.Addr // of the byte asked for
	Size   uint64   // of the page: 4 KiB, 2 MiB, 4 MiB or 1 GiB
	Write  bool     // the same accessor may write, and the page's dirty bit is set already
	Global bool     // and CR4.PGE is set: survives MOV to CR3
}

// NewSpace says how translation works under these registers. PAE's pointer registers are left empty: see [LoadPDPTE].
func NewSpace(cr0, cr3, cr4, efer uint64) Space {
	s := Space{
		WP: cr0&x86.CR0WP != 0, NXE: efer&x86.EFERNXE != 0, SMEP: cr4&x86.CR4SMEP != 0, SMAP: cr4&x86.CR4SMAP != 0,
		PSE: cr4&x86.CR4PSE != 0, PGE: cr4&x86.CR4PGE != 0,
	}
	switch {
	case cr0&x86.CR0PG == 0:
		s.Mode = NoPaging
	case efer&x86.EFERLMA != 0:
		s.Mode = Level4
		if cr4&x86.CR4LA57 != 0 {
			s.Mode = Level5
		}
		s.Root = mem.Addr(cr3 & physMask)
	case cr4&x86.CR4PAE != 0:
		s.Mode, s.Root = PAE, mem.Addr(cr3&0xFFFFFFE0)
	default:
		s.Mode, s.Root, s.NXE = Legacy, mem.Addr(cr3&0xFFFFF000), false
	}
	return s
}

const (
	present  = 1 << 0
	writable = 1 << 1
	user     = 1 << 2
	accessed = 1 << 5
	dirty    = 1 << 6
	large    = 1 << 7
	global   = 1 << 8
	noExec   = 1 << 63

	physMask = (1<<PhysBits - 1) &^ 0xFFF
	rsvdHigh = (1<<52 - 1) &^ (1<<PhysBits - 1) // bits 51 to MAXPHYADDR
)

// Walk translates va for access a, and sets the accessed and dirty bits on its way, in whole accesses as several
// processors need it. Where it returns false, code is the page fault's error code.
func (s *Space) Walk(ram *mem.Memory, va uint64, a Access) (t Translation, code uint32, ok bool) {
	switch s.Mode {
	case NoPaging:
		return Translation{Phys: mem.Addr(va & 0xFFFFFFFF), Size: 4096, Write: true}, 0, true
	case Legacy:
		return s.walk32(ram, uint32(va), a)
	}
	return s.walk64(ram, va, a)
}

// walk64 walks tables of 8-byte entries.
func (s *Space) walk64(ram *mem.Memory, va uint64, a Access) (t Translation, code uint32, ok bool) {
	rsvd := uint64(rsvdHigh)
	if !s.NXE {
		rsvd |= noExec
	}
	top := 4
	switch s.Mode {
	case PAE:
		rsvd |= 0x7FF << 52 // bits 62-52, ignored by the 4-level forms
		top = 2
	case Level5:
		top = 5
	}
	var at [6]mem.Addr
	var was [6]uint64
again:
	table, perm := s.Root, uint64(writable|user)
	if s.Mode == PAE {
		e := s.PDPTE[va>>30&3]
		if e&present == 0 {
			return t, s.fault(a, false), false
		}
		table = mem.Addr(e & physMask)
	}
	var nx uint64
	for level := top; ; level-- {
		shift := uint(3 + 9*level)
		ea := table + mem.Addr(va>>shift&511*8)
		e := ram.Load64(ea)
		if e&present == 0 {
			return t, s.fault(a, false), false
		}
		r := rsvd
		leaf := level == 1
		if e&large != 0 && !leaf {
			if level <= 3 {
				leaf = true
				r |= (1<<shift - 1) &^ 0x1FFF // bit 12 is PAT
			} else {
				r |= large
			}
		}
		if e&r != 0 {
			return t, s.fault(a, true) | x86.PFRsvd, false
		}
		perm &= e
		nx |= e & noExec
		at[level], was[level] = ea, e
		if !leaf {
			table = mem.Addr(e & physMask)
			continue
		}
		if !s.allowed(perm, nx, a) {
			return t, s.fault(a, true), false
		}
		for l := top; l > level; l-- {
			if was[l]&accessed == 0 && !ram.CompareAndSwap64(at[l], was[l], was[l]|accessed) {
				goto again
			}
		}
		set := e | accessed
		if a&Write != 0 {
			set |= dirty
		}
		if set != e && !ram.CompareAndSwap64(ea, e, set) {
			goto again
		}
		t.Size = 1 << shift
		t.Phys = mem.Addr(e&physMask&^(t.Size-1) | va&(t.Size-1))
		t.Write = set&dirty != 0 && s.allowed(perm, nx, a&^Fetch|Write)
		t.Global = s.PGE && e&global != 0
		return t, 0, true
	}
}

// walk32 walks tables of 4-byte entries (SDM vol. 3A 4.3).
func (s *Space) walk32(ram *mem.Memory, va uint32, a Access) (t Translation, code uint32, ok bool) {
again:
	da := s.Root + mem.Addr(va>>22*4)
	d := ram.Load32(da)
	if d&present == 0 {
		return t, s.fault(a, false), false
	}
	ea, e, perm := da, d, d
	if d&large != 0 && s.PSE {
		if d&(1<<21) != 0 {
			return t, s.fault(a, true) | x86.PFRsvd, false
		}
		t.Size = 4 << 20
		t.Phys = mem.Addr(d&0xFFC00000) | mem.Addr(d>>13&0xFF)<<32 | mem.Addr(va&0x3FFFFF)
	} else {
		ea = mem.Addr(d&0xFFFFF000) + mem.Addr(va>>12&1023*4)
		e = ram.Load32(ea)
		if e&present == 0 {
			return t, s.fault(a, false), false
		}
		perm &= e
		t.Size = 4096
		t.Phys = mem.Addr(e&0xFFFFF000) | mem.Addr(va&0xFFF)
	}
	if !s.allowed(uint64(perm), 0, a) {
		return t, s.fault(a, true), false
	}
	if ea != da && d&accessed == 0 && !ram.CompareAndSwap32(da, d, d|accessed) {
		goto again
	}
	set := e | accessed
	if a&Write != 0 {
		set |= dirty
	}
	if set != e && !ram.CompareAndSwap32(ea, e, set) {
		goto again
	}
	t.Write = set&dirty != 0 && s.allowed(uint64(perm), 0, a&^Fetch|Write)
	t.Global = s.PGE && e&global != 0
	return t, 0, true
}

// allowed is SDM vol. 3A 4.6.1: perm is the R/W and U/S bits of all levels and-ed, nx the XD bits or-ed.
func (s *Space) allowed(perm, nx uint64, a Access) bool {
	if a&User != 0 {
		if perm&user == 0 || a&Fetch != 0 && nx != 0 {
			return false
		}
		return a&Write == 0 || perm&writable != 0
	}
	if a&Fetch != 0 {
		return nx == 0 && (perm&user == 0 || !s.SMEP)
	}
	if perm&user != 0 && s.SMAP && a&AC == 0 {
		return false
	}
	return a&Write == 0 || perm&writable != 0 || !s.WP
}

// fault is the error code of an access that may not be (SDM vol. 3A 4.7).
func (s *Space) fault(a Access, there bool) uint32 {
	var code uint32
	if there {
		code |= x86.PFPresent
	}
	if a&Write != 0 {
		code |= x86.PFWrite
	}
	if a&User != 0 {
		code |= x86.PFUser
	}
	if a&Fetch != 0 && (s.NXE || s.SMEP) {
		code |= x86.PFFetch
	}
	return code
}

// LoadPDPTE reads the four page-directory-pointer entries that MOV to CR3 loads under PAE paging. It returns false where a present one has
// reserved bits set: #GP (SDM vol. 3A 4.4.1).
func LoadPDPTE(ram *mem.Memory, cr3 uint64) (e [4]uint64, ok bool) {
	const reserved = 0x1E6 | ^uint64(1<<PhysBits-1)
	for i := range e {
		e[i] = ram.Load64(mem.Addr(cr3&0xFFFFFFE0) + mem.Addr(i*8))
		if e[i]&present != 0 && e[i]&reserved != 0 {
			return e, false
		}
	}
	return e, true
}

// Canonical tells whether va is a linear address that 64-bit mode can use: its upper bits are copies of bit 47, or of bit 56 with 5 levels.
func Canonical(va uint64, la57 bool) bool {
	n := 16
	if la57 {
		n = 7
	}
	return uint64(int64(va)<<n>>n) == va
}
