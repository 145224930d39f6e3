package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A shiftFunc computes a shift or rotate of any size, with its flags.
type shiftFunc func(c *CPU, a, n, size uint64) uint64

// bindShift binds shifts and rotates. quick is the row in the generated tables of shifts by a constant, or -1; turn holds the generated
// handlers of a rotate by a constant, and those that leave the flags out, or nil.
func bindShift(f shiftFunc, quick int, turn *[2][2]handler) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		d, s := in.Args[0], in.Args[1]
		o.size = d.Size
		byCL := s.Kind != decode.Imm
		o.imm = uint64(in.Imm) & countMask(uint64(d.Size))
		if d.Kind == decode.Mem {
			bd.mem(o)
			return func(c *CPU, o *op) bool {
				size, n := uint64(o.size), o.imm
				if byCL {
					n = c.gpr[x86.RCX] & countMask(size)
				}
				return c.rmw(c.addr(o), size, false, func(a uint64) uint64 { return f(c, a, n, size) })
			}
		}
		o.dst = reg(d)
		if byCL {
			bd.does = readsFlags // a count of zero leaves them
			return func(c *CPU, o *op) bool {
				size := uint64(o.size)
				c.setLoc(o.dst, int(size), f(c, c.loc(o.dst, int(size)), c.gpr[x86.RCX]&countMask(size), size))
				return true
			}
		}
		if quick >= 0 && o.imm > 0 && o.imm < 8*uint64(d.Size) {
			z := sizeIndex(d.Size)
			bd.clean(true, shift_riq[quick][z])
			return shift_ri[quick][z]
		}
		bd.does = readsFlags
		if turn != nil && o.imm > 0 && d.Size >= 4 {
			bd.does, bd.quiet = setsSome, turn[1][sizeIndex(d.Size)-2]
			return turn[0][sizeIndex(d.Size)-2]
		}
		return func(c *CPU, o *op) bool {
			size := uint64(o.size)
			c.setLoc(o.dst, int(size), f(c, c.loc(o.dst, int(size)), o.imm, size))
			return true
		}
	}
}

// countMask is how much of a count a shift looks at.
func countMask(size uint64) uint64 {
	if size == 8 {
		return 63
	}
	return 31
}

// The shifts take a of size bytes, zero-extended, and a masked count. A count of zero changes no flag.

func (c *CPU) shl(a, n, size uint64) uint64 {
	if n == 0 {
		return a
	}
	w := 8 * size
	var cf uint64
	if n <= w {
		cf = a >> (w - n) & 1
	}
	r := a << n & sizeMask(int(size))
	c.shifted(r, cf, r>>(w-1)^cf, size)
	return r
}

func (c *CPU) shr(a, n, size uint64) uint64 {
	if n == 0 {
		return a
	}
	w := 8 * size
	r := a >> n
	c.shifted(r, a>>(n-1)&1, (r^r<<1)>>(w-1)&1, size)
	return r
}

func (c *CPU) sar(a, n, size uint64) uint64 {
	if n == 0 {
		return a
	}
	sh := 64 - 8*size
	s := int64(a<<sh) >> sh
	r := uint64(s>>n) & sizeMask(int(size))
	c.shifted(r, uint64(s>>(n-1))&1, 0, size)
	return r
}

// shifted sets the flags of a shift with result r.
func (c *CPU) shifted(r, cf, of, size uint64) {
	sh := 64 - 8*size
	c.cc.res, c.cc.b, c.cc.kind = uint64(int64(r<<sh)>>sh), cf|of<<11, ccRes
}

func (c *CPU) rol(a, n, size uint64) uint64 {
	if n == 0 {
		return a
	}
	w := 8 * size
	k := n % w
	r := (a<<k | a>>(w-k)) & sizeMask(int(size))
	c.setCO(r&1 | (r>>(w-1)^r&1)<<11)
	return r
}

func (c *CPU) ror(a, n, size uint64) uint64 {
	if n == 0 {
		return a
	}
	w := 8 * size
	k := n % w
	r := (a>>k | a<<(w-k)) & sizeMask(int(size))
	c.setCO(r>>(w-1) | (r>>(w-1)^r>>(w-2))&1<<11)
	return r
}

func (c *CPU) rcl(a, n, size uint64) uint64 {
	w := 8 * size
	if size < 4 {
		n %= w + 1
	}
	if n == 0 {
		return a
	}
	cf := c.cfBit()
	r := a<<n | cf<<(n-1)
	if n > 1 {
		r |= a >> (w + 1 - n)
	}
	r &= sizeMask(int(size))
	cf = a >> (w - n) & 1
	c.setCO(cf | (r>>(w-1)^cf)<<11)
	return r
}

func (c *CPU) rcr(a, n, size uint64) uint64 {
	w := 8 * size
	if size < 4 {
		n %= w + 1
	}
	if n == 0 {
		return a
	}
	cf := c.cfBit()
	r := a>>n | cf<<(w-n)
	if n > 1 {
		r |= a << (w + 1 - n)
	}
	r &= sizeMask(int(size))
	c.setCO(a>>(n-1)&1 | (r>>(w-1)^r>>(w-2))&1<<11)
	return r
}

// bindDouble binds SHLD and SHRD.
func bindDouble(left bool) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		d := in.Args[0]
		o.size, o.src = d.Size, reg(in.Args[1])
		byCL := in.Args[2].Kind != decode.Imm
		o.imm = uint64(in.Imm) & countMask(uint64(d.Size))
		count := func(c *CPU, o *op) uint64 {
			if byCL {
				return c.gpr[x86.RCX] & countMask(uint64(o.size))
			}
			return o.imm
		}
		if d.Kind == decode.Mem {
			bd.mem(o)
			return func(c *CPU, o *op) bool {
				size, n := uint64(o.size), count(c, o)
				b := c.loc(o.src, int(size))
				return c.rmw(c.addr(o), size, false, func(a uint64) uint64 { return c.double(a, b, n, size, left) })
			}
		}
		o.dst = reg(d)
		bd.does = readsFlags
		return func(c *CPU, o *op) bool {
			size := uint64(o.size)
			c.setLoc(o.dst, int(size), c.double(c.loc(o.dst, int(size)), c.loc(o.src, int(size)), count(c, o), size, left))
			return true
		}
	}
}

// double shifts a by n, filled from b. A 16-bit shift by more than 16 is undefined; processors go on with a, b, a as one number.
func (c *CPU) double(a, b, n, size uint64, left bool) uint64 {
	if n == 0 {
		return a
	}
	w := 8 * size
	m := sizeMask(int(size))
	var r, cf uint64
	switch {
	case n <= w && left:
		r = a<<n | b>>(w-n)
		cf = a >> (w - n)
	case n <= w:
		r = a>>n | b<<(w-n)
		cf = a >> (n - 1)
	case left:
		r = b<<(n-w) | a>>(2*w-n)
		cf = b >> (2*w - n)
	default:
		r = b>>(n-w) | a<<(2*w-n)
		cf = b >> (n - w - 1)
	}
	r &= m
	c.shifted(r, cf&1, (r^a)>>(w-1)&1, size)
	return r
}
