package guest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"

	"vitrine.dev/vitrine/internal/printable"
)

// A Symbol is a line of /proc/kallsyms.
type Symbol struct {
	Addr   uint64
	Type   byte // as nm(1): T, t, D, …
	Name   string
	Module string // empty for the kernel's own
}

// ErrNoSymbols is returned where no symbol table can be found, or none that agrees with itself.
var ErrNoSymbols = errors.New("guest: no kernel symbol table (kallsyms) found")

// maxSymbols bounds what a guest can make us take: today's largest kernels have some 250,000.
const maxSymbols = 1 << 21

// Kallsyms finds and decodes the kernel's own symbol table in image, the bytes of the kernel from the virtual address text on.
//
// Nothing is told by version: distributions bring new layouts to old kernels. The table of tokens is recognised by the
// digits that each holds; all else must fit what has been found (kernel/kallsyms.c, scripts/kallsyms.c; 4.19 to 7.x).
func Kallsyms(image []byte, text uint64) ([]Symbol, error) {
	for from := 0; ; {
		t, next := findTokens(image, from)
		if t == nil {
			return nil, ErrNoSymbols
		}
		from = next
		n, ok := t.findNames(image)
		if !ok {
			continue
		}
		addrs, ok := n.findAddresses(image, t, text, text)
		if !ok {
			continue
		}
		return n.expand(image, t, addrs), nil
	}
}

// tokens is kallsyms_token_table and where it and kallsyms_token_index lie in the image.
type tokens struct {
	start, indexEnd int
	text            [256]string
}

// digits are the tokens '0' to '9', which always stand for themselves: their characters are in every kernel's names.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

// findTokens finds the next token table behind from.
func findTokens(image []byte, from int) (*tokens, int) {
	for {
		i := bytes.Index(image[from:], digits)
		if i < 0 {
			return nil, len(image)
		}
		p := from + i
		from = p + 1
		if t := tokensAt(image, p); t != nil {
			return t, from
		}
	}
}

// tokensAt reads the token table whose token '0' is at p, and demands that the index behind agrees on each of the 256.
func tokensAt(image []byte, p int) *tokens {
	end := p
	if p > len(image) {
		return nil
	}
	for range 256 - '0' {
		n := bytes.IndexByte(image[end:min(end+512, len(image))], 0)
		if n < 0 {
			return nil
		}
		end += n + 1
	}
	for _, align := range []int{8, 4, 2} {
		at := (end + align - 1) &^ (align - 1)
		if at+512 > len(image) {
			return nil
		}
		index := image[at : at+512]
		start := p - int(le.Uint16(index['0'*2:]))
		if start < 0 {
			continue
		}
		t := &tokens{start: start, indexEnd: at + 512}
		if t.read(image, index) {
			return t
		}
	}
	return nil
}

func (t *tokens) read(image, index []byte) bool {
	p := t.start
	for i := range t.text {
		if p != t.start+int(le.Uint16(index[i*2:])) {
			return false
		}
		n := bytes.IndexByte(image[p:], 0)
		if n < 0 {
			return false
		}
		t.text[i] = printable.Text(string(image[p : p+n]))
		p += n + 1
	}
	return true
}

// names is kallsyms_names: compressed names, one behind the other.
type names struct {
	start, count int
	countAt      int  // where kallsyms_num_syms is
	long         bool // a length of 128 and more takes two bytes (73bbb94466fd, v6.1)
}

// findNames finds the markers in front of the tokens (between them may lie seqs_of_names, 3 bytes a symbol), and in front of them names that
// agree with every marker.
func (t *tokens) findNames(image []byte) (names, bool) {
	const (
		minMarkers = 16        // 4,096 symbols: no kernel has fewer
		maxStep    = 256 * 512 // bytes of 256 names
	)
	for at := t.start &^ 3; at >= 4 && at > t.start-64<<20; at -= 4 {
		if le.Uint32(image[at-4:]) != 0 {
			continue
		}
		first := at - 4
		var marks []uint32
		last := uint32(0)
		for p := first; p+4 <= t.start; p += 4 {
			m := le.Uint32(image[p:])
			if p > first && (m < last+256 || m > last+maxStep) {
				break
			}
			marks, last = append(marks, m), m
		}
		if len(marks) < minMarkers {
			continue
		}
		// The run may have taken a word too many: shorter ones are tried too.
		for cut := 0; cut < 4 && len(marks) >= minMarkers; cut++ {
			if n, ok := namesBefore(image, first, marks); ok {
				return n, true
			}
			marks = marks[:len(marks)-1]
		}
	}
	return names{}, false
}

