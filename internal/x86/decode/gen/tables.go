package main

import (
	"bytes"
	"fmt"
	"go/format"
	"math/bits"
	"slices"
	"strings"
)

// tables is tables.go: the features, the rows and the tree that finds them.
func tables(rows []row) ([]byte, error) {
	var features []string
	for _, r := range rows {
		for _, f := range r.features {
			if !slices.Contains(features, f) {
				features = append(features, f)
			}
		}
	}
	t, err := grow(rows, features)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(header)
	b.WriteString("// The features that instructions can need, as the table names them.\nconst (\n")
	for i, f := range features {
		fmt.Fprintf(&b, "Feature%s", strings.ToUpper(f))
		if i == 0 {
			b.WriteString(" Features = 1 << iota")
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\n// AllFeatures is every feature there is a row for.\nAllFeatures Features = 1<<iota - 1\n)\n\n")
	fmt.Fprintf(&b, "var rows = [...]row{\n{},\n")
	for i := range rows {
		if err := writeRow(&b, &rows[i]); err != nil {
			return nil, fmt.Errorf("table.txt:%d: %w", rows[i].line, err)
		}
	}
	b.WriteString("}\n\nvar roots = [7][256]uint16{\n")
	for m := range t.roots {
		b.WriteString("{")
		for op, e := range t.roots[m] {
			if op%16 == 0 {
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "%#x, ", e)
		}
		b.WriteString("\n},\n")
	}
	b.WriteString("}\n\n// withModRM has a bit an opcode.\nvar withModRM = [7][8]uint32{\n")
	for m := range t.modrm {
		var w [8]uint32
		for op, has := range t.modrm[m] {
			if has {
				w[op/32] |= 1 << (op % 32)
			}
		}
		fmt.Fprintf(&b, "{%#x, %#x, %#x, %#x, %#x, %#x, %#x, %#x},\n", w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7])
	}
	fmt.Fprintf(&b, "}\n\n// nodes has a power of two of elements, so that a masked index needs no check.\nvar nodes = [%d]uint16{\n", 1<<bits.Len(uint(len(t.nodes))))
	for i, n := range t.nodes {
		fmt.Fprintf(&b, "%s, ", n)
		if i%16 == 15 {
			b.WriteString("\n")
		}
	}
	b.WriteString("\n}\n")
	return format.Source(b.Bytes())
}

var flagNames = map[string]string{
	"r": "MemRead", "w": "MemWrite", "lock": "Lockable", "jmp": "Jump", "cond": "Cond", "end": "EndBlock", "priv": "Privileged",
	"x87": "X87|Vec", "wait": "Wait", "mmx": "MMXUnit|Wait|Vec", "sse": "SSE|Vec", "al": "Aligned", "vec": "Vec",
	"rf": "ReadsFlags", "wf": "WritesFlags", "str": "String", "xm": "SIMDExc",
	"avx": "AVX|Vec", "vsib": "VSIB", "rd": "ReadsDst", "wn": "WritesNone", "lig": "Lig",
	"d64": "", "f64": "", "z": "", "byte": "", // sizes: see sizeRule
}

func writeRow(b *bytes.Buffer, r *row) error {
	var flags []string
	if r.modrm {
		flags = append(flags, "HasModRM")
	}
	for _, a := range r.attrs {
		f, ok := flagNames[a]
		if !ok {
			return fmt.Errorf("attribute %q", a)
		}
		if f != "" {
			flags = append(flags, f)
		}
	}
	if len(flags) == 0 {
		flags = []string{"0"}
	}
	fmt.Fprintf(b, "{op: %s, flags: %s, size: %s", r.op, strings.Join(flags, "|"), sizeRule(r))
	if p := map[uint8]string{2: "0x66", 4: "0xF3", 8: "0xF2"}[r.pfx]; p != "" {
		fmt.Fprintf(b, ", pfx: %s", p)
	}
	if len(r.args) > 0 {
		if len(r.args) > 4 {
			return fmt.Errorf("more than 4 operands")
		}
		fmt.Fprintf(b, ", nspec: %d, specs: [4]spec{", len(r.args))
		for _, a := range r.args {
			s, err := argSpec(a)
			if err != nil {
				return err
			}
			b.WriteString(s + ", ")
		}
		b.WriteString("}")
	}
	fmt.Fprintf(b, "}, // %d: %s %s\n", r.line, r.op, strings.Join(r.args, ","))
	return nil
}

// sizeRule says where Inst.Size comes from: the first operand that has a size of its own.
func sizeRule(r *row) string {
	switch {
	case r.has("d64"):
		return "sizeD64"
	case r.has("f64"):
		return "sizeF64"
	case r.has("byte"):
		return "size1"
	case r.has("z") && !slices.Contains(r.args, "AL"), r.has("x87") && r.opmap == 0:
		return "sizeZ"
	case r.has("x87"), r.has("sse"), r.has("mmx"), r.has("vec"), r.opmap > 3:
		return "sizeY"
	}
	for _, a := range r.args {
		switch {
		case a == "AL":
			return "size1"
		case strings.ContainsRune("IJDXA", rune(a[0])) && a[0] != 'D' || a == "DX" || a == "1" || a == "CL":
			continue
		case a[0] == 'C' || a[0] == 'D' || a[0] == 'R' && a != "Rq" || a == "Ms":
			return "sizeMode"
		}
		switch a[1:] {
		case "b":
			return "size1"
		case "w":
			return "size2"
		case "d":
			return "size4"
		case "q":
			return "size8"
		case "x":
			return "size16"
		case "y":
			if r.op == "CRC32" { // the source tells
				continue
			}
			return "sizeY"
		}
		return "sizeV"
	}
	return "sizeV"
}

var fixedArgs = map[string]string{
	"AL": "{how: argFixed, wide: 1, reg: 0}", "AX": "{how: argFixed, wide: 2, reg: 0}", "CL": "{how: argFixed, wide: 1, reg: 1}",
	"DX": "{how: argFixed, wide: 2, reg: 2}", "rAX": "{how: argFixed, wide: wideV, reg: 0}", "1": "{how: argOne, wide: 1}",
	"ST": "{how: argST, wide: 10, reg: 0}", "STi": "{how: argSTi, wide: 10}", "M-": "{how: argM}",
	"ES": "{how: argSeg, wide: 2, reg: 0}", "CS": "{how: argSeg, wide: 2, reg: 1}", "SS": "{how: argSeg, wide: 2, reg: 2}",
	"DS": "{how: argSeg, wide: 2, reg: 3}", "FS": "{how: argSeg, wide: 2, reg: 4}", "GS": "{how: argSeg, wide: 2, reg: 5}",
	"BDq": "{how: argBD, wide: 8}", "BDx": "{how: argBD, wide: 16}", "Ap": "{how: argA, wide: wideV}",
	"Ibs": "{how: argIs, wide: wideV}",
}

var widths = map[string]string{
	"b": "1", "w": "2", "d": "4", "q": "8", "t": "10", "x": "16", "v": "wideV", "z": "wideZ", "y": "wideY",
	"p": "wideP", "s": "wideS", "a": "wideA", "vw": "wideVW", "db": "wideDB", "dw": "wideDW",
	"o": "32", "l": "wideL", "l2": "wideL2", "l4": "wideL4", "l8": "wideL8",
}

func argSpec(a string) (string, error) {
	if s, ok := fixedArgs[a]; ok {
		return s, nil
	}
	w, ok := widths[a[1:]]
	if !ok || !strings.ContainsRune("EGMRZIJOSCDVWUPQNHBL", rune(a[0])) {
		return "", fmt.Errorf("operand %q", a)
	}
	if a[0] == 'C' || a[0] == 'D' || a == "Ry" {
		w = "wideMode"
	}
	return fmt.Sprintf("{how: arg%c, wide: %s}", a[0], w), nil
}
