// Package cfi finds the caller's registers by the call frame information that compilers leave in .eh_frame: for each instruction, where its caller's registers
// are (DWARF 5, 6.4; Linux Standard Base 5.0, 10.6; System V ABI for AMD64, 3.6.2 and 3.7).
package cfi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"
)

var le = binary.LittleEndian

// Memory is a file as it is loaded, by the addresses it was linked for, or a process's memory. ReadAt fills p or fails.
type Memory interface {
	ReadAt(p []byte, addr uint64) error
}

// ErrNoFDE is returned for an address of which the table says nothing.
var ErrNoFDE = errors.New("cfi: no frame description entry")

// Bounds of what is read: an entry's length, the entries of a table, and rows kept by address.
const (
	maxEntry   = 1 << 16
	maxEntries = 1 << 22
	maxRows    = 2048
)

// A Table is the call frame information of one file. Its methods belong to one goroutine at a time.
type Table struct {
	mem  Memory
	hdr  header // where there is a search table
	fdes []fde  // else: all, by address
	rows map[uint64]*Row
	cies map[uint64]*cie
}

// header is .eh_frame_hdr, which says where the entry of a function is (LSB 10.6.2).
type header struct {
	base  uint64 // of itself, which its addresses are relative to
	table uint64
	n     uint64
	enc   encoding
}

// An fde is what a frame description entry covers, and where it is.
type fde struct {
	start, end uint64
	at         uint64
}

// Open reads the header of a search table: what PT_GNU_EH_FRAME points to.
func Open(m Memory, hdr uint64) (*Table, error) {
	var head [4]byte
	if err := m.ReadAt(head[:], hdr); err != nil {
		return nil, fmt.Errorf("cfi: .eh_frame_hdr at %#x: %w", hdr, err)
	}
	if head[0] != 1 {
		return nil, fmt.Errorf("cfi: .eh_frame_hdr at %#x has version %d, not 1", hdr, head[0])
	}
	t := newTable(m)
	d := &reader{mem: m, at: hdr + 4, end: hdr + 4 + 2*16, data: hdr}
	frame := d.pointer(encoding(head[1]))
	enc := encoding(head[3])
	if encoding(head[2]) == omit || enc == omit { // a linker that had too little room
		return Scan(m, frame, math.MaxUint32)
	}
	n := d.pointer(encoding(head[2]))
	if d.err != nil {
		return nil, fmt.Errorf("cfi: .eh_frame_hdr at %#x: %w", hdr, d.err)
	}
	if n > maxEntries || enc.size() == 0 {
		return nil, fmt.Errorf("cfi: .eh_frame_hdr at %#x: %d entries of encoding %#x", hdr, n, enc)
	}
	t.hdr = header{base: hdr, table: d.at, n: n, enc: enc}
	return t, nil
}

// Scan reads a whole .eh_frame of at most size bytes at addr, where there is no search table.
func Scan(m Memory, addr, size uint64) (*Table, error) {
	t := newTable(m)
	for at, end := addr, addr+size; at < end && len(t.fdes) < maxEntries; {
		e, next, err := t.entry(at)
		if err != nil {
			return nil, err
		}
		if next == at { // the terminator
			break
		}
		if e != nil {
			t.fdes = append(t.fdes, fde{e.start, e.start + e.size, at})
		}
		at = next
	}
	sort.Slice(t.fdes, func(i, j int) bool { return t.fdes[i].start < t.fdes[j].start })
	return t, nil
}

func newTable(m Memory) *Table {
	return &Table{mem: m, rows: map[uint64]*Row{}, cies: map[uint64]*cie{}}
}

// Row says where the caller's registers are when the instruction at addr is about to run. The row is the table's.
func (t *Table) Row(addr uint64) (*Row, error) {
	if r, ok := t.rows[addr]; ok {
		return r, nil
	}
	at, err := t.find(addr)
	if err != nil {
		return nil, err
	}
	e, _, err := t.entry(at)
	if err != nil {
		return nil, err
	}
	if e == nil || addr-e.start >= e.size {
		return nil, fmt.Errorf("%w for %#x", ErrNoFDE, addr)
	}
	r, err := e.row(addr)
	if err != nil {
		return nil, fmt.Errorf("cfi: entry at %#x: %w", at, err)
	}
	if len(t.rows) >= maxRows {
		clear(t.rows)
	}
	t.rows[addr] = r
	return r, nil
}

// find gives the place of the entry that may cover addr.
func (t *Table) find(addr uint64) (uint64, error) {
	if t.hdr.n == 0 {
		i := sort.Search(len(t.fdes), func(i int) bool { return t.fdes[i].start > addr })
		if i == 0 {
			return 0, fmt.Errorf("%w for %#x", ErrNoFDE, addr)
		}
		return t.fdes[i-1].at, nil
	}
	h := &t.hdr
	size := h.enc.size()
	var err error
	pair := func(i uint64) (start, at uint64) {
		d := &reader{mem: t.mem, at: h.table + i*2*size, end: h.table + (i+1)*2*size, data: h.base}
		start, at = d.pointer(h.enc), d.pointer(h.enc)
		if d.err != nil && err == nil {
			err = d.err
		}
		return start, at
	}
	i := sort.Search(int(h.n), func(i int) bool {
		start, _ := pair(uint64(i))
		return start > addr
	})
	if err == nil && i == 0 {
		err = ErrNoFDE
	}
	var at uint64
	if err == nil {
		_, at = pair(uint64(i - 1))
	}
	if err != nil {
		return 0, fmt.Errorf("cfi: %#x: %w", addr, err)
	}
	return at, nil
}

