package guest

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"sort"
)

// A Symbol is a line of /proc/kallsyms.
type Symbol struct {
	Addr   uint64
	Type   byte // as nm(1): T, t, D, …
	Name   string
	Module string // empty for the kernel's own
}

// A table holds the kernel's own symbols in order of address, in a form that can lie in a file: little endian, nothing to be unpacked.
type table struct {
	n      int
	text   uint64 // where the kernel is: _text
	fixed  int    // how many of the first do not move with the kernel
	addrs  []byte // 8 bytes each; of what moves, the distance from text
	ends   []byte // 4 bytes each: where its letter and name end in names
	names  []byte
	byName []byte // open hash table of 4-byte indices + 1; a power of two of slots
}

// at is a symbol's address.
func (t *table) at(i int) uint64 {
	a := le.Uint64(t.addrs[8*i:])
	if i >= t.fixed {
		a += t.text
	}
	return a
}

// letters are a symbol's type and name.
func (t *table) letters(i int) []byte {
	from, to := uint32(0), le.Uint32(t.ends[4*i:])
	if i > 0 {
		from = le.Uint32(t.ends[4*i-4:])
	}
	if from >= to || uint64(to) > uint64(len(t.names)) { // only in a damaged file
		return []byte("?")
	}
	return t.names[from:to]
}

func (t *table) symbol(i int) Symbol {
	s := t.letters(i)
	return Symbol{Addr: t.at(i), Type: s[0], Name: string(s[1:])}
}

// above is the index of the first symbol above addr.
func (t *table) above(addr uint64) int {
	return sort.Search(t.n, func(i int) bool { return t.at(i) > addr })
}

// FNV-1a, by which symbols and types are found by their names.
func hashName[S string | []byte](s S) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}

// hashIndex makes a hash table of n names; of equal names same decides which stays: true leaves the one that is there.
func hashIndex(n int, name func(int) []byte, stays func(old, new int) bool) []byte {
	slots := uint32(16)
	for slots < uint32(2*n) {
		slots *= 2
	}
	b, hashes := make([]byte, 4*slots), make([]uint32, slots)
	for i := range n {
		s := name(i)
		if len(s) == 0 {
			continue
		}
		h := hashName(s)
		for p := h & (slots - 1); ; p = (p + 1) & (slots - 1) {
			old := le.Uint32(b[4*p:])
			if old == 0 || hashes[p] == h && string(name(int(old-1))) == string(s) {
				if old == 0 || !stays(int(old-1), i) {
					le.PutUint32(b[4*p:], uint32(i+1))
					hashes[p] = h
				}
				break
			}
		}
	}
	return b
}

// hashLookup finds a name in what hashIndex made.
func hashLookup(b []byte, n int, want string, name func(int) []byte) (int, bool) {
	slots := uint32(len(b) / 4)
	if slots == 0 {
		return 0, false
	}
	p := hashName(want) & (slots - 1)
	for range slots {
		i := le.Uint32(b[4*p:])
		if i == 0 || i > uint32(n) {
			return 0, false
		}
		if string(name(int(i-1))) == want {
			return int(i - 1), true
		}
		p = (p + 1) & (slots - 1)
	}
	return 0, false
}

// index makes byName. The first of a name wins.
func (t *table) index() {
	t.byName = hashIndex(t.n, t.name, func(_, _ int) bool { return true })
}

func (t *table) name(i int) []byte { return t.letters(i)[1:] }

// Symbols are a guest's.
type Symbols struct {
	own *table

	load    func() []Symbol // reads the modules' symbols
	loaded  bool
	modules []Symbol // in order of address
	byName  map[string]int
}

