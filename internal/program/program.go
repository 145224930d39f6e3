// Package program reads what an ELF file says of its code: functions by address, the build id, where its parts are loaded and what unwinds it. It reads
// what there is of a file, such as the pages of it that a guest has in memory, and believes nothing.
package program

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

var le = binary.LittleEndian

// Bounds of what is believed.
const (
	maxHeaders = 4096
	maxTable   = 64 << 20  // bytes
	maxPCTable = 256 << 20 // Go's largest programs have more than 100 MB
	maxNotes   = 64 << 10
	maxName    = 512
)

// A File is an executable or a library.
type File struct {
	Loads      []Load
	BuildID    []byte     // nil: it has none, or not in what is there
	EHFrameHdr uint64     // the address of the search table for unwinding (PT_GNU_EH_FRAME); 0: none
	EHFrame    Range      // of .eh_frame, where section headers are there
	Functions  []Function // by address

	r io.ReaderAt
}

// A Load is a part of the file that is mapped: PT_LOAD. Size is that in the file, in bytes.
type Load struct {
	Offset, Addr, Size uint64
	Exec               bool
}

// A Range is some addresses, as the file was linked.
type Range struct{ Addr, Size uint64 }

// A Function is code with a name, at an address as the file was linked.
type Function struct {
	Addr, Size uint64
	Name       string // as linkers have it; see Demangle
	rank       uint8  // of several at one address the highest is shown
}

// Read reads a 64-bit file of x86-64. Its functions are those of the whole symbol table, whose place only the end of the file tells; else of Go's table of
// functions; else of the dynamic symbols, which are loaded with the program. What cannot be read is left out, but for the head.
func Read(r io.ReaderAt) (*File, error) {
	var head [64]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("program: %w", err)
	}
	if string(head[:6]) != "\x7fELF\x02\x01" || elf.Machine(le.Uint16(head[18:])) != elf.EM_X86_64 || le.Uint16(head[54:]) != 56 {
		return nil, errors.New("program: not a 64-bit ELF program of x86-64")
	}
	n := min(int(le.Uint16(head[56:])), maxHeaders)
	raw := make([]byte, n*56)
	if _, err := r.ReadAt(raw, int64(le.Uint64(head[32:])&^(1<<63))); err != nil {
		return nil, fmt.Errorf("program: its headers: %w", err)
	}
	f := &File{r: r}
	var dynamic Load
	for ; len(raw) > 0; raw = raw[56:] {
		l := Load{le.Uint64(raw[8:]), le.Uint64(raw[16:]), le.Uint64(raw[32:]), elf.ProgFlag(le.Uint32(raw[4:]))&elf.PF_X != 0}
		switch elf.ProgType(le.Uint32(raw)) {
		case elf.PT_LOAD:
			f.Loads = append(f.Loads, l)
		case elf.PT_DYNAMIC:
			dynamic = l
		case elf.PT_GNU_EH_FRAME:
			f.EHFrameHdr = l.Addr
		case elf.PT_NOTE:
			f.note(f.table(l.Offset, min(l.Size, maxNotes), maxNotes))
		}
	}
	s := f.sections(head[:])
	if f.BuildID == nil { // Go's own linker puts it into a section that no header points to
		for _, name := range []string{".note.gnu.build-id"} {
			if at, ok := s.named(name); ok {
				f.note(f.table(at.off, at.size, maxNotes))
			}
		}
	}
	if at, ok := s.named(".eh_frame"); ok {
		f.EHFrame = Range{at.addr, at.size}
	}
	if !f.bySymtab(s) && !f.byGo(s) {
		f.byDynamic(dynamic)
	}
	f.sort()
	return f, nil
}

// table reads n bytes of the file, or nothing.
func (f *File) table(off, n, most uint64) []byte {
	if n == 0 || n > most || off > 1<<62 {
		return nil
	}
	b := make([]byte, 0, min(n, 1<<20)) // of what the file only says it has, no more than is there
	for uint64(len(b)) < n {
		part := min(n-uint64(len(b)), 1<<20)
		b = slices.Grow(b, int(part))
		p := b[len(b) : uint64(len(b))+part]
		if _, err := f.r.ReadAt(p, int64(off)+int64(len(b))); err != nil {
			return nil
		}
		b = b[:uint64(len(b))+part]
	}
	return b
}

// note looks for the build id (Linux Standard Base, and ld(1) --build-id): name "GNU", type 3.
func (f *File) note(b []byte) {
	for len(b) >= 12 {
		name, desc := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
		kind := le.Uint32(b[8:])
		at := 12 + (name+3)&^3
		if name > maxNotes || desc > maxNotes || at+desc > uint64(len(b)) {
			return
		}
		if kind == 3 && string(b[12:12+name]) == "GNU\x00" && desc > 0 && desc <= 64 && f.BuildID == nil {
			f.BuildID = slices.Clone(b[at : at+desc])
		}
		next := at + (desc+3)&^3
		if next > uint64(len(b)) {
			return
		}
		b = b[next:]
	}
}

// sort puts functions by address, the best name of each address first and the others away.
func (f *File) sort() {
	slices.SortStableFunc(f.Functions, func(a, b Function) int {
		return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(b.rank, a.rank))
	})
	f.Functions = slices.CompactFunc(f.Functions, func(a, b Function) bool { return a.Addr == b.Addr })
	for i := range f.Functions { // assembly may not say how long it is
		if fn := &f.Functions[i]; fn.Size == 0 {
			if l, ok := f.load(fn.Addr); ok {
				fn.Size = l.Addr + l.Size - fn.Addr
				if i+1 < len(f.Functions) {
					fn.Size = min(fn.Size, f.Functions[i+1].Addr-fn.Addr)
				}
			}
		}
	}
}

func (f *File) load(addr uint64) (Load, bool) {
	for _, l := range f.Loads {
		if addr >= l.Addr && addr-l.Addr < l.Size {
			return l, true
		}
	}
	return Load{}, false
}

// Addr is the address for which the byte at an offset of the file was linked.
func (f *File) Addr(off uint64) (uint64, bool) {
	for _, exec := range []bool{true, false} { // a page can be loaded twice, as the end of the code and as the beginning of data
		for _, l := range f.Loads {
			if l.Exec == exec && off >= l.Offset && off-l.Offset < l.Size {
				return l.Addr + (off - l.Offset), true
			}
		}
	}
	return 0, false
}

// offset is where an address is in the file.
func (f *File) offset(addr uint64) (uint64, bool) {
	l, ok := f.load(addr)
	return l.Offset + (addr - l.Addr), ok
}

// ReadAt reads n bytes of the file at an address as it was linked: what is to be loaded there.
func (f *File) ReadAt(p []byte, addr uint64) error {
	l, ok := f.load(addr)
	if !ok || uint64(len(p)) > l.Size-(addr-l.Addr) {
		return fmt.Errorf("program: nothing is loaded at %#x", addr)
	}
	off := l.Offset + (addr - l.Addr)
	if off > 1<<62 {
		return fmt.Errorf("program: offset %#x", off)
	}
	_, err := f.r.ReadAt(p, int64(off))
	return err
}

// Function gives the function that holds an address as the file was linked.
func (f *File) Function(addr uint64) (Function, bool) {
	i, found := slices.BinarySearchFunc(f.Functions, addr, func(fn Function, a uint64) int { return cmp.Compare(fn.Addr, a) })
	if !found {
		i--
	}
	if i < 0 || addr-f.Functions[i].Addr >= max(f.Functions[i].Size, 1) {
		return Function{}, false
	}
	return f.Functions[i], true
}
