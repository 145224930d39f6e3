// Package dump reads and writes memory dumps: ELF core files of whole machines, as the kernel's /proc/vmcore, QEMU's
// dump-guest-memory and this package's own Write make them. A dump is a guest to look at like one that runs.
package dump

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

var le = binary.LittleEndian

// ErrNotDump is returned for a file that is no ELF core file of an x86-64 machine.
var ErrNotDump = errors.New("not a memory dump (an ELF core file of an x86-64 machine)")

// Bounds of what is believed of a file.
const (
	maxSegments = 1 << 16
	maxNotes    = 16 << 20 // bytes
	maxCPUs     = 8192
)

// A segment is a piece of guest-physical memory in the file.
type segment struct {
	base mem.Addr
	size uint64
	at   int64
}

// A File is a dump. It implements guest.Target. Its methods may be called from any goroutine.
type File struct {
	f        io.ReaderAt
	close    func() error
	segments []segment // by base
	regions  []mem.Region
	regs     []*x86.Regs // of each CPU; nil where the dump has none of use
	info     []byte

	mu     sync.Mutex // guards blocks
	blocks map[int64][]byte
}

// Open opens a dump.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = ErrNotDump
	}
	var d *File
	if err == nil {
		d, err = New(f, st.Size())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.close = f.Close
	return d, nil
}

// New takes a dump of size bytes.
func New(f io.ReaderAt, size int64) (*File, error) {
	d := &File{f: f, close: func() error { return nil }, blocks: map[int64][]byte{}}
	head := make([]byte, ehdrSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, ErrNotDump
	}
	if string(head[:8]) == "KDUMP   " || string(head[:12]) == "makedumpfile" {
		return nil, errors.New("this is a compressed kdump: makedumpfile or crash can turn it into an ELF core file")
	}
	// ELF64, little endian, core, x86-64.
	if string(head[:6]) != "\x7fELF\x02\x01" || le.Uint16(head[16:]) != etCore || le.Uint16(head[18:]) != emX8664 {
		return nil, ErrNotDump
	}
	if err := d.readHeaders(head, size); err != nil {
		return nil, err
	}
	if len(d.segments) == 0 {
		return nil, fmt.Errorf("%w: it has no memory", ErrNotDump)
	}
	d.flatten()
	return d, nil
}

// Numbers of the ELF format (System V ABI).
const (
	ehdrSize = 64
	phdrSize = 56
	etCore   = 4
	emX8664  = 62
	ptLoad   = 1
	ptNote   = 4
	pnXNum   = 0xFFFF // e_phnum: the number is in sh_info of the first section header
)

func (d *File) readHeaders(head []byte, size int64) error {
	at, n := int64(le.Uint64(head[32:])), int(le.Uint16(head[56:]))
	if n == pnXNum {
		sh := make([]byte, 64)
		if _, err := d.f.ReadAt(sh, int64(le.Uint64(head[40:])&(1<<62-1))); err != nil {
			return fmt.Errorf("%w: its section header cannot be read", ErrNotDump)
		}
		n = int(le.Uint32(sh[44:]))
	}
	if at < ehdrSize || le.Uint16(head[54:]) != phdrSize || n > maxSegments || at > size-int64(n)*phdrSize {
		return fmt.Errorf("%w: its program headers are damaged", ErrNotDump)
	}
	raw := make([]byte, n*phdrSize)
	if _, err := d.f.ReadAt(raw, at); err != nil {
		return fmt.Errorf("program headers: %w", err)
	}
	for ; len(raw) > 0; raw = raw[phdrSize:] {
		off, physical, length := le.Uint64(raw[8:]), le.Uint64(raw[24:]), le.Uint64(raw[32:])
		if off >= uint64(size) {
			continue // a dump that was cut off: what is there, is there
		}
		length = min(length, uint64(size)-off)
		switch le.Uint32(raw) {
		case ptLoad:
			if length > 0 && physical+length > physical {
				d.segments = append(d.segments, segment{mem.Addr(physical), length, int64(off)})
			}
		case ptNote:
			notes := make([]byte, min(length, maxNotes))
			if _, err := d.f.ReadAt(notes, int64(off)); err != nil {
				return fmt.Errorf("notes: %w", err)
			}
			d.readNotes(notes)
		}
	}
	return nil
}