// NewSymbols makes the symbols of a kernel and of its modules; the first of an address stays first.
func NewSymbols(all []Symbol) *Symbols {
	var own, modules []Symbol
	for _, s := range all {
		if s.Module == "" {
			own = append(own, s)
		} else {
			modules = append(modules, s)
		}
	}
	sortSymbols(own)
	t := &table{n: len(own), fixed: len(own)}
	for _, s := range own {
		t.addrs = le.AppendUint64(t.addrs, s.Addr)
		t.names = append(append(t.names, s.Type), s.Name...)
		t.ends = le.AppendUint32(t.ends, uint32(len(t.names)))
	}
	t.index()
	s := &Symbols{own: t, loaded: true}
	s.setModules(modules)
	return s
}

func sortSymbols(all []Symbol) {
	slices.SortStableFunc(all, func(a, b Symbol) int { return cmp.Compare(a.Addr, b.Addr) })
}

// ofModules gives the modules' symbols, read when first needed.
func (s *Symbols) ofModules() []Symbol {
	if !s.loaded && s.load != nil {
		s.loaded = true
		s.setModules(s.load())
	}
	return s.modules
}

func (s *Symbols) setModules(all []Symbol) {
	sortSymbols(all)
	s.modules, s.byName = all, make(map[string]int, len(all))
	for i, m := range all {
		if _, ok := s.byName[m.Name]; !ok {
			s.byName[m.Name] = i
		}
	}
}

// All gives the symbols, the modules' behind the kernel's own, each in order of address.
func (s *Symbols) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := range s.own.n {
			if !yield(s.own.symbol(i)) {
				return
			}
		}
		for _, m := range s.ofModules() {
			if !yield(m) {
				return
			}
		}
	}
}

// Len is how many symbols the kernel itself has.
func (s *Symbols) Len() int { return s.own.n }

// ownAddress is where a symbol of the kernel's own is, or 0.
func (s *Symbols) ownAddress(name string) uint64 {
	if i, ok := hashLookup(s.own.byName, s.own.n, name, s.own.name); ok {
		return s.own.at(i)
	}
	return 0
}

// Lookup finds a symbol by name, the kernel's own first.
func (s *Symbols) Lookup(name string) (Symbol, error) {
	if i, ok := hashLookup(s.own.byName, s.own.n, name, s.own.name); ok {
		return s.own.symbol(i), nil
	}
	all := s.ofModules()
	if i, ok := s.byName[name]; ok {
		return all[i], nil
	}
	return Symbol{}, fmt.Errorf("guest: no symbol %q", name)
}

// maxReach is how far behind the last symbol an address may be and still be taken for its.
const maxReach = 4 << 20

// At finds the symbol that holds addr: the last at or below it; of several at one address the first, as the kernel does.
// ok is false below the first and more than 4 MiB behind the last.
func (s *Symbols) At(addr uint64) (sym Symbol, ok bool) {
	sym, _, ok = s.Range(addr)
	return sym, ok
}

// Range is At, with the symbol's size: up to the next symbol of the kernel, or of the same module, behind it. Of the last one it is not known: 0.
func (s *Symbols) Range(addr uint64) (sym Symbol, size uint64, ok bool) {
	next := s.own.above(addr)
	i := next - 1
	if i >= 0 && addr-s.own.at(i) <= maxReach {
		for i > 0 && s.own.at(i-1) == s.own.at(i) {
			i--
		}
		sym, ok = s.own.symbol(i), true
		if next < s.own.n {
			size = s.own.at(next) - sym.Addr
		}
	}
	if ok && next < s.own.n && size < maxReach {
		return sym, size, true // amid the kernel's: no module is there
	}
	all := s.ofModules()
	j := sort.Search(len(all), func(j int) bool { return all[j].Addr > addr })
	next = j
	if j--; j < 0 || addr-all[j].Addr > maxReach || ok && all[j].Addr <= sym.Addr {
		return sym, size, ok
	}
	for j > 0 && all[j-1].Addr == all[j].Addr {
		j--
	}
	sym, size = all[j], 0
	for ; next < len(all); next++ {
		if all[next].Module == sym.Module {
			size = all[next].Addr - sym.Addr
			break
		}
	}
	return sym, size, true
}
