package main

import "fmt"

// An aluOp is one of the two-operand operations: Expr computes r, Kind says how flags follow.
type aluOp struct {
	Name  string
	Expr  string // of a, b
	Pre   string
	Kind  string // the ccKind; ccRes has b = 0
	Write bool   // the destination is written
}

var aluOps = []aluOp{
	{"add", "a + b", "", "ccAdd", true},
	{"or", "a | b", "", "ccRes", true},
	{"adc", "a + b + U(k)", "k := c.cfBit()", "ccAdd + ccKind(k)", true},
	{"sbb", "a - b - U(k)", "k := c.cfBit()", "ccSub + ccKind(k)", true},
	{"and", "a & b", "", "ccRes", true},
	{"sub", "a - b", "", "ccSub", true},
	{"xor", "a ^ b", "", "ccRes", true},
	{"cmp", "a - b", "", "ccSub", false},
	{"test", "a & b", "", "ccRes", false},
}

// setFlags is shared by all templates: it files a, b and r under the kind.
const setFlags = `{{define "flags"}}c.cc.res = {{sx .S "r"}}
	{{- if eq .Op.Kind "ccRes"}}
	c.cc.b = 0
	{{- else}}
	c.cc.a = {{sx .S "a"}}
	c.cc.b = {{sx .S "b"}}
	{{- end}}
	c.cc.kind = {{.Op.Kind}}{{end}}`

const aluText = setFlags + `
{{define "calc"}}{{.Op.Pre}}
	r := {{.Expr}}
	{{template "flags" .}}{{end}}

func {{.Op.Name}}{{.S.Bits}}rr(c *CPU, o *op) bool {
	{{get .S "a" "dst"}}
	{{get .S "b" "src"}}
	{{template "calc" .}}
	{{- if .Op.Write}}
	c.w{{.S.Bits}}(o.dst, r)
	{{- end}}
	return true
}

func {{.Op.Name}}{{.S.Bits}}ri(c *CPU, o *op) bool {
	{{get .S "a" "dst"}}
	b := {{u .S "o.imm"}}
	{{template "calc" .}}
	{{- if .Op.Write}}
	c.w{{.S.Bits}}(o.dst, r)
	{{- end}}
	return true
}

func {{.Op.Name}}{{.S.Bits}}rm(c *CPU, o *op) bool {
	{{load .S "b" "false"}}
	{{get .S "a" "dst"}}
	{{template "calc" .}}
	{{- if .Op.Write}}
	c.w{{.S.Bits}}(o.dst, r)
	{{- end}}
	return true
}

{{range $f := .Forms}}{{with $}}
func {{.Op.Name}}{{.S.Bits}}m{{$f}}(c *CPU, o *op) bool {
	{{- if .Op.Write}}
	va := c.addr(o)
	e := c.tlb.entry(va)
	{{- if eq $f "r"}}
	{{get .S "b" "src"}}
	{{- else}}
	b := {{u .S "o.imm"}}
	{{- end}}
	off := va - e.write
	if off > pageSize-{{.S.Bytes}} {
		return c.slowALU(o, va, {{.S.Bytes}}, uint64(b))
	}
	p := e.at{{.S.Bits}}(off)
	a := *p
	{{template "calc" .}}
	*p = r
	{{- else}}
	{{load .S "a" "false"}}
	{{- if eq $f "r"}}
	{{get .S "b" "src"}}
	{{- else}}
	b := {{u .S "o.imm"}}
	{{- end}}
	{{template "calc" .}}
	{{- end}}
	return true
}
{{end}}{{end}}
{{if .Quiet}}
func {{.Op.Name}}{{.S.Bits}}rrq(c *CPU, o *op) bool {
	{{get .S "a" "dst"}}
	{{get .S "b" "src"}}
	c.w{{.S.Bits}}(o.dst, {{.Expr}})
	return true
}

func {{.Op.Name}}{{.S.Bits}}riq(c *CPU, o *op) bool {
	{{get .S "a" "dst"}}
	b := {{u .S "o.imm"}}
	c.w{{.S.Bits}}(o.dst, {{.Expr}})
	return true
}
{{end}}`

