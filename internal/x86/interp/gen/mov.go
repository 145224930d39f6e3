package main

import (
	"fmt"
	"strings"
)

func replaceU(expr string, s size) string { return strings.ReplaceAll(expr, "U(", s.U+"(") }

// replaceM1 turns 32m1 into 31.
func replaceM1(text string) string {
	for _, s := range sizes {
		text = strings.ReplaceAll(text, fmt.Sprintf("%dm1", s.Bits), fmt.Sprint(s.Bits-1))
	}
	return text
}

const movText = `
func mov{{.Bits}}rr(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, *c.r{{.Bits}}(o.src))
	return true
}

func mov{{.Bits}}ri(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, {{u . "o.imm"}})
	return true
}

func mov{{.Bits}}rm(c *CPU, o *op) bool {
	{{load . "v" "false"}}
	c.w{{.Bits}}(o.dst, v)
	return true
}

func mov{{.Bits}}mr(c *CPU, o *op) bool {
	va := c.addr(o)
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-{{.Bytes}} {
		*e.at{{.Bits}}(off) = *c.r{{.Bits}}(o.src)
		return true
	}
	return c.slowStore(va, uint64(*c.r{{.Bits}}(o.src)), {{.Bytes}})
}

func mov{{.Bits}}mi(c *CPU, o *op) bool {
	va := c.addr(o)
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-{{.Bytes}} {
		*e.at{{.Bits}}(off) = {{u . "o.imm"}}
		return true
	}
	return c.slowStore(va, o.imm, {{.Bytes}})
}

func lea{{.Bits}}(c *CPU, o *op) bool {
	c.w{{.Bits}}(o.dst, {{u . "c.addr(o)"}})
	return true
}

func push{{.Bits}}r(c *CPU, o *op) bool {
	return c.push(uint64(*c.r{{.Bits}}(o.dst)), {{.Bytes}})
}

`

const extText = `
func mov{{.Z}}x{{.From.Bits}}to{{.To.Bits}}rr(c *CPU, o *op) bool {
	c.w{{.To.Bits}}(o.dst, {{.Conv "*c.r" "(o.src)"}})
	return true
}

func mov{{.Z}}x{{.From.Bits}}to{{.To.Bits}}rm(c *CPU, o *op) bool {
	{{load .From "v" "false"}}
	c.w{{.To.Bits}}(o.dst, {{.ConvV}})
	return true
}
`

type ext struct {
	Z        string
	From, To size
}

func (e ext) conv(x string) string {
	if e.Z == "z" {
		return fmt.Sprintf("%s(%s)", e.To.U, x)
	}
	return fmt.Sprintf("%s(%s(%s(%s)))", e.To.U, e.To.I, e.From.I, x)
}

// Conv extends what is read from a register.
func (e ext) Conv(pre, post string) string { return e.conv(fmt.Sprint(pre, e.From.Bits, post)) }

// ConvV extends v.
func (e ext) ConvV() string { return e.conv("v") }

func mov() {
	var parts []string
	for _, s := range sizes {
		parts = append(parts, run(movText, s))
	}
	for _, form := range []string{"rr", "ri", "rm", "mr", "mi"} {
		parts = append(parts, table1("mov_"+form, "mov", form))
	}
	parts = append(parts, table1("lea_", "lea", ""), table1("push_r", "push", "r"))
	for _, z := range []string{"z", "s"} {
		for _, form := range []string{"rr", "rm"} {
			t := fmt.Sprintf("\n// mov%[1]sx_%[2]s holds the handlers by the source's size and the destination's.\nvar mov%[1]sx_%[2]s = [3][4]handler{\n", z, form)
			for i, from := range sizes[:3] {
				t += "{"
				for j, to := range sizes {
					if j <= i {
						t += "nil,"
						continue
					}
					if form == "rr" {
						parts = append(parts, run(extText, ext{z, from, to}))
					}
					t += fmt.Sprintf("mov%sx%dto%d%s,", z, from.Bits, to.Bits, form)
				}
				t += "},\n"
			}
			parts = append(parts, t+"}\n")
		}
	}
	emit("mov_gen.go", "", parts...)
}

func replaceI(expr string, s size) string { return strings.ReplaceAll(expr, "I(", s.I+"(") }
