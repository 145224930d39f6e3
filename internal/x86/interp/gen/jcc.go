package main

import "fmt"

// A cond is one of the eight conditions; the other eight are the same with the links exchanged.
type cond struct {
	N    int    // JCC's opcode, bits 1-3
	Name string // as in J...
	Lazy string // of the flags
	Cmp  string // of a, b unsigned and x, y signed, after CMP; empty where it is not fused
	Test string // of r, after TEST
}

var conds = []cond{
	{0, "o", "c.of()", "", ""},
	{1, "b", "c.cf()", "a < b", ""},
	{2, "z", "c.zf()", "a == b", "r == 0"},
	{3, "be", "c.below()", "a <= b", "r == 0"},
	{4, "s", "c.sf()", "", "I(r) < 0"},
	{5, "p", "c.pf()", "", ""},
	{6, "l", "c.less()", "I(a) < I(b)", "I(r) < 0"},
	{7, "le", "c.lessEqual()", "I(a) <= I(b)", "I(r) <= 0"},
}

const goText = `{{define "go"}}{
		if nb := blk.link[1]; nb != nil {
			return nb
		}
		return c.direct(blk, 1)
	}
	if nb := blk.link[0]; nb != nil {
		return nb
	}
	return c.direct(blk, 0){{end}}`

const jccText = goText + `
func term_j{{.Name}}(c *CPU, blk *block) *block {
	if {{.Lazy}} {{template "go"}}
}
`

const fusedText = goText + setFlags + `
func term_{{.Op.Name}}{{.S.Bits}}{{.Form}}_{{.Name}}(c *CPU, blk *block) *block {
	o := &blk.last
	{{- if eq .Form "rr"}}
	{{get .S "a" "dst"}}
	{{get .S "b" "src"}}
	{{- else if eq .Form "ri"}}
	{{get .S "a" "dst"}}
	b := {{u .S "o.imm"}}
	{{- else if eq .Form "rm"}}
	{{load .S "b" "nil"}}
	{{get .S "a" "dst"}}
	{{- else if eq .Form "mr"}}
	{{load .S "a" "nil"}}
	{{get .S "b" "src"}}
	{{- else}}
	{{load .S "a" "nil"}}
	b := {{u .S "o.imm"}}
	{{- end}}
	r := {{.Op.Expr}}
	{{template "flags" .}}
	{{- if .Op.Write}}
	c.w{{.S.Bits}}(o.dst, r)
	{{- end}}
	if {{.Test}} {{template "go"}}
}
`

type fused struct {
	Op   aluOp
	S    size
	Form string
	Name string
	Test string
}

func jcc() {
	var parts []string
	t := "\n// termJCC holds the conditional jumps by JCC's opcode, bits 1-3.\nvar termJCC = [8]terminator{"
	for _, k := range conds {
		parts = append(parts, run(jccText, k))
		t += "term_j" + k.Name + ","
	}
	parts = append(parts, t+"}\n")
	for _, f := range []struct {
		op    string
		forms []string
		test  func(cond) string
	}{
		{"cmp", []string{"rr", "ri", "rm", "mr", "mi"}, func(k cond) string { return k.Cmp }},
		{"test", []string{"rr", "ri", "mr", "mi"}, func(k cond) string { return k.Test }},
		{"add", []string{"rr", "ri"}, func(k cond) string { return logicOnly(k) }},
		{"sub", []string{"rr", "ri"}, func(k cond) string { return k.Cmp }},
		{"and", []string{"rr", "ri"}, func(k cond) string { return k.Test }},
	} {
		var op aluOp
		for _, o := range aluOps {
			if o.Name == f.op {
				op = o
			}
		}
		t := fmt.Sprintf("\n// term_%[1]s holds %[1]s and a conditional jump in one, by form, condition and size.\nvar term_%[1]s = map[string][8][4]terminator{\n", f.op)
		for _, form := range f.forms {
			t += fmt.Sprintf("%q: {\n", form)
			for _, k := range conds {
				test := f.test(k)
				t += "{"
				for _, s := range sizes {
					if test == "" {
						t += "nil,"
						continue
					}
					d := fused{op, s, form, k.Name, replaceI(test, s)}
					parts = append(parts, run(fusedText, d))
					t += fmt.Sprintf("term_%s%d%s_%s,", f.op, s.Bits, form, k.Name)
				}
				t += "},\n"
			}
			t += "},\n"
		}
		parts = append(parts, t+"}\n")
	}
	emit("jcc_gen.go", "", parts...)
}

// logicOnly has the conditions that follow from ADD's result alone.
func logicOnly(k cond) string {
	switch k.Name {
	case "z":
		return "r == 0"
	case "s":
		return "I(r) < 0"
	}
	return ""
}