const unaryText = `
func inc{{.Bits}}r(c *CPU, o *op) bool {
	a := *c.r{{.Bits}}(o.dst)
	r := a + 1
	c.cc.b = c.cfBit()
	c.cc.a, c.cc.res, c.cc.kind = {{sx .S "a"}}, {{sx .S "r"}}, ccInc
	c.w{{.Bits}}(o.dst, r)
	return true
}

func dec{{.Bits}}r(c *CPU, o *op) bool {
	a := *c.r{{.Bits}}(o.dst)
	r := a - 1
	c.cc.b = c.cfBit()
	c.cc.a, c.cc.res, c.cc.kind = {{sx .S "a"}}, {{sx .S "r"}}, ccDec
	c.w{{.Bits}}(o.dst, r)
	return true
}

func neg{{.Bits}}r(c *CPU, o *op) bool {
	b := *c.r{{.Bits}}(o.dst)
	r := -b
	c.cc.a, c.cc.b, c.cc.res, c.cc.kind = 0, {{sx .S "b"}}, {{sx .S "r"}}, ccSub
	c.w{{.Bits}}(o.dst, r)
	return true
}

func not{{.Bits}}r(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, ^*c.r{{.Bits}}(o.dst))
	return true
}

{{range $op, $name := .Shifts}}{{with $.S}}
func {{$name}}{{.Bits}}ri(c *CPU, o *op) bool {
	a := *c.r{{.Bits}}(o.dst)
	n := uint(o.imm) // 1 to {{.Bits}}-1
	{{- if eq $name "shl"}}
	r := a << (n & {{.Bits}}m1)
	cf := uint64(a>>(({{.Bits}}-n)&{{.Bits}}m1)) & 1
	of := uint64(r>>({{.Bits}}-1)) ^ cf
	{{- else if eq $name "shr"}}
	r := a >> (n & {{.Bits}}m1)
	cf := uint64(a>>((n-1)&{{.Bits}}m1)) & 1
	of := uint64((r^r<<1)>>({{.Bits}}-1))
	{{- else}}
	r := {{.U}}({{.I}}(a) >> (n & {{.Bits}}m1))
	cf := uint64(a>>((n-1)&{{.Bits}}m1)) & 1
	of := uint64(0)
	{{- end}}
	c.cc.b, c.cc.res, c.cc.kind = cf|of<<11, {{sx . "r"}}, ccRes
	c.w{{.Bits}}(o.dst, r)
	return true
}

func {{$name}}{{.Bits}}riq(c *CPU, o *op) bool {
	n := uint(o.imm)
	a := *c.r{{.Bits}}(o.dst)
	{{- if eq $name "shl"}}
	c.w{{.Bits}}(o.dst, a<<(n&{{.Bits}}m1))
	{{- else if eq $name "shr"}}
	c.w{{.Bits}}(o.dst, a>>(n&{{.Bits}}m1))
	{{- else}}
	c.w{{.Bits}}(o.dst, {{.U}}({{.I}}(a)>>(n&{{.Bits}}m1)))
	{{- end}}
	return true
}
{{end}}{{end}}
`

type aluData struct {
	Op    aluOp
	S     size
	Expr  string
	Forms []string
	Quiet bool
}

func alu() {
	var parts []string
	for _, op := range aluOps {
		for _, s := range sizes {
			d := aluData{op, s, replaceU(op.Expr, s), []string{"r", "i"}, op.Pre == "" && op.Write}
			parts = append(parts, run(aluText, d))
		}
	}
	for _, s := range sizes {
		parts = append(parts, replaceM1(run(unaryText, struct {
			size
			S      size
			Shifts []string
		}{s, s, []string{"shl", "shr", "sar"}})))
	}
	for _, form := range []string{"rr", "ri", "rm", "mr", "mi", "rrq", "riq"} {
		t := fmt.Sprintf("\n// alu_%s holds the handlers by operation (as aluOp) and size.\nvar alu_%s = [9][4]handler{\n", form, form)
		for _, op := range aluOps {
			t += "{"
			for _, s := range sizes {
				if len(form) == 3 && !(op.Pre == "" && op.Write) {
					t += "nil,"
				} else {
					t += fmt.Sprintf("%s%d%s,", op.Name, s.Bits, form)
				}
			}
			t += "},\n"
		}
		parts = append(parts, t+"}\n")
	}
	for _, n := range []string{"inc", "dec", "neg", "not"} {
		parts = append(parts, table1(n+"_r", n, "r"))
	}
	for _, q := range []string{"ri", "riq"} {
		t := fmt.Sprintf("\nvar shift_%s = [3][4]handler{\n", q)
		for _, n := range []string{"shl", "shr", "sar"} {
			t += "{"
			for _, s := range sizes {
				t += fmt.Sprintf("%s%d%s,", n, s.Bits, q)
			}
			t += "},\n"
		}
		parts = append(parts, t+"}\n")
	}
	emit("alu_gen.go", "", parts...)
}

// table1 is a table of handlers by size alone.
func table1(table, name, form string) string {
	t := fmt.Sprintf("\nvar %s = [4]handler{", table)
	for _, s := range sizes {
		t += fmt.Sprintf("%s%d%s,", name, s.Bits, form)
	}
	return t + "}\n"
}
