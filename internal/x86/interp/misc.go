package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// bindPlain binds an instruction without explicit operands.
func bindPlain(fn handler) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		o.size, o.imm = in.Size, uint64(in.Imm)
		return fn
	}
}

// bindNOP binds what does nothing and cannot fault: hints, and fences other than MFENCE (loads and stores stay in order on the host).
func bindNOP(*builder, *decode.Inst, *op) handler { return nil }

// mfence orders stores before later loads for other processors, as the guest's own LOCK would.
func mfence(c *CPU, _ *op) bool {
	c.poll.Or(0)
	return true
}

// bindTouch binds CLFLUSH's family, which check their operand as a load of a byte.
func bindTouch(bd *builder, _ *decode.Inst, o *op) handler {
	bd.mem(o)
	return func(c *CPU, o *op) bool {
		_, ok := c.load8(c.addr(o))
		return ok
	}
}

func lahf(c *CPU, _ *op) bool {
	*c.r8(offRAX + 1) = uint8(c.rflags()&(x86.SF|x86.ZF|x86.AF|x86.PF|x86.CF) | x86.Fixed)
	return true
}

func sahf(c *CPU, _ *op) bool {
	const m = x86.SF | x86.ZF | x86.AF | x86.PF | x86.CF
	c.setStatus(c.status()&^m | uint64(*c.r8(offRAX + 1))&m)
	return true
}

func clc(c *CPU, _ *op) bool {
	c.setCF(false)
	return true
}

func stc(c *CPU, _ *op) bool {
	c.setCF(true)
	return true
}

func cmc(c *CPU, _ *op) bool {
	c.setCF(!c.cf())
	return true
}

func cld(c *CPU, _ *op) bool {
	c.flags &^= x86.DF
	return true
}

func std(c *CPU, _ *op) bool {
	c.flags |= x86.DF
	return true
}

func salc(c *CPU, _ *op) bool {
	c.w8(offRAX, -uint8(c.cfBit()))
	return true
}

func bindBOUND(bd *builder, in *decode.Inst, o *op) handler {
	bd.keep(o)
	o.dst, o.size = reg(in.Args[0]), in.Size
	return func(c *CPU, o *op) bool {
		size := uint64(o.size)
		va, ok := c.linear(o.inst.Mem.Seg, c.offset(o), 2*size, false)
		if !ok {
			return false
		}
		lo, ok := c.load(va, size)
		if !ok {
			return false
		}
		hi, ok := c.load((va+size)&0xFFFFFFFF, size)
		if !ok {
			return false
		}
		v := signed(c.loc(o.dst, int(size)), o.size)
		if v < signed(lo, o.size) || v > signed(hi, o.size) {
			return c.raise(x86.BR)
		}
		return true
	}
}

// The decimal adjustments follow the pseudo code of SDM vol. 2.

func daa(c *CPU, _ *op) bool {
	al, fl := *c.r8(offRAX), c.status()
	old, cf := al, fl&x86.CF != 0
	var out uint64
	if al&15 > 9 || fl&x86.AF != 0 {
		al += 6
		out |= x86.AF
	}
	if old > 0x99 || cf {
		al += 0x60
		out |= x86.CF
	}
	c.adjusted(al, out)
	return true
}

func das(c *CPU, _ *op) bool {
	al, fl := *c.r8(offRAX), c.status()
	old, cf := al, fl&x86.CF != 0
	var out uint64
	if al&15 > 9 || fl&x86.AF != 0 {
		if cf || al < 6 {
			out |= x86.CF
		}
		al -= 6
		out |= x86.AF
	}
	if old > 0x99 || cf {
		al -= 0x60
		out |= x86.CF
	}
	c.adjusted(al, out)
	return true
}

// adjusted stores AL with SF, ZF, PF of it and the flags given.
func (c *CPU) adjusted(al uint8, flags uint64) {
	c.w8(offRAX, al)
	c.cc.res, c.cc.b, c.cc.kind = uint64(int8(al)), flags, ccRes
}

func aaa(c *CPU, _ *op) bool {
	ax := *c.r16(offRAX)
	var out uint64
	if ax&15 > 9 || c.status()&x86.AF != 0 {
		ax += 0x106
		out = x86.AF | x86.CF
	}
	c.w16(offRAX, ax&0xFF0F)
	c.cc.res, c.cc.b, c.cc.kind = uint64(ax&15), out, ccRes
	return true
}

func aas(c *CPU, _ *op) bool {
	ax := *c.r16(offRAX)
	var out uint64
	if ax&15 > 9 || c.status()&x86.AF != 0 {
		ax -= 6
		ax -= 0x100
		out = x86.AF | x86.CF
	}
	c.w16(offRAX, ax&0xFF0F)
	c.cc.res, c.cc.b, c.cc.kind = uint64(ax&15), out, ccRes
	return true
}

func aam(c *CPU, o *op) bool {
	d := uint8(o.imm)
	if d == 0 {
		return c.raise(x86.DE)
	}
	al := *c.r8(offRAX)
	*c.r8(offRAX + 1) = al / d
	c.adjusted(al%d, 0)
	return true
}

func aad(c *CPU, o *op) bool {
	al := *c.r8(offRAX) + *c.r8(offRAX + 1)*uint8(o.imm)
	*c.r8(offRAX + 1) = 0
	c.adjusted(al, 0)
	return true
}
