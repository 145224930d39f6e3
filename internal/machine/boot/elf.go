package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"vitrine.dev/vitrine/internal/mem"
)

// An elfFile is what a loader needs of an ELF executable, 32-bit or 64-bit (System V gABI, chapters 4 and 5).
type elfFile struct {
	r       io.ReaderAt
	class64 bool
	machine uint16
	entry   uint64
	loads   []segment
	notes   []segment
	end     int64 // where the file's parts, as its headers have them, end
}

// A segment is a program header.
type segment struct {
	off, size   int64 // in the file
	vaddr, phys uint64
	memSize     uint64
}

const (
	elf386    = 3
	elfX86_64 = 62
	elfLoad   = 1
	elfNote   = 4

	maxPhdrs = 64      // vmlinux has 5
	maxNote  = 1 << 20 // bytes read of a note segment
)

// parseELF reads the headers of a file of size bytes.
func parseELF(r io.ReaderAt, size int64) (*elfFile, error) {
	var h [64]byte
	if err := readFull(r, h[:52], 0); err != nil {
		return nil, err
	}
	if string(h[:4]) != "\x7fELF" {
		return nil, errors.New("not an ELF file")
	}
	if h[5] != 1 {
		return nil, errors.New("a big-endian ELF; this machine is x86-64")
	}
	le := binary.LittleEndian
	e := &elfFile{r: r, class64: h[4] == 2, machine: le.Uint16(h[18:])}
	if e.machine != elf386 && e.machine != elfX86_64 {
		return nil, fmt.Errorf("an ELF for another architecture (machine %d); this machine is x86-64", e.machine)
	}
	var phoff, shoff uint64
	var counts []byte // e_phentsize, e_phnum, e_shentsize, e_shnum
	if e.class64 {
		if err := readFull(r, h[:], 0); err != nil {
			return nil, err
		}
		e.entry, phoff, shoff, counts = le.Uint64(h[24:]), le.Uint64(h[32:]), le.Uint64(h[40:]), h[54:]
	} else {
		e.entry, phoff, shoff, counts = uint64(le.Uint32(h[24:])), uint64(le.Uint32(h[28:])), uint64(le.Uint32(h[32:])), h[42:]
	}
	phent, phnum := int(le.Uint16(counts)), int(le.Uint16(counts[2:]))
	want := map[bool]int{true: 56, false: 32}[e.class64]
	if phnum == 0 || phnum > maxPhdrs || phent != want {
		return nil, fmt.Errorf("ELF: %d program headers of %d bytes", phnum, phent)
	}
	if phoff > uint64(size) {
		return nil, errTruncated
	}
	table := make([]byte, phnum*phent)
	if err := readFull(r, table, int64(phoff)); err != nil {
		return nil, err
	}
	for i := range phnum {
		if err := e.programHeader(table[i*phent:(i+1)*phent], size); err != nil {
			return nil, fmt.Errorf("ELF program header %d: %w", i, err)
		}
	}
	if sections := uint64(le.Uint16(counts[4:])) * uint64(le.Uint16(counts[6:])); shoff < uint64(size) && sections <= uint64(size)-shoff {
		e.end = max(e.end, int64(shoff+sections))
	}
	return e, nil
}

func (e *elfFile) programHeader(p []byte, size int64) error {
	le := binary.LittleEndian
	var off, fileSize uint64
	var s segment
	if e.class64 {
		off, s.vaddr, s.phys, fileSize, s.memSize = le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), le.Uint64(p[32:]), le.Uint64(p[40:])
	} else {
		w := func(i int) uint64 { return uint64(le.Uint32(p[i:])) }
		off, s.vaddr, s.phys, fileSize, s.memSize = w(4), w(8), w(12), w(16), w(20)
	}
	kind := le.Uint32(p)
	if kind != elfLoad && kind != elfNote {
		return nil
	}
	if off > uint64(size) || fileSize > uint64(size)-off {
		return errTruncated
	}
	s.off, s.size = int64(off), int64(fileSize)
	e.end = max(e.end, s.off+s.size)
	if kind == elfNote {
		e.notes = append(e.notes, s)
		return nil
	}
	if s.memSize < fileSize || s.phys > math.MaxUint64-s.memSize {
		return fmt.Errorf("%d bytes in memory for %d in the file at %#x", s.memSize, fileSize, s.phys)
	}
	if s.memSize > 0 {
		e.loads = append(e.loads, s)
	}
	return nil
}

// extent is the physical range [lo, hi) that the segments ask for.
func (e *elfFile) extent() (lo, hi uint64, err error) {
	if len(e.loads) == 0 {
		return 0, 0, errors.New("ELF: nothing to load")
	}
	lo = math.MaxUint64
	for _, s := range e.loads {
		lo, hi = min(lo, s.phys), max(hi, s.phys+s.memSize)
	}
	return lo, hi, nil
}

// physical turns a virtual address, or a physical one, into the physical address the segments are linked for.
func (e *elfFile) physical(a uint64) (uint64, bool) {
	for _, s := range e.loads {
		if a-s.phys < s.memSize {
			return a, true
		}
	}
	for _, s := range e.loads {
		if a-s.vaddr < s.memSize {
			return s.phys + a - s.vaddr, true
		}
	}
	return 0, false
}

// place reads the segments into ram, moved by shift bytes.
func (e *elfFile) place(ram *mem.Memory, shift uint64) error {
	for _, s := range e.loads {
		a := mem.Addr(s.phys + shift)
		if !ram.Contains(a, s.memSize) {
			return noRoom(s.phys+shift, s.memSize, ram)
		}
		if s.size == 0 {
			continue
		}
		err := ram.Fill(a, uint64(s.size), func(p []byte, off int64) error { return readFull(e.r, p, s.off+off) })
		if err != nil {
			return err
		}
	}
	return nil
}

func noRoom(a, n uint64, ram *mem.Memory) error {
	return fmt.Errorf("it wants %s at %#x, where guest memory of %s has no room", mib(n), a, mib(ram.Size()))
}

// note finds the content of the note of the given owner and type.
func (e *elfFile) note(owner string, kind uint32) ([]byte, bool) {
	le := binary.LittleEndian
	for _, s := range e.notes {
		p := make([]byte, min(s.size, maxNote))
		if readFull(e.r, p, s.off) != nil {
			continue
		}
		for len(p) >= 12 {
			nameSize, size, t := uint64(le.Uint32(p)), uint64(le.Uint32(p[4:])), le.Uint32(p[8:])
			p = p[12:]
			name, rest, ok := cutAligned(p, nameSize)
			if !ok {
				break
			}
			desc, next, ok := cutAligned(rest, size)
			if !ok {
				break
			}
			if t == kind && string(name) == owner+"\x00" {
				return desc, true
			}
			p = next
		}
	}
	return nil, false
}

// cutAligned cuts n bytes off p, and the padding to 4 bytes behind them.
func cutAligned(p []byte, n uint64) (head, rest []byte, ok bool) {
	if n > uint64(len(p)) {
		return nil, nil, false
	}
	return p[:n], p[min((n+3)&^3, uint64(len(p))):], true
}