// namesBefore looks for the names that end at the markers, at first.
func namesBefore(image []byte, first int, marks []uint32) (names, bool) {
	lo, hi := (len(marks)-1)*256, len(marks)*256
	top := first - int(marks[len(marks)-1])
	for q := top &^ 3; q >= 8 && q > top-256*1024; q -= 4 {
		for _, back := range []int{4, 8} {
			n := int(le.Uint32(image[q-back:]))
			if n <= lo || n > hi || n > maxSymbols {
				continue
			}
			if back == 8 && le.Uint32(image[q-4:]) != 0 {
				continue
			}
			for _, long := range []bool{true, false} {
				c := names{start: q, count: n, countAt: q - back, long: long}
				if c.fits(image, first, marks) {
					return c, true
				}
			}
		}
	}
	return names{}, false
}

// next gives the compressed name at p and where the one behind begins, or false beyond end.
func (n *names) next(image []byte, p, end int) (name []byte, after int, ok bool) {
	if p >= end {
		return nil, 0, false
	}
	size := int(image[p])
	p++
	if n.long && size&0x80 != 0 {
		if p >= end {
			return nil, 0, false
		}
		size = size&0x7F | int(image[p])<<7
		p++
	}
	if size == 0 || size > end-p {
		return nil, 0, false
	}
	return image[p : p+size], p + size, true
}

func (n *names) fits(image []byte, end int, marks []uint32) bool {
	p := n.start
	for i := range n.count {
		if i%256 == 0 && uint32(p-n.start) != marks[i/256] {
			return false
		}
		var ok bool
		if _, p, ok = n.next(image, p, end); !ok {
			return false
		}
	}
	return end-p < 8 // alignment alone may lie between names and markers
}

// findAddresses tries the places and forms that addresses have had, and takes the first that ascends and begins the kernel at text; text 0
// stands for not known. at is where the image begins, to which place-relative addresses refer.
func (n *names) findAddresses(image []byte, t *tokens, text, at uint64) ([]uint64, bool) {
	size := n.count * 4
	var tries [][2]int // offsets, and relative_base or -1
	for _, align := range []int{8, 4} {
		up := func(x int) int { return (x + align - 1) &^ (align - 1) }
		// Since v6.4 behind the token index (404bad70fcf7); without a base since v7.0 (a081b5789255).
		tries = append(tries, [2]int{up(t.indexEnd), (up(t.indexEnd) + size + 7) &^ 7}, [2]int{up(t.indexEnd), -1})
		// Before that in front of the count.
		base := n.countAt - 8
		tries = append(tries, [2]int{base - up(size), base})
		if align == 8 && n.countAt%8 == 0 {
			tries = append(tries, [2]int{base - size, base})
		}
	}
	for _, try := range tries {
		off, base := try[0], try[1]
		if off < 0 || off+size > len(image) || base+8 > len(image) {
			continue
		}
		for form := range forms {
			if (base < 0) != (form == placeRelative) {
				continue
			}
			var b uint64
			if base >= 0 {
				b = le.Uint64(image[base:])
			}
			begin := text
			if text == 0 && base >= 0 {
				begin = b // the lowest that is not absolute is _text
			}
			if addrs, ok := decodeAddresses(image[off:off+size], form, b, at+uint64(off), begin); ok {
				return addrs, true
			}
		}
	}
	return nil, false
}

// The forms of an entry of kallsyms_offsets.
const (
	absolutePerCPU = iota // not negative: the address itself; negative: base - 1 - entry (2213e9a66bb8, v4.6)
	unsignedOffset        // base + entry (v6.15, per-CPU symbols no longer at 0)
	placeRelative         // the entry's own address + entry (v7.0)
	forms
)

func decodeAddresses(table []byte, form int, base, at, text uint64) ([]uint64, bool) {
	addrs := make([]uint64, 0, len(table)/4)
	last, begins := uint64(0), false
	for i := 0; i+4 <= len(table); i += 4 {
		e := le.Uint32(table[i:])
		var a uint64
		switch form {
		case absolutePerCPU:
			if a = uint64(e); int32(e) < 0 {
				a = base - 1 - uint64(int64(int32(e)))
			}
		case unsignedOffset:
			a = base + uint64(e)
		case placeRelative:
			a = at + uint64(i) + uint64(int64(int32(e)))
		}
		if a < last {
			return nil, false
		}
		begins = begins || a == text || text == 0 && a%(2<<20) == 0
		addrs, last = append(addrs, a), a
	}
	return addrs, begins
}