// flatten makes segments that do not overlap, and the regions of these. Dumps have memory more than once: /proc/vmcore the kernel's image, QEMU with paging
// each page that is mapped at several addresses.
func (d *File) flatten() {
	slices.SortStableFunc(d.segments, func(a, b segment) int { return cmp.Compare(a.base, b.base) })
	all := d.segments
	d.segments = nil
	end := mem.Addr(0) // of what is had
	for _, s := range all {
		next := s.base + mem.Addr(s.size)
		if next <= end {
			continue
		}
		if s.base < end {
			have := uint64(end - s.base)
			s.base, s.at, s.size = end, s.at+int64(have), s.size-have
		}
		d.segments = append(d.segments, s)
		if n := len(d.regions); n > 0 && s.base == end {
			d.regions[n-1].Size += s.size
		} else {
			d.regions = append(d.regions, mem.Region{Base: s.base, Size: s.size, Offset: s.at})
		}
		end = next
	}
}

// Close closes the file.
func (d *File) Close() error { return d.close() }

// Regions lists the memory that the dump has.
func (d *File) Regions() []mem.Region { return d.regions }

// NumCPU is how many CPUs the dump tells of.
func (d *File) NumCPU() int { return len(d.regs) }

// CPU fills r with the registers of CPU i. Dumps of the kernel's own making have no control registers: ErrNoRegisters.
func (d *File) CPU(i int, r *x86.Regs) error {
	if i < 0 || i >= len(d.regs) || d.regs[i] == nil {
		return guest.ErrNoRegisters
	}
	*r = *d.regs[i]
	return nil
}

// VMCoreInfo is the kernel's note of that name, or nil.
func (d *File) VMCoreInfo() []byte { return d.info }

// ReadPhys implements mem.Reader.
func (d *File) ReadPhys(p []byte, a mem.Addr) (int, error) {
	n := 0
	for n < len(p) {
		s, ok := d.find(a)
		if !ok {
			return n, fmt.Errorf("%w: %#x", mem.ErrNotRAM, uint64(a))
		}
		off := uint64(a - s.base)
		k := min(uint64(len(p)-n), s.size-off)
		got, err := d.read(p[n:n+int(k)], s.at+int64(off))
		n, a = n+got, a+mem.Addr(got)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// find gives the segment that holds a.
func (d *File) find(a mem.Addr) (segment, bool) {
	i, _ := slices.BinarySearchFunc(d.segments, a, func(s segment, a mem.Addr) int {
		if s.base <= a {
			return -1
		}
		return 1
	})
	if i == 0 || uint64(a-d.segments[i-1].base) >= d.segments[i-1].size {
		return segment{}, false
	}
	return d.segments[i-1], true
}

// Small reads go through blocks that are kept: page tables are walked 8 bytes at a time.
const (
	blockSize = 64 << 10
	maxBlocks = 512
)

func (d *File) read(p []byte, at int64) (int, error) {
	if len(p) >= blockSize {
		return d.f.ReadAt(p, at)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for n < len(p) {
		start := at &^ (blockSize - 1)
		b, ok := d.blocks[start]
		if !ok {
			b = make([]byte, blockSize)
			got, err := d.f.ReadAt(b, start)
			if err != nil && err != io.EOF {
				return n, err
			}
			if len(d.blocks) >= maxBlocks {
				clear(d.blocks)
			}
			b = b[:got]
			d.blocks[start] = b
		}
		if at-start >= int64(len(b)) {
			return n, io.ErrUnexpectedEOF
		}
		k := copy(p[n:], b[at-start:])
		n, at = n+k, at+int64(k)
	}
	return n, nil
}
