package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A stringOp does the elements of a string instruction that come next, at most n of them: it returns how many it did, or 0 for a fault. Registers other than
// rCX are its business. done says that REPE or REPNE ends.
type stringOp func(c *CPU, o *op, n uint64) (did uint64, done bool)

// bindString binds MOVS, STOS, LODS, CMPS and SCAS.
func bindString(f stringOp) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		bd.keep(o)
		o.size, o.mseg, o.aux = in.Size, in.Seg, in.AddrSize
		if in.Prefix&(decode.RepE|decode.RepNE) == 0 {
			return func(c *CPU, o *op) bool {
				did, _ := f(c, o, 1)
				return did != 0
			}
		}
		return func(c *CPU, o *op) bool { return c.rep(o, f) }
	}
}

// rep repeats f as rCX says. Between elements the registers are such that the instruction can be restarted, which is how interrupts and single
// stepping get in.
func (c *CPU) rep(o *op, f stringOp) bool {
	as := int(o.aux)
	for {
		n := c.getReg(x86.RCX, as)
		if n == 0 {
			return true
		}
		if c.step {
			n = 1
		}
		did, done := f(c, o, n)
		if did == 0 {
			return false
		}
		c.stop = stopNone // a fault behind what was done shows itself again
		left := c.getReg(x86.RCX, as) - did
		c.setReg(x86.RCX, as, left)
		if left == 0 || done {
			return true
		}
		if c.poll.Load() != 0 || c.step {
			c.stop = stopAgain
			return false
		}
	}
}

// delta is what an element adds to rSI and rDI.
func (c *CPU) delta(o *op) uint64 {
	if c.flags&x86.DF != 0 {
		return -uint64(o.size)
	}
	return uint64(o.size)
}

// advance moves rSI or rDI by n elements.
func (c *CPU) advance(r uint8, o *op, n uint64) {
	c.setReg(r, int(o.aux), c.gpr[r]+n*c.delta(o))
}

// element is the linear address of the element at register r in segment seg.
func (c *CPU) element(r, seg uint8, o *op, write bool) (uint64, bool) {
	return c.linear(seg, c.getReg(r, int(o.aux)), uint64(o.size), write)
}

// run is how many of n elements from va on, upwards, are in va's page and pass the segment's checks.
func (c *CPU) run(r, seg uint8, o *op, va, n uint64, write bool) uint64 {
	size := uint64(o.size)
	n = min(n, (pageSize-va&(pageSize-1))/size)
	off := c.getReg(r, int(o.aux))
	if n == 0 || off+n*size-1 > sizeMask(int(o.aux)) || off+n*size-1 < off {
		return 0
	}
	if c.mode != decode.Mode64 && !segmentAllows(&c.seg[seg], off, n*size, write) {
		return 0
	}
	return n
}

func movs(c *CPU, o *op, n uint64) (uint64, bool) {
	src, ok := c.element(x86.RSI, o.mseg, o, false)
	if !ok {
		return 0, false
	}
	dst, ok := c.element(x86.RDI, x86.ES, o, true)
	if !ok {
		return 0, false
	}
	size := uint64(o.size)
	if n > 1 && c.flags&x86.DF == 0 {
		n = c.run(x86.RSI, o.mseg, o, src, n, false)
		n = min(n, c.run(x86.RDI, x86.ES, o, dst, n, true))
		// Where the destination begins inside the source, copying forward repeats it: not what copy does.
		if n > 1 && (dst <= src || dst >= src+n*size) {
			from := c.tlb.entry(src)
			if off := src - from.read; off < pageSize {
				from := from.bytes(off, n*size) // target may take the entry
				if p, ok := c.target(dst); !ok {
					return 0, false
				} else if p.host != nil {
					copy(p.bytes(n*size), from)
					p.wrote(c, n*size)
					c.advance(x86.RSI, o, n)
					c.advance(x86.RDI, o, n)
					return n, false
				}
			}
		}
	}
	v, ok := c.load(src, size)
	if !ok {
		return 0, false
	}
	if !c.store(dst, v, size) {
		return 0, false
	}
	c.advance(x86.RSI, o, 1)
	c.advance(x86.RDI, o, 1)
	return 1, false
}

func stos(c *CPU, o *op, n uint64) (uint64, bool) {
	dst, ok := c.element(x86.RDI, x86.ES, o, true)
	if !ok {
		return 0, false
	}
	size := uint64(o.size)
	v := c.gpr[x86.RAX]
	if n > 1 && c.flags&x86.DF == 0 {
		if n = c.run(x86.RDI, x86.ES, o, dst, n, true); n > 1 {
			p, ok := c.target(dst)
			if !ok {
				return 0, false
			}
			if p.host != nil {
				p.fill(n*size, v, size)
				p.wrote(c, n*size)
				c.advance(x86.RDI, o, n)
				return n, false
			}
		}
	}
	if !c.store(dst, v, size) {
		return 0, false
	}
	c.advance(x86.RDI, o, 1)
	return 1, false
}

func lods(c *CPU, o *op, _ uint64) (uint64, bool) {
	src, ok := c.element(x86.RSI, o.mseg, o, false)
	if !ok {
		return 0, false
	}
	v, ok := c.load(src, uint64(o.size))
	if !ok {
		return 0, false
	}
	c.setReg(x86.RAX, int(o.size), v)
	c.advance(x86.RSI, o, 1)
	return 1, false
}

// again tells whether REPE or REPNE goes on after a comparison.
func (c *CPU) again(o *op) bool {
	return c.zf() == (o.inst.Prefix&decode.RepNE == 0)
}

func cmps(c *CPU, o *op, n uint64) (uint64, bool) {
	size := uint64(o.size)
	for did := uint64(0); ; {
		src, ok := c.element(x86.RSI, o.mseg, o, false)
		if !ok {
			return did, false
		}
		dst, ok := c.element(x86.RDI, x86.ES, o, false)
		if !ok {
			return did, false
		}
		a, ok := c.load(src, size)
		if !ok {
			return did, false
		}
		b, ok := c.load(dst, size)
		if !ok {
			return did, false
		}
		c.alu(aluCmp, a, b, size)
		c.advance(x86.RSI, o, 1)
		c.advance(x86.RDI, o, 1)
		if did++; did == min(n, maxElements) || !c.again(o) {
			return did, !c.again(o)
		}
	}
}

func scas(c *CPU, o *op, n uint64) (uint64, bool) {
	size := uint64(o.size)
	for did := uint64(0); ; {
		dst, ok := c.element(x86.RDI, x86.ES, o, false)
		if !ok {
			return did, false
		}
		b, ok := c.load(dst, size)
		if !ok {
			return did, false
		}
		c.alu(aluCmp, c.gpr[x86.RAX], b, size)
		c.advance(x86.RDI, o, 1)
		if did++; did == min(n, maxElements) || !c.again(o) {
			return did, !c.again(o)
		}
	}
}

// maxElements is how many comparisons go by between looks at c.poll.
const maxElements = 256
