package program

import (
	"bytes"
	"debug/elf"
	"debug/gosym"

	"github.com/ianlancetaylor/demangle"
)

// A section is what its header says of it.
type section struct {
	kind            elf.SectionType
	link            uint32
	name            uint32
	addr, off, size uint64
}

// sections are those of a file, where their headers can be read.
type sections struct {
	all   []section
	names []byte
}

func (f *File) sections(head []byte) (s sections) {
	n := min(uint64(le.Uint16(head[60:])), maxHeaders)
	if le.Uint16(head[58:]) != 64 {
		return s
	}
	for raw := f.table(le.Uint64(head[40:]), n*64, maxTable); len(raw) >= 64; raw = raw[64:] {
		s.all = append(s.all, section{
			name: le.Uint32(raw), kind: elf.SectionType(le.Uint32(raw[4:])), link: le.Uint32(raw[40:]),
			addr: le.Uint64(raw[16:]), off: le.Uint64(raw[24:]), size: le.Uint64(raw[32:]),
		})
	}
	if i := int(le.Uint16(head[62:])); i < len(s.all) {
		s.names = f.table(s.all[i].off, s.all[i].size, maxTable)
	}
	return s
}

// named finds a section by its name.
func (s sections) named(name string) (section, bool) {
	for _, sec := range s.all {
		if uint64(sec.name) < uint64(len(s.names)) {
			if rest, ok := bytes.CutPrefix(s.names[sec.name:], []byte(name)); ok && len(rest) > 0 && rest[0] == 0 {
				return sec, true
			}
		}
	}
	return section{}, false
}

// bySymtab takes .symtab.
func (f *File) bySymtab(s sections) bool {
	for _, sec := range s.all {
		if sec.kind != elf.SHT_SYMTAB || uint64(sec.link) >= uint64(len(s.all)) {
			continue
		}
		text := s.all[sec.link]
		if symbols, names := f.table(sec.off, sec.size, maxTable), f.table(text.off, text.size, maxTable); symbols != nil && names != nil {
			f.add(symbols, names)
			return len(f.Functions) > 0
		}
	}
	return false
}

// byGo takes the table of functions that the runtime of a Go program itself uses: it is there where symbols were stripped.
func (f *File) byGo(s sections) bool {
	tab, ok := s.named(".gopclntab")
	text, ok2 := s.named(".text")
	if !ok || !ok2 {
		return false
	}
	b := f.table(tab.off, tab.size, maxPCTable)
	if b == nil {
		return false
	}
	t, err := goTable(b, text.addr)
	if err != nil || t == nil {
		return false
	}
	for i := range t.Funcs {
		fn := &t.Funcs[i]
		if fn.Sym == nil || fn.End < fn.Entry || len(f.Functions) >= len(b)/8 {
			continue
		}
		f.Functions = append(f.Functions, Function{Addr: fn.Entry, Size: fn.End - fn.Entry, Name: fn.Name[:min(len(fn.Name), maxName)]})
	}
	return len(f.Functions) > 0
}

// goTable is gosym's reading, which may panic on a table that lies.
func goTable(b []byte, text uint64) (t *gosym.Table, err error) {
	defer func() {
		if recover() != nil {
			t = nil
		}
	}()
	return gosym.NewTable(nil, gosym.NewLineTable(b, text))
}

// byDynamic takes the dynamic symbols; their names follow right behind, as all linkers place them.
func (f *File) byDynamic(d Load) {
	var symbols, text, size uint64
	for raw := f.table(d.Offset, min(d.Size, 64<<10), maxTable); len(raw) >= 16; raw = raw[16:] {
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
	from, ok := f.offset(symbols)
	to, ok2 := f.offset(text)
	if ok && ok2 && to > from {
		f.add(f.table(from, to-from, maxTable), f.table(to, size, maxTable))
	}
}

// add takes functions from a symbol table and its names.
func (f *File) add(symbols, names []byte) {
	for ; len(symbols) >= 24; symbols = symbols[24:] {
		name := uint64(le.Uint32(symbols))
		kind, bind, index := elf.ST_TYPE(symbols[4]), elf.ST_BIND(symbols[4]), elf.SectionIndex(le.Uint16(symbols[6:]))
		addr, size := le.Uint64(symbols[8:]), le.Uint64(symbols[16:])
		code := kind == elf.STT_FUNC || kind == elf.STT_GNU_IFUNC || kind == elf.STT_NOTYPE && bind == elf.STB_GLOBAL && f.executable(addr)
		if !code || index == elf.SHN_UNDEF || index == elf.SHN_ABS || name >= uint64(len(names)) {
			continue
		}
		s, _, _ := bytes.Cut(names[name:min(name+maxName, uint64(len(names)))], []byte{0})
		if len(s) > 0 {
			f.Functions = append(f.Functions, Function{Addr: addr, Size: size, Name: string(s), rank: rank(s, bind, size)})
		}
	}
}

// executable tells whether code is loaded at an address: labels of assembly have no type.
func (f *File) executable(addr uint64) bool {
	l, ok := f.load(addr)
	return ok && l.Exec
}

// rank says which of several names of an address is shown: that of something with a size, rather the one that others may use than a weak or local one, and
// rather without underscores in front. (As perf does, tools/perf/util/symbol.c choose_best_symbol.)
func rank(name []byte, bind elf.SymBind, size uint64) (r uint8) {
	if size > 0 {
		r += 8
	}
	switch bind {
	case elf.STB_GLOBAL:
		r += 4
	case elf.STB_LOCAL:
		r += 2
	}
	if name[0] != '_' {
		r++
	}
	return r
}

// Demangle gives the name that a programmer of C++, Rust or D wrote, without the parameters' types; other names stay as they are.
func Demangle(name string) string {
	if len(name) > maxName {
		return name
	}
	return demangle.Filter(name, demangle.NoParams, demangle.MaxLength(10))
}
