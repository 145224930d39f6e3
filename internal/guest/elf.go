package guest

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"io"
	"slices"

	"vitrine.dev/vitrine/internal/printable"
)

// Bounds of what is believed of a program's file.
const (
	maxELFHeaders = 4096
	maxELFTable   = 64 << 20 // bytes
)

// A program is what is known of an executable or a library: its functions, by address, and where the file's parts are mapped.
type program struct {
	loads     []elfLoad
	functions []elfFunction
}

type elfLoad struct{ off, vaddr, size uint64 }

type elfFunction struct {
	addr, size uint64
	name       string
}

// readProgram reads a 64-bit program's functions from what there is of its file: the whole symbol table, whose place only the end of the file
// tells, or else the dynamic one, which is loaded with the program.
func readProgram(r io.ReaderAt) (*program, error) {
	var head [64]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, err
	}
	if string(head[:6]) != "\x7fELF\x02\x01" || le.Uint16(head[54:]) != 56 {
		return nil, errors.New("guest: not a 64-bit ELF program")
	}
	n := min(int(le.Uint16(head[56:])), maxELFHeaders)
	raw := make([]byte, n*56)
	if _, err := r.ReadAt(raw, int64(le.Uint64(head[32:]))); err != nil {
		return nil, err
	}
	p := &program{}
	var dynamic elfLoad
	for ; len(raw) > 0; raw = raw[56:] {
		l := elfLoad{le.Uint64(raw[8:]), le.Uint64(raw[16:]), le.Uint64(raw[32:])}
		switch elf.ProgType(le.Uint32(raw)) {
		case elf.PT_LOAD:
			p.loads = append(p.loads, l)
		case elf.PT_DYNAMIC:
			dynamic = l
		}
	}
	if !p.bySections(r, head[:]) {
		p.byDynamic(r, dynamic)
	}
	slices.SortStableFunc(p.functions, func(a, b elfFunction) int { return cmp.Compare(a.addr, b.addr) })
	return p, nil
}

// readTable reads n bytes, or nothing.
func readTable(r io.ReaderAt, off, n uint64) []byte {
	if n == 0 || n > maxELFTable || off > 1<<62 {
		return nil
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, int64(off)); err != nil {
		return nil
	}
	return b
}

// bySections takes .symtab.
func (p *program) bySections(r io.ReaderAt, head []byte) bool {
	n := min(uint64(le.Uint16(head[60:])), maxELFHeaders)
	if le.Uint16(head[58:]) != 64 {
		return false
	}
	sections := readTable(r, le.Uint64(head[40:]), n*64)
	for s := sections; len(s) >= 64; s = s[64:] {
		link := uint64(le.Uint32(s[40:]))
		if elf.SectionType(le.Uint32(s[4:])) != elf.SHT_SYMTAB || link >= n {
			continue
		}
		names := sections[link*64:]
		symbols := readTable(r, le.Uint64(s[24:]), le.Uint64(s[32:]))
		text := readTable(r, le.Uint64(names[24:]), le.Uint64(names[32:]))
		if symbols != nil && text != nil {
			p.add(symbols, text)
			return len(p.functions) > 0
		}
	}
	return false
}

// byDynamic takes the dynamic symbols; their names follow right behind, as all linkers place them.
func (p *program) byDynamic(r io.ReaderAt, d elfLoad) {
	var symbols, text, size uint64
	for raw := readTable(r, d.off, min(d.size, 64<<10)); len(raw) >= 16; raw = raw[16:] {
		v := le.Uint64(raw[8:])
		switch elf.DynTag(le.Uint64(raw)) {
		case elf.DT_SYMTAB:
			symbols = v
		case elf.DT_STRTAB:
			text = v
		case elf.DT_STRSZ:
			size = v
		}
	}
	from, ok := p.offset(symbols)
	to, ok2 := p.offset(text)
	if ok && ok2 && to > from {
		p.add(readTable(r, from, to-from), readTable(r, to, size))
	}
}

// offset is where an address is in the file.
func (p *program) offset(vaddr uint64) (uint64, bool) {
	for _, l := range p.loads {
		if vaddr >= l.vaddr && vaddr-l.vaddr < l.size {
			return l.off + (vaddr - l.vaddr), true
		}
	}
	return 0, false
}

func (p *program) add(symbols, text []byte) {
	for ; len(symbols) >= 24; symbols = symbols[24:] {
		name := uint64(le.Uint32(symbols))
		kind, section := elf.ST_TYPE(symbols[4]), le.Uint16(symbols[6:])
		if kind != elf.STT_FUNC && kind != elf.STT_GNU_IFUNC || section == 0 || name >= uint64(len(text)) {
			continue
		}
		s := text[name:min(name+512, uint64(len(text)))]
		if i := bytes.IndexByte(s, 0); i > 0 {
			p.functions = append(p.functions, elfFunction{le.Uint64(symbols[8:]), le.Uint64(symbols[16:]), printable.Text(string(s[:i]))})
		}
	}
}

// function names the function that holds an offset in the file.
func (p *program) function(off uint64) (string, bool) {
	for _, l := range p.loads {
		if off < l.off || off-l.off >= l.size {
			continue
		}
		addr := l.vaddr + (off - l.off)
		i, found := slices.BinarySearchFunc(p.functions, addr, func(f elfFunction, a uint64) int { return cmp.Compare(f.addr, a) })
		if !found {
			i--
		}
		if i >= 0 && (addr == p.functions[i].addr || addr-p.functions[i].addr < p.functions[i].size) {
			return p.functions[i].name, true
		}
	}
	return "", false
}