func (n *names) expand(image []byte, t *tokens, addrs []uint64) []Symbol {
	// All names go into one string: a hundred thousand of their own would take longer to make than all else.
	text := make([]byte, 0, 24*n.count)
	ends := make([]int, 0, n.count)
	p := n.start
	for range n.count {
		name, after, ok := n.next(image, p, len(image))
		if !ok {
			break
		}
		for _, c := range name {
			text = append(text, t.text[c]...)
		}
		ends = append(ends, len(text))
		p = after
	}
	names, start := string(text), 0
	all := make([]Symbol, 0, n.count)
	for i, end := range ends {
		if end-start > 1 {
			all = append(all, Symbol{Addr: addrs[i], Type: names[start], Name: names[start+1 : end]})
		}
		start = end
	}
	return all
}

// Symbols are a guest's, in order of address.
type Symbols struct {
	all    []Symbol
	own    []Symbol          // the kernel's own
	byName map[string]uint32 // the first of each name in own
	others map[string]Symbol // the first of each name of the modules'
}

// NewSymbols sorts the kernel's own symbols, the first of an address staying first.
func NewSymbols(own []Symbol) *Symbols {
	sortSymbols(own)
	s := &Symbols{all: own, own: own, byName: make(map[string]uint32, len(own))}
	for i := range own {
		if _, ok := s.byName[own[i].Name]; !ok {
			s.byName[own[i].Name] = uint32(i)
		}
	}
	return s
}

func sortSymbols(all []Symbol) {
	byAddress := func(a, b Symbol) int { return cmp.Compare(a.Addr, b.Addr) }
	if !slices.IsSortedFunc(all, byAddress) {
		slices.SortStableFunc(all, byAddress)
	}
}

// with is the same symbols and those of modules, in place of any that there were.
func (s *Symbols) with(modules []Symbol) *Symbols {
	modules = slices.Clone(modules)
	sortSymbols(modules)
	n := &Symbols{own: s.own, byName: s.byName, others: make(map[string]Symbol, len(modules))}
	n.all = make([]Symbol, 0, len(s.own)+len(modules))
	own := s.own
	for _, m := range modules {
		if _, ok := n.others[m.Name]; !ok {
			n.others[m.Name] = m
		}
		i := 0
		if len(own) > 0 && own[len(own)-1].Addr <= m.Addr { // most often: modules are behind the kernel
			i = len(own)
		} else {
			i = sort.Search(len(own), func(i int) bool { return own[i].Addr > m.Addr })
		}
		n.all = append(append(n.all, own[:i]...), m)
		own = own[i:]
	}
	n.all = append(n.all, own...)
	return n
}

// All are the symbols in order of address; the caller must not change them.
func (s *Symbols) All() []Symbol { return s.all }

// Lookup finds a symbol by name, the kernel's own first.
func (s *Symbols) Lookup(name string) (Symbol, error) {
	if i, ok := s.byName[name]; ok {
		return s.own[i], nil
	}
	if m, ok := s.others[name]; ok {
		return m, nil
	}
	return Symbol{}, fmt.Errorf("guest: no symbol %q", name)
}

// At finds the symbol that holds addr: the last at or below it; of several at one address the first, as the kernel does.
// ok is false below the first and more than 4 MiB behind the last.
func (s *Symbols) At(addr uint64) (sym Symbol, ok bool) {
	i := sort.Search(len(s.all), func(i int) bool { return s.all[i].Addr > addr }) - 1
	if i < 0 || addr-s.all[i].Addr > 4<<20 {
		return Symbol{}, false
	}
	for i > 0 && s.all[i-1].Addr == s.all[i].Addr {
		i--
	}
	return s.all[i], true
}

// Range is At, with the symbol's size: up to the next symbol behind it. Of a function of the kernel or a module that is the last, it is not known: 0.
func (s *Symbols) Range(addr uint64) (sym Symbol, size uint64, ok bool) {
	if sym, ok = s.At(addr); !ok {
		return sym, 0, false
	}
	i := sort.Search(len(s.all), func(i int) bool { return s.all[i].Addr > addr })
	for ; i < len(s.all) && s.all[i].Module != sym.Module; i++ {
	}
	if i < len(s.all) {
		size = s.all[i].Addr - sym.Addr
	}
	return sym, size, true
}
