package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A form says how a kernel lays its symbol table out.
type form struct {
	name      string
	behind    bool // addresses behind the tokens (v6.4), else in front of the count
	seqs      bool // seqs_of_names between markers and tokens (v6.2)
	long      bool // lengths of two bytes
	addresses int
	align     int
	words     int // bytes of a marker and of the count
}

var allForms = []form{
	{"4.19", false, false, false, absolutePerCPU, 8, 8},
	{"5.10", false, false, false, absolutePerCPU, 8, 4},
	{"6.1 with seqs", false, true, true, absolutePerCPU, 8, 4},
	{"6.12", true, true, true, absolutePerCPU, 8, 4},
	{"6.18", true, true, true, unsignedOffset, 8, 4},
	{"7.3", true, true, true, placeRelative, 4, 4},
}

const testText = 0xffffffff9a200000

// testSymbols are count symbols, in order of address; the first are per-CPU where the form has those at 0.
func testSymbols(count int, f form) []Symbol {
	all := make([]Symbol, 0, count)
	if f.addresses == absolutePerCPU {
		all = append(all, Symbol{Addr: 0, Type: 'A', Name: "fixed_percpu_data"}, Symbol{Addr: 0x1fb80, Type: 'A', Name: "current_task"})
	}
	for i := 0; len(all) < count; i++ {
		name := fmt.Sprintf("function_%d", i)
		switch i {
		case 0:
			name = "_text"
		case 7:
			name = "a_very_long_name_" + strings.Repeat("x", 150)
			if !f.long {
				name = name[:120]
			}
		}
		all = append(all, Symbol{Addr: testText + uint64(i)*48, Type: 'T', Name: name})
	}
	return all
}

// build writes a kernel image with the table of all, at some odd place.
func build(all []Symbol, f form) []byte {
	le := binary.LittleEndian
	var b bytes.Buffer
	pad := func(n int) {
		for b.Len()%n != 0 {
			b.WriteByte(0)
		}
	}
	b.Write(bytes.Repeat([]byte{0xCC, 1, 2, 3}, 1000))
	pad(f.align)
	// Tokens: each character for itself, and 0x80 for "function_".
	token := func(c int) string {
		if c == 0x80 {
			return "function_"
		}
		if c >= 0x20 && c < 0x7F {
			return string(rune(c))
		}
		return "?"
	}
	compress := func(s string) []byte { return bytes.ReplaceAll([]byte(s), []byte("function_"), []byte{0x80}) }

	addresses := func() {
		pad(f.align)
		at := uint64(testText) + uint64(b.Len())
		for i, s := range all {
			var e uint32
			switch {
			case f.addresses == unsignedOffset:
				e = uint32(s.Addr - testText)
			case f.addresses == placeRelative:
				e = uint32(s.Addr - (at + uint64(i)*4))
			case s.Addr < 1<<31:
				e = uint32(s.Addr)
			default:
				e = uint32(testText - 1 - s.Addr)
			}
			b.Write(le.AppendUint32(nil, e))
		}
		if f.addresses != placeRelative {
			pad(8)
			b.Write(le.AppendUint64(nil, testText))
		}
	}
	if !f.behind {
		addresses()
	}
	pad(f.align)
	word := func(v uint32) {
		b.Write(le.AppendUint32(nil, v))
		b.Write(make([]byte, f.words-4))
	}
	word(uint32(len(all)))
	pad(f.align)
	start := b.Len()
	var marks []uint32
	for i, s := range all {
		if i%256 == 0 {
			marks = append(marks, uint32(b.Len()-start))
		}
		name := compress(string(s.Type) + s.Name)
		if f.long && len(name) > 127 {
			b.Write([]byte{byte(len(name)&0x7F | 0x80), byte(len(name) >> 7)})
		} else {
			b.WriteByte(byte(len(name)))
		}
		b.Write(name)
	}
	pad(f.align)
	for _, m := range marks {
		word(m)
	}
	pad(f.align)
	if f.seqs && !f.behind {
		for i := range all {
			b.Write([]byte{byte(i >> 16), byte(i >> 8), byte(i)})
		}
		pad(f.align)
	}
	var index []uint16
	first := b.Len()
	for c := range 256 {
		index = append(index, uint16(b.Len()-first))
		b.WriteString(token(c))
		b.WriteByte(0)
	}
	pad(f.align)
	for _, i := range index {
		b.Write(le.AppendUint16(nil, i))
	}
	if f.behind {
		addresses()
	}
	b.Write(bytes.Repeat([]byte{0x90}, 5000))
	return b.Bytes()
}

func TestKallsymsOfEveryForm(t *testing.T) {
	for _, f := range allForms {
		for _, count := range []int{5000, 5120, 5121} { // markers every 256
			want := testSymbols(count, f)
			got, err := Kallsyms(build(want, f), testText)
			if err != nil {
				t.Errorf("%s, %d symbols: %v", f.name, count, err)
				continue
			}
			if all := slices.Collect(got.All()); !slices.Equal(all, want) {
				t.Errorf("%s: %d symbols, the last %v, want %d, the last %v", f.name, len(all), all[len(all)-1], len(want), want[len(want)-1])
			}
			for _, i := range []int{0, count / 2, count - 1} {
				if s, err := got.Lookup(want[i].Name); err != nil || s != want[i] {
					t.Errorf("%s: %s is %v, %v, want %v", f.name, want[i].Name, s, err, want[i])
				}
			}
		}
	}
}

func TestKallsymsThatDisagreeAreNotBelieved(t *testing.T) {
	f := allForms[3]
	image := build(testSymbols(5000, f), f)
	if _, err := Kallsyms(image, testText+1<<21); !errors.Is(err, ErrNoSymbols) {
		t.Errorf("with another base: %v", err)
	}
	if _, err := Kallsyms(image[:len(image)-8000], testText); !errors.Is(err, ErrNoSymbols) {
		t.Errorf("cut off: %v", err)
	}
	if _, err := Kallsyms(make([]byte, 1<<20), testText); !errors.Is(err, ErrNoSymbols) {
		t.Errorf("zeros: %v", err)
	}
}

func TestSymbolAt(t *testing.T) {
	s := NewSymbols([]Symbol{{Addr: 0x2000, Name: "b"}, {Addr: 0x1000, Name: "a"}, {Addr: 0x1000, Name: "alias"}})
	for _, c := range []struct {
		addr uint64
		want string
	}{{0xFFF, ""}, {0x1000, "a"}, {0x1FFF, "a"}, {0x2000, "b"}, {0x2000 + 5<<20, ""}} {
		if got, ok := s.At(c.addr); got.Name != c.want || ok != (c.want != "") {
			t.Errorf("At(%#x) = %q, %v, want %q", c.addr, got.Name, ok, c.want)
		}
	}
}

func FuzzKallsyms(f *testing.F) {
	for _, form := range allForms {
		f.Add(build(testSymbols(4500, form), form)[3800:])
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		all, err := Kallsyms(image, testText)
		if err == nil && all.Len() > len(image) {
			t.Errorf("%d symbols from %d bytes", all.Len(), len(image))
		}
	})
}
