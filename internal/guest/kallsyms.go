package guest

import (
	"bytes"
	"errors"

	"vitrine.dev/vitrine/internal/printable"
)

// ErrNoSymbols is returned where no symbol table can be found, or none that agrees with itself.
var ErrNoSymbols = errors.New("guest: no kernel symbol table (kallsyms) found")

// Bounds of what a guest can make us take: today's largest kernels have some 250,000 symbols, whose names are 6 MB.
const (
	maxSymbols = 1 << 21
	maxName    = 512       // KSYM_NAME_LEN
	maxNames   = 128 << 20 // bytes of all names
)

// A span is a part of the kernel's image: where it begins, and its size, in bytes.
type span struct{ off, size uint64 }

// A decoded is the kernel's symbol table, and where in the image it was.
type decoded struct {
	*table
	parts  []span // all that it was made of, but the base
	index  span   // the index of tokens, which is among parts: 512 bytes
	baseAt uint64 // where kallsyms_relative_base is, 0: there is none
	base   uint64 // its distance from _text
}

// Kallsyms finds and decodes the kernel's own symbol table in image, the bytes of the kernel from the virtual address text on.
//
// Nothing is told by version: distributions bring new layouts to old kernels. The table of tokens is recognised by the
// digits that each holds; all else must fit what has been found (kernel/kallsyms.c, scripts/kallsyms.c; 4.19 to 7.x).
func Kallsyms(image []byte, text uint64) (*Symbols, error) {
	d, err := findKallsyms(wholeImage(image), text)
	if err != nil {
		return nil, err
	}
	d.table.index()
	return &Symbols{own: d.table}, nil
}

// An image is the kernel's, from _text on.
type image interface {
	size() uint64
	// view gives n bytes at off, or fewer where the image ends. They may change as the guest goes on, and are valid until the next call.
	view(off, n uint64) []byte
	// read is view, with bytes that are the caller's.
	read(off, n uint64) []byte
}

// wholeImage is one in memory.
type wholeImage []byte

func (w wholeImage) size() uint64 { return uint64(len(w)) }

func (w wholeImage) view(off, n uint64) []byte {
	if off >= uint64(len(w)) {
		return nil
	}
	return w[off:min(off+n, uint64(len(w)))]
}

func (w wholeImage) read(off, n uint64) []byte { return w.view(off, n) }

// Bounds of how much is looked at.
const (
	maxDigits  = 1024    // places that look like a token table
	maxEffort  = 1 << 28 // steps of the search for names
	closeAhead = 10 << 20
	closeBack  = 4 << 20
	farAhead   = 64 << 20
)

// findKallsyms searches an image.
func findKallsyms(m image, text uint64) (*decoded, error) {
	const step = 1 << 20
	effort := maxEffort
	tries := 0
	for off := uint64(0); off < m.size(); off += step {
		for p := uint64(0); tries < maxDigits; tries++ {
			i := bytes.Index(m.view(off+p, step+uint64(len(digits))-1-p), digits)
			if i < 0 {
				break
			}
			at := off + p + uint64(i)
			p += uint64(i) + 1
			from := (at - min(at, 16<<10)) &^ 4095 // alignment counts
			if tokensAt(m.read(from, 32<<10), int(at-from)) == nil {
				continue
			}
			for _, ahead := range []uint64{closeAhead, farAhead} {
				from := (at - min(at, ahead)) &^ 4095
				if d := decodeAround(m.read(from, at-from+closeBack), int(at-from), text, from, &effort); d != nil {
					return d, nil
				}
				if from == 0 || effort <= 0 {
					break
				}
			}
		}
	}
	return nil, ErrNoSymbols
}

// decodeAround decodes the table whose token '0' is at p in a window of the image that begins at from.
func decodeAround(window []byte, p int, text, from uint64, effort *int) *decoded {
	t := tokensAt(window, p)
	if t == nil {
		return nil
	}
	t.effort = effort
	n, ok := t.findNames(window)
	if !ok {
		return nil
	}
	a, ok := n.findAddresses(window, t, text, from)
	if !ok {
		return nil
	}
	d := &decoded{table: n.expand(window, t, a), index: span{from + uint64(t.indexEnd) - 512, 512}}
	d.parts = []span{
		{from + uint64(n.countAt), uint64(t.indexEnd - n.countAt)},
		{from + uint64(a.off), uint64(4 * n.count)},
	}
	if a.baseAt >= 0 {
		d.baseAt, d.base = from+uint64(a.baseAt), a.base-text
	}
	d.text = text
	return d
}

// tokens is kallsyms_token_table and where it and kallsyms_token_index lie in the image.
type tokens struct {
	start, indexEnd int
	text            [256]string
	effort          *int // what may still be spent on the search
}

// digits are the tokens '0' to '9', which always stand for themselves: their characters are in every kernel's names.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

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
// agree with every marker. Markers had 8 bytes up to v4.19 (80ffbaa5b1bd), and have 4.
func (t *tokens) findNames(image []byte) (names, bool) {
	for _, width := range []int{4, 8} {
		if n, ok := t.findMarkers(image, width); ok {
			return n, true
		}
	}
	return names{}, false
}

