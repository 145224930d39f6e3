package guest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

var le = binary.LittleEndian

// ErrUnmapped is returned for a virtual address that the page tables do not translate.
var ErrUnmapped = errors.New("guest: address is not mapped")

// A Space is a virtual address space: page tables in a guest's memory. It only reads: no accessed bit is set.
type Space struct {
	ram    mem.Reader
	root   mem.Addr
	levels int
}

// Bits of page-table entries (SDM vol. 3A table 4-19), and what is left of an entry as an address.
const (
	ptePresent = 1 << 0
	pteLarge   = 1 << 7
	pteAddr    = 0x000F_FFFF_FFFF_F000
)

// pageTableIsolation is the bit of CR3 that tells the user's root from the kernel's, 4 KiB below (arch/x86/entry/calling.h,
// PTI_USER_PGTABLE_BIT, v4.15).
const pageTableIsolation = 1 << 12

// KernelSpace is the address space that the registers use, with the kernel's half whole: of a user's root under page-table isolation,
// the kernel's is taken.
func KernelSpace(ram mem.Reader, r *x86.Regs) (*Space, error) {
	if r.CR0&x86.CR0PG == 0 || r.EFER&x86.EFERLMA == 0 {
		return nil, errors.New("guest: the CPU does not run a 64-bit kernel yet")
	}
	s := &Space{ram: ram, root: mem.Addr(r.CR3 & pteAddr), levels: 4}
	if r.CR4&x86.CR4LA57 != 0 {
		s.levels = 5
	}
	if r.CR3&pageTableIsolation != 0 {
		k := *s
		k.root &^= pageTableIsolation
		if base, _, err := k.Image(); err == nil && base != 0 {
			return &k, nil
		}
	}
	return s, nil
}

// Translate gives the physical address of va and how many bytes from there on are contiguous in its page.
func (s *Space) Translate(va uint64) (mem.Addr, uint64, error) {
	table := s.root
	for level := s.levels - 1; ; level-- {
		shift := uint(12 + 9*level)
		var b [8]byte
		if _, err := s.ram.ReadPhys(b[:], table+mem.Addr(va>>shift&511*8)); err != nil {
			return 0, 0, fmt.Errorf("guest: page table of level %d: %w", level+1, err)
		}
		e := le.Uint64(b[:])
		if e&ptePresent == 0 {
			return 0, 1 << shift, ErrUnmapped
		}
		if level == 0 || e&pteLarge != 0 && level <= 2 {
			mask := uint64(1)<<shift - 1
			return mem.Addr(e&pteAddr&^mask | va&mask), mask + 1 - va&mask, nil
		}
		table = mem.Addr(e & pteAddr)
	}
}

// ReadAt fills p from va on; it fails where a page is not mapped.
func (s *Space) ReadAt(p []byte, va uint64) error {
	for len(p) > 0 {
		pa, n, err := s.Translate(va)
		if err != nil {
			return fmt.Errorf("%w: %#x", err, va)
		}
		k := min(n, uint64(len(p)))
		if _, err := s.ram.ReadPhys(p[:k], pa); err != nil {
			return fmt.Errorf("guest: read at %#x: %w", va, err)
		}
		p, va = p[k:], va+k
	}
	return nil
}

// Uint64 reads 8 bytes at va.
func (s *Space) Uint64(va uint64) (uint64, error) {
	var b [8]byte
	err := s.ReadAt(b[:], va)
	return le.Uint64(b[:]), err
}

// Uint32 reads 4 bytes at va.
func (s *Space) Uint32(va uint64) (uint32, error) {
	var b [4]byte
	err := s.ReadAt(b[:], va)
	return le.Uint32(b[:]), err
}

// CString reads a string of at most limit bytes up to its NUL.
func (s *Space) CString(va uint64, limit int) (string, error) {
	b := make([]byte, 0, 64)
	for len(b) < limit {
		// Pages are the unit: what follows the string may not be mapped.
		n := min(limit-len(b), int(mem.PageSize-va%mem.PageSize), 64)
		old := len(b)
		b = b[:old+n]
		if cap(b) < old+n+64 {
			b = append(make([]byte, 0, 2*cap(b)+64), b...)
		}
		if err := s.ReadAt(b[old:], va); err != nil {
			return "", err
		}
		for i, c := range b[old:] {
			if c == 0 {
				return string(b[:old+i]), nil
			}
		}
		va += uint64(n)
	}
	return string(b), nil
}

// The range where Linux maps its image (Documentation/arch/x86/x86_64/mm.rst): the last but one GiB.
const (
	imageStart = 0xffffffff80000000
	imageSlot  = 2 << 20
)

// Image finds the kernel's image: the virtual address of _text, which is where its range's first mapped 2 MiB begin, and the size of
// what is mapped from there on, physically contiguous.
//
// The kernel unmaps the rest of the range early (cleanup_highmap, arch/x86/mm/init_64.c).
func (s *Space) Image() (text, size uint64, err error) {
	var middle mem.Addr // the table of the range's 2 MiB
	table, va := s.root, uint64(imageStart)
	for level := s.levels - 1; level >= 2; level-- {
		var b [8]byte
		if _, err := s.ram.ReadPhys(b[:], table+mem.Addr(va>>uint(12+9*level)&511*8)); err != nil {
			return 0, 0, fmt.Errorf("guest: page table of level %d: %w", level+1, err)
		}
		e := le.Uint64(b[:])
		if e&ptePresent == 0 || e&pteLarge != 0 {
			return 0, 0, errNoImage
		}
		table = mem.Addr(e & pteAddr)
		middle = table
	}
	text, size, ok := imageIn(s.ram, middle)
	if !ok {
		return 0, 0, errNoImage
	}
	return text, size, nil
}

var errNoImage = errors.New("guest: no kernel is mapped")

// imageIn is Image, by the table of the range's 2 MiB.
func imageIn(ram mem.Reader, middle mem.Addr) (text, size uint64, ok bool) {
	var raw [mem.PageSize]byte
	if _, err := ram.ReadPhys(raw[:], middle); err != nil {
		return 0, 0, false
	}
	var first mem.Addr
	last := uint64(0)
	for i := range uint64(512) {
		e := le.Uint64(raw[8*i:])
		if e&ptePresent == 0 {
			// Parts of the image may have been given back (.init), so a hole is no end.
			continue
		}
		pa := mem.Addr(e & pteAddr &^ (imageSlot - 1))
		if e&pteLarge == 0 { // in pages of 4 KiB: where the first that is there leads
			if pa, ok = slotIn(ram, mem.Addr(e&pteAddr)); !ok {
				continue
			}
		}
		if text == 0 {
			text, first = imageStart+i*imageSlot, pa
		}
		off := imageStart + i*imageSlot - text
		if pa != first+mem.Addr(off) || pa%imageSlot != 0 || off-last > 32<<20 {
			break
		}
		last = off
	}
	return text, last + imageSlot, text != 0
}

// slotIn is the physical address of 2 MiB that are mapped by pages, if one says so.
func slotIn(ram mem.Reader, table mem.Addr) (mem.Addr, bool) {
	var raw [mem.PageSize]byte
	if _, err := ram.ReadPhys(raw[:], table); err != nil {
		return 0, false
	}
	for i := range mem.Addr(512) {
		if e := le.Uint64(raw[8*i:]); e&ptePresent != 0 {
			return mem.Addr(e&pteAddr) - i*mem.PageSize, true
		}
	}
	return 0, false
}
