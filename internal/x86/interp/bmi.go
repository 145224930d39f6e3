package interp

import (
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// BMI1, BMI2 and ADX: general registers only, most of them under VEX.

// bindBMI binds an instruction of a destination, an operand in VEX.vvvv and one in ModRM.rm; BLSR's kind has its destination in vvvv.
// f gets the operands of vvvv and rm; what it returns for flags replaces all six if sets is true.
func bindBMI(sets bool, f func(a, b, size uint64) (r, flags uint64)) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		bd.protected(o)
		o.dst = reg(in.Args[0])
		inMem := false
		for _, a := range in.Args[:in.NArgs] {
			switch a.Place {
			case decode.InVvvv:
				o.imm = uint64(reg(a))
			case decode.InRM:
				inMem = a.Kind == decode.Mem
				bd.source(a, o)
			}
		}
		if !inMem {
			bd.clean(sets, nil)
		}
		return func(c *CPU, o *op) bool {
			b, ok := c.source(o)
			if !ok {
				return false
			}
			size := uint64(o.size)
			r, flags := f(c.loc(uint8(o.imm), int(size)), b, size)
			if sets {
				c.setStatus(flags)
			}
			c.setReg(o.dst/8, int(size), r)
			return true
		}
	}
}

// signZero is SF and ZF of a result of size bytes.
func signZero(r, size uint64) uint64 {
	r <<= 64 - 8*size
	return r>>63*x86.SF | b2u(r == 0)*x86.ZF
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func andn(a, b, size uint64) (uint64, uint64) {
	r := ^a & b
	return r, signZero(r, size)
}

func bextr(a, b, size uint64) (uint64, uint64) {
	start, n := a&0xFF, a>>8&0xFF
	r := b >> start
	if n < 64 {
		r &= 1<<n - 1
	}
	return r, signZero(r, size) & x86.ZF
}

func blsr(_, b, size uint64) (uint64, uint64) {
	r := b & (b - 1)
	return r, signZero(r, size) | b2u(b == 0)*x86.CF
}

func blsmsk(_, b, size uint64) (uint64, uint64) {
	r := b ^ (b - 1)
	return r, signZero(r, size)&x86.SF | b2u(b == 0)*x86.CF
}

func blsi(_, b, size uint64) (uint64, uint64) {
	r := b & -b
	return r, signZero(r, size) | b2u(b != 0)*x86.CF
}

func bzhi(a, b, size uint64) (uint64, uint64) {
	n, r := a&0xFF, b
	if n < 8*size {
		r &= 1<<n - 1
	}
	return r, signZero(r, size) | b2u(n >= 8*size)*x86.CF
}

func pext(a, mask, _ uint64) (r, _ uint64) {
	for bit := 0; mask != 0; bit++ {
		r |= a >> bits.TrailingZeros64(mask) & 1 << bit
		mask &= mask - 1
	}
	return r, 0
}

func pdep(a, mask, _ uint64) (r, _ uint64) {
	for ; mask != 0 && a != 0; a >>= 1 {
		r |= a & 1 << bits.TrailingZeros64(mask)
		mask &= mask - 1
	}
	return r, 0
}

func shlx(a, b, size uint64) (uint64, uint64) { return b << (a & (8*size - 1)), 0 }
func shrx(a, b, size uint64) (uint64, uint64) { return b >> (a & (8*size - 1)), 0 }
func sarx(a, b, size uint64) (uint64, uint64) {
	return uint64(signed(b, uint8(size)) >> (a & (8*size - 1))), 0
}

func bindRORX(bd *builder, in *decode.Inst, o *op) handler {
	bd.protected(o)
	o.dst, o.imm = reg(in.Args[0]), uint64(in.Imm)
	if bd.source(in.Args[1], o); o.aux == 0 {
		bd.clean(false, nil)
	}
	return func(c *CPU, o *op) bool {
		v, ok := c.source(o)
		if !ok {
			return false
		}
		if o.size == 8 {
			c.w64(o.dst, bits.RotateLeft64(v, -int(o.imm&63)))
		} else {
			c.w32(o.dst, bits.RotateLeft32(uint32(v), -int(o.imm&31)))
		}
		return true
	}
}

// bindMULX binds rDX times the source; where both destinations are one register it gets the upper half.
func bindMULX(bd *builder, in *decode.Inst, o *op) handler {
	bd.protected(o)
	o.dst, o.imm = reg(in.Args[0]), uint64(reg(in.Args[1]))
	if bd.source(in.Args[2], o); o.aux == 0 {
		bd.clean(false, nil)
	}
	return func(c *CPU, o *op) bool {
		v, ok := c.source(o)
		if !ok {
			return false
		}
		if o.size == 8 {
			hi, lo := bits.Mul64(c.gpr[x86.RDX], v)
			c.w64(uint8(o.imm), lo)
			c.w64(o.dst, hi)
			return true
		}
		p := uint64(uint32(c.gpr[x86.RDX])) * v
		c.w32(uint8(o.imm), uint32(p))
		c.w32(o.dst, uint32(p>>32))
		return true
	}
}

// bindADX binds ADCX and ADOX: an addition whose carry is flag alone.
func bindADX(flag uint64) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		bd.source(in.Args[1], o)
		o.dst = reg(in.Args[0])
		return func(c *CPU, o *op) bool {
			v, ok := c.source(o)
			if !ok {
				return false
			}
			status := c.status()
			var carry uint64
			if status&flag != 0 {
				carry = 1
			}
			a := c.loc(o.dst, int(o.size))
			r, out := bits.Add64(a, v, carry)
			if o.size == 4 {
				out = r >> 32
			}
			c.setStatus(status&^flag | out*flag)
			c.setReg(o.dst/8, int(o.size), r)
			return true
		}
	}
}

// protected puts a check in front of a VEX instruction where the mode of code does not tell: VEX is undefined in real and virtual-8086 mode.
func (bd *builder) protected(o *op) {
	if bd.in.Mode == decode.Mode64 {
		return
	}
	does, quiet := bd.does, bd.quiet
	bd.does, bd.quiet = stops, nil
	bd.emit(op{fn: func(c *CPU, _ *op) bool {
		return !c.real() && !c.v86() || c.raise(x86.UD)
	}, ip: o.ip, next: o.next, size: o.size, mseg: 0xFF})
	bd.does, bd.quiet = does, quiet
}