func (t *tokens) findMarkers(image []byte, width int) (names, bool) {
	const (
		minMarkers = 16        // 4,096 symbols: no kernel has fewer
		maxStep    = 256 * 512 // bytes of 256 names
	)
	word := func(p int) uint64 {
		if width == 8 {
			return le.Uint64(image[p:])
		}
		return uint64(le.Uint32(image[p:]))
	}
	for first := (t.start - width) &^ (width - 1); first >= 0 && *t.effort > 0; first -= width {
		*t.effort--
		if word(first) != 0 {
			continue
		}
		var marks []uint32
		last := uint64(0)
		for p := first; p+width <= t.start; p += width {
			m := word(p)
			if p > first && (m < last+256 || m > last+maxStep) {
				break
			}
			marks, last = append(marks, uint32(m)), m
		}
		if len(marks) < minMarkers {
			continue
		}
		// The run may have taken a word too many: shorter ones are tried too.
		for cut := 0; cut < 4 && len(marks) >= minMarkers; cut++ {
			if n, ok := t.namesBefore(image, first, marks); ok {
				return n, true
			}
			marks = marks[:len(marks)-1]
		}
	}
	return names{}, false
}

// namesBefore looks for the names that end at the markers, at first.
func (t *tokens) namesBefore(image []byte, first int, marks []uint32) (names, bool) {
	lo, hi := (len(marks)-1)*256, len(marks)*256
	top := first - int(marks[len(marks)-1])
	for q := top &^ 3; q >= 8 && q > top-256*1024 && *t.effort > 0; q -= 4 {
		*t.effort--
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
				*t.effort -= n / 16
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

// addresses is kallsyms_offsets, understood.
type addresses struct {
	off    int
	baseAt int // where kallsyms_relative_base is, or -1
	base   uint64
	raw    []byte // as in a table
	fixed  int
}

// findAddresses tries the places and forms that addresses have had, and takes the first that ascends and begins the kernel at text. from is where
// the window begins in the kernel's image: place-relative addresses refer to their place.
func (n *names) findAddresses(image []byte, t *tokens, text, from uint64) (addresses, bool) {
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
		a := addresses{off: try[0], baseAt: try[1]}
		if a.off < 0 || a.off+size > len(image) || a.baseAt+8 > len(image) {
			continue
		}
		for form := range forms {
			if (a.baseAt < 0) != (form == placeRelative) {
				continue
			}
			if a.baseAt >= 0 {
				a.base = le.Uint64(image[a.baseAt:])
			}
			if a.decode(image[a.off:a.off+size], form, text+from+uint64(a.off), text) {
				return a, true
			}
		}
	}
	return addresses{}, false
}

// The forms of an entry of kallsyms_offsets.
const (
	absolutePerCPU = iota // not negative: the address itself; negative: base - 1 - entry (2213e9a66bb8, v4.6)
	unsignedOffset        // base + entry (v6.15, per-CPU symbols no longer at 0)
	placeRelative         // the entry's own address + entry (v7.0)
	forms
)

// decode fills raw and fixed from a table that is at the virtual address at.
func (a *addresses) decode(table []byte, form int, at, text uint64) bool {
	raw := make([]byte, 0, 2*len(table))
	last, begins := uint64(0), false
	a.fixed = 0
	for i := 0; i+4 <= len(table); i += 4 {
		e := le.Uint32(table[i:])
		v, moves := uint64(e), true
		switch form {
		case absolutePerCPU:
			if moves = int32(e) < 0; moves {
				v = a.base - 1 - uint64(int64(int32(e)))
			}
		case unsignedOffset:
			v = a.base + uint64(e)
		case placeRelative:
			v = at + uint64(i) + uint64(int64(int32(e)))
		}
		if v < last {
			return false
		}
		begins, last = begins || v == text, v
		if moves {
			v -= text
		} else if a.fixed++; a.fixed != i/4+1 {
			return false
		}
		raw = le.AppendUint64(raw, v)
	}
	a.raw = raw
	return begins
}

// expand decompresses the names. One that no kernel would have becomes "?".
func (n *names) expand(image []byte, t *tokens, a addresses) *table {
	text := make([]byte, 0, 32*n.count)
	ends := make([]byte, 0, 4*n.count)
	p := n.start
	for range n.count {
		name, after, ok := n.next(image, p, len(image))
		if !ok {
			break
		}
		start := len(text)
		for _, c := range name {
			text = append(text, t.text[c]...)
			if len(text)-start > maxName || start > maxNames {
				text = text[:start]
				break
			}
		}
		if len(text) == start {
			text = append(text, '?')
		}
		ends, p = le.AppendUint32(ends, uint32(len(text))), after
	}
	return &table{n: len(ends) / 4, fixed: a.fixed, addrs: a.raw, ends: ends, names: text}
}
