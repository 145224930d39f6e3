package main

import "fmt"

// cmovText is a conditional move between registers and a conditional byte; Not is "!" for the odd conditions.
const cmovText = `
{{range .Sizes}}
func cmov{{.Bits}}rr_{{$.Not}}{{$.Name}}(c *CPU, o *op) bool {
	v := *c.r{{.Bits}}(o.dst)
	if {{$.Expr}} {
		v = *c.r{{.Bits}}(o.src)
	}
	c.w{{.Bits}}(o.dst, v)
	return true
}
{{end}}
func setcc_{{.Not}}{{.Name}}(c *CPU, o *op) bool {
	var v uint8
	if {{.Expr}} {
		v = 1
	}
	c.w8(o.dst, v)
	return true
}
`

const imulText = `
{{define "product"}}
	{{- if eq .Bits 64}}
	hi, r := mulSigned(int64(a), int64(b))
	var of uint64
	if hi != uint64(int64(r)>>63) {
		of = x86.CF | x86.OF
	}
	{{- else}}
	x := int64(int32(a)) * int64(int32(b))
	r := uint32(x)
	var of uint64
	if x != int64(int32(x)) {
		of = x86.CF | x86.OF
	}
	{{- end}}
	c.cc.res, c.cc.b, c.cc.kind = {{sx . "r"}}, of, ccRes
	c.w{{.Bits}}(o.dst, r)
	return true{{end}}

func imul{{.Bits}}rr(c *CPU, o *op) bool {
	{{get . "a" "dst"}}
	{{get . "b" "src"}}
	{{template "product" .}}
}

func imul{{.Bits}}rri(c *CPU, o *op) bool {
	{{get . "a" "src"}}
	b := {{u . "o.imm"}}
	{{template "product" .}}
}

func imul{{.Bits}}rm(c *CPU, o *op) bool {
	{{load . "b" "false"}}
	{{get . "a" "dst"}}
	{{template "product" .}}
}

func imul{{.Bits}}rrq(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, *c.r{{.Bits}}(o.dst)**c.r{{.Bits}}(o.src))
	return true
}

func imul{{.Bits}}rriq(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, *c.r{{.Bits}}(o.src)*{{u . "o.imm"}})
	return true
}

// Rotates by a constant, 1 to {{.Bits}}-1: SF, ZF, AF and PF stay.

func rol{{.Bits}}ri(c *CPU, o *op) bool {
	r := bits.RotateLeft{{.Bits}}(*c.r{{.Bits}}(o.dst), int(o.imm))
	c.w{{.Bits}}(o.dst, r)
	c.setCO(uint64(r&1) | uint64(r>>({{.Bits}}-1)^r&1)<<11)
	return true
}

func ror{{.Bits}}ri(c *CPU, o *op) bool {
	r := bits.RotateLeft{{.Bits}}(*c.r{{.Bits}}(o.dst), -int(o.imm))
	c.w{{.Bits}}(o.dst, r)
	c.setCO(uint64(r>>({{.Bits}}-1)) | uint64((r^r<<1)>>({{.Bits}}-1))<<11)
	return true
}

func rol{{.Bits}}riq(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, bits.RotateLeft{{.Bits}}(*c.r{{.Bits}}(o.dst), int(o.imm)))
	return true
}

func ror{{.Bits}}riq(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, bits.RotateLeft{{.Bits}}(*c.r{{.Bits}}(o.dst), -int(o.imm)))
	return true
}
`

func condGen() {
	var parts []string
	set := "\n// setcc_ holds SETcc of a register by condition.\nvar setcc_ = [16]handler{"
	cm := "\n// cmov_rr holds CMOVcc between registers by condition; of 32 and of 64 bits.\nvar cmov_rr = [16][2]handler{\n"
	for i := range 16 {
		k := conds[i/2]
		not, expr := "", k.Lazy
		if i&1 != 0 {
			not, expr = "n", "!("+expr+")"
		}
		parts = append(parts, run(cmovText, struct {
			Not, Name, Expr string
			Sizes           []size
		}{not, k.Name, expr, sizes[2:]}))
		set += fmt.Sprintf("setcc_%s%s,", not, k.Name)
		cm += fmt.Sprintf("{cmov32rr_%[1]s%[2]s,cmov64rr_%[1]s%[2]s},\n", not, k.Name)
	}
	parts = append(parts, set+"}\n", cm+"}\n")
	for _, s := range sizes[2:] {
		parts = append(parts, run(imulText, s))
	}
	for _, n := range []string{"imul_rr", "imul_rri", "imul_rm", "imul_rrq", "imul_rriq", "rol_ri", "ror_ri", "rol_riq", "ror_riq"} {
		parts = append(parts, fmt.Sprintf("\nvar %s = [2]handler{%s32%s, %s64%s}\n", n, n[:len(n)-len(after(n))-1], after(n), n[:len(n)-len(after(n))-1], after(n)))
	}
	emit("cond_gen.go", "import (\n\"math/bits\"\n\n\"vitrine.dev/vitrine/internal/x86\"\n)\n", parts...)
}

// after is what follows the underscore.
func after(n string) string {
	for i := range n {
		if n[i] == '_' {
			return n[i+1:]
		}
	}
	return ""
}
