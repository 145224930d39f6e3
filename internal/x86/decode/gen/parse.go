package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A row is one line of the table.
type row struct {
	line  int
	op    string
	args  []string
	attrs []string // all but the constraints below
	key
	features []string
}

// A key says which instructions a row is for: a set of values for each thing a decoder can branch on, as a bit mask.
type key struct {
	opmap           int
	opcodes         [2]int // first and last
	pfx             uint8  // bits 0-3: none, 66, F3, F2
	mode            uint8  // bit 0: 16 and 32, bit 1: 64
	mod             uint8  // bit 0: memory, bit 1: register
	reg, rm         uint8
	w, b, l         uint8
	modrm, anyModrm bool
}

var prefixes = map[string]uint8{"np": 1, "66": 2, "f3": 4, "f2": 8, "npo": 3}

var opmaps = map[string]int{"0f": 1, "0f38": 2, "0f3a": 3}

// parse reads the table. Row order is kept.
func parse(src string) ([]row, error) {
	var rows []row
	for i, line := range strings.Split(src, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		r, err := parseRow(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("table.txt:%d: %w", i+1, err)
		}
		r.line = i + 1
		rows = append(rows, r.lengths()...)
	}
	return rows, nil
}

// lengths parts a row of integer AVX in two: with 256 bits it is AVX2's.
func (r row) lengths() []row {
	if !r.has("int") {
		return []row{r}
	}
	r.attrs = slices.DeleteFunc(slices.Clone(r.attrs), func(a string) bool { return a == "int" })
	long := r
	r.l, long.l = 1, 2
	long.features = append(slices.Clone(long.features), "avx2")
	return []row{r, long}
}

func parseRow(f []string) (row, error) {
	if len(f) < 2 {
		return row{}, fmt.Errorf("need an encoding and an operation")
	}
	r := row{op: f[1]}
	if err := r.encoding(f[0]); err != nil {
		return r, err
	}
	if len(f) > 2 && f[2] != "-" {
		r.args = strings.Split(f[2], ",")
	}
	for _, a := range f[min(3, len(f)):] {
		switch {
		case a == "m64":
			r.mode = 2
		case a == "n64":
			r.mode = 1
		case a == "w0" || a == "w1":
			r.w = 1 << (a[1] - '0')
		case a == "b0" || a == "b1":
			r.b = 1 << (a[1] - '0')
		case a == "l0" || a == "l1":
			r.l = 1 << (a[1] - '0')
		case a[0] == '+':
			r.features = append(r.features, a[1:])
		case a == "avx2":
			r.attrs = append(r.attrs, "avx")
			r.features = append(r.features, "avx", a)
		case a == "avx":
			r.features = append(r.features, a)
			fallthrough
		default:
			r.attrs = append(r.attrs, a)
		}
	}
	return r, nil
}

// encoding reads [vex.][prefix.][map.]opcode[/modrm].
func (r *row) encoding(s string) error {
	r.key = key{pfx: 15, mode: 3, mod: 3, reg: 0xFF, rm: 0xFF, w: 3, b: 3, l: 3}
	op, modrm, has := strings.Cut(s, "/")
	parts := strings.Split(op, ".")
	vex := parts[0] == "vex"
	if vex {
		parts = parts[1:]
	}
	// "66" and "f3" are also opcodes: a prefix is one only in front of something.
	if p, ok := prefixes[parts[0]]; ok && len(parts) > 1 {
		r.pfx, parts = p, parts[1:]
	}
	if m, ok := opmaps[parts[0]]; ok && len(parts) > 1 {
		r.opmap, parts = m, parts[1:]
	}
	if vex {
		if r.opmap == 0 || r.pfx&(r.pfx-1) != 0 {
			return fmt.Errorf("encoding %q: VEX needs a map and one prefix", s)
		}
		r.opmap += 3
	}
	if len(parts) != 1 {
		return fmt.Errorf("encoding %q: no opcode", s)
	}
	hex, plus, _ := strings.Cut(parts[0], "+")
	v, err := strconv.ParseUint(hex, 16, 8)
	if err != nil {
		return fmt.Errorf("encoding %q: %w", s, err)
	}
	n, ok := map[string]int{"": 1, "r": 8, "c": 16}[plus]
	if !ok {
		return fmt.Errorf("encoding %q: +%s", s, plus)
	}
	r.opcodes = [2]int{int(v), int(v) + n - 1}
	if !has {
		return nil
	}
	return r.modrmField(modrm)
}

func (r *row) modrmField(s string) error {
	r.modrm = true
	switch {
	case strings.HasSuffix(s, ":m"):
		r.mod = 1
	case strings.HasSuffix(s, ":r"):
		r.mod = 2
	}
	s, _, _ = strings.Cut(s, ":")
	if s == "r" {
		r.anyModrm = true
		return nil
	}
	hex, plus, _ := strings.Cut(s, "+")
	v, err := strconv.ParseUint(hex, 16, 8)
	if err != nil || len(hex) == 1 && v > 7 || len(hex) == 2 && v < 0xC0 {
		return fmt.Errorf("modrm %q", s)
	}
	if len(hex) == 1 {
		r.reg = 1 << v
		return nil
	}
	r.mod, r.reg = 2, 1<<(v>>3&7)
	if plus == "" {
		r.rm = 1 << (v & 7)
	}
	return nil
}

// has tells whether the row has attribute a.
func (r *row) has(a string) bool { return slices.Contains(r.attrs, a) }