// A cie is what entries have in common (LSB 10.6.1.1).
type cie struct {
	codeAlign uint64
	dataAlign int64
	ret       uint64 // the register that holds the return address
	code      []byte
	enc       encoding
	augmented bool // entries have augmentation data
	signal    bool // frames of a signal handler's return: addresses are not those of calls
	at        uint64
}

// A description is an entry, read.
type description struct {
	*cie
	start, size uint64
	code        []byte
	mem         Memory
	codeAt      uint64 // code's address, which pointers in it may be relative to
}

// entry reads the entry at an address. It gives nil for one that describes no function, and where the next begins: at for the terminator.
func (t *Table) entry(at uint64) (*description, uint64, error) {
	body, id, end, err := t.extent(at)
	if err != nil || end == at {
		return nil, at, err
	}
	if id == 0 {
		return nil, end, nil
	}
	c, err := t.cie(body - 4 - uint64(id))
	if err != nil {
		return nil, at, err
	}
	d := &reader{mem: t.mem, at: body, end: end}
	e := &description{cie: c, mem: t.mem}
	e.start = d.pointer(c.enc)
	e.size = d.pointer(c.enc & formatMask)
	if c.augmented {
		d.skip(d.uleb())
	}
	e.codeAt = d.at
	e.code = d.rest()
	if d.err != nil {
		return nil, at, fmt.Errorf("cfi: entry at %#x: %w", at, d.err)
	}
	return e, end, nil
}

// extent reads the length and the identity of the entry at an address: 0 for a CIE, else how far before the identity's own field its CIE is.
func (t *Table) extent(at uint64) (body uint64, id uint32, end uint64, err error) {
	var b [8]byte
	if err := t.mem.ReadAt(b[:4], at); err != nil {
		return 0, 0, 0, fmt.Errorf("cfi: entry at %#x: %w", at, err)
	}
	n := uint64(le.Uint32(b[:]))
	body = at + 4
	switch {
	case n == 0:
		return 0, 0, at, nil
	case n == math.MaxUint32:
		if err := t.mem.ReadAt(b[:], body); err != nil {
			return 0, 0, 0, fmt.Errorf("cfi: entry at %#x: %w", at, err)
		}
		n = le.Uint64(b[:])
		body += 8
	}
	if n < 4 || n > maxEntry {
		return 0, 0, 0, fmt.Errorf("cfi: entry at %#x is %d bytes long", at, n)
	}
	if err := t.mem.ReadAt(b[:4], body); err != nil {
		return 0, 0, 0, fmt.Errorf("cfi: entry at %#x: %w", at, err)
	}
	return body + 4, le.Uint32(b[:]), body + n, nil
}

// cie reads the CIE at an address.
func (t *Table) cie(at uint64) (*cie, error) {
	if c, ok := t.cies[at]; ok {
		return c, nil
	}
	body, id, end, err := t.extent(at)
	if err != nil {
		return nil, err
	}
	if end == at || id != 0 {
		return nil, fmt.Errorf("cfi: no CIE at %#x", at)
	}
	d := &reader{mem: t.mem, at: body, end: end}
	c := &cie{enc: absptr, at: at}
	version := d.byte()
	augmentation := d.string()
	if version != 1 && version != 3 {
		return nil, fmt.Errorf("cfi: CIE at %#x has version %d", at, version)
	}
	c.codeAlign, c.dataAlign = d.uleb(), d.sleb()
	if version == 1 {
		c.ret = uint64(d.byte())
	} else {
		c.ret = d.uleb()
	}
	if c.ret != RA {
		return nil, fmt.Errorf("cfi: CIE at %#x: return addresses in register %d", at, c.ret)
	}
	if err := c.augment(d, augmentation); err != nil {
		return nil, fmt.Errorf("cfi: CIE at %#x: %w", at, err)
	}
	c.code = d.rest()
	if d.err != nil {
		return nil, fmt.Errorf("cfi: CIE at %#x: %w", at, d.err)
	}
	if len(t.cies) >= maxRows {
		clear(t.cies)
	}
	t.cies[at] = c
	return c, nil
}

// augment reads what the letters of an augmentation string say (LSB 10.6.1.1.1).
func (c *cie) augment(d *reader, letters string) error {
	if letters == "" {
		return nil
	}
	if letters[0] != 'z' {
		return fmt.Errorf("augmentation %q", letters)
	}
	c.augmented = true
	n := d.uleb()
	end := d.at + n
	if n > d.end-d.at {
		return errTruncated
	}
	for _, l := range letters[1:] {
		switch l {
		case 'R':
			c.enc = encoding(d.byte())
		case 'P':
			d.pointer(encoding(d.byte()))
		case 'L':
			d.byte()
		case 'S':
			c.signal = true
		case 'B': // arm64's pointer authentication
		default: // unknown letters' data is skipped as a whole
			d.at = end
			return d.err
		}
	}
	d.at = end
	return d.err
}
