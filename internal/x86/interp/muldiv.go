package interp

import (
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// source prepares the one r/m operand a that a handler reads with c.source.
func (bd *builder) source(a decode.Arg, o *op) {
	o.size = a.Size
	if a.Kind == decode.Mem {
		bd.mem(o)
		o.aux = 1
		return
	}
	o.src = reg(a)
}

// source reads the operand that builder.source prepared.
func (c *CPU) source(o *op) (uint64, bool) {
	if o.aux != 0 {
		return c.load(c.addr(o), uint64(o.size))
	}
	return c.loc(o.src, int(o.size)), true
}

func bindSource(fn handler) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		bd.source(in.Args[0], o)
		return fn
	}
}

// overflow sets CF and OF, the others stay (they are undefined, and processors differ).
func (c *CPU) overflow(on bool) {
	var v uint64
	if on {
		v = x86.CF | x86.OF
	}
	c.setCO(v)
}

func mul(c *CPU, o *op) bool {
	b, ok := c.source(o)
	if !ok {
		return false
	}
	a := c.loc(offRAX, int(o.size))
	switch o.size {
	case 1:
		r := a * b
		c.w16(offRAX, uint16(r))
		c.overflow(r>>8 != 0)
	case 2:
		r := a * b
		c.w16(offRAX, uint16(r))
		c.w16(offRDX, uint16(r>>16))
		c.overflow(r>>16 != 0)
	case 4:
		r := a * b
		c.w32(offRAX, uint32(r))
		c.w32(offRDX, uint32(r>>32))
		c.overflow(r>>32 != 0)
	default:
		hi, lo := bits.Mul64(a, b)
		c.gpr[x86.RAX], c.gpr[x86.RDX] = lo, hi
		c.overflow(hi != 0)
	}
	return true
}

// signed sign-extends v of size bytes.
func signed(v uint64, size uint8) int64 {
	sh := 64 - 8*uint(size)
	return int64(v<<sh) >> sh
}

// mulSigned is the 128-bit product.
func mulSigned(a, b int64) (hi, lo uint64) {
	hi, lo = bits.Mul64(uint64(a), uint64(b))
	hi -= uint64(a>>63)&uint64(b) + uint64(b>>63)&uint64(a)
	return hi, lo
}

func imul(c *CPU, o *op) bool {
	v, ok := c.source(o)
	if !ok {
		return false
	}
	a, b := signed(c.loc(offRAX, int(o.size)), o.size), signed(v, o.size)
	if o.size == 8 {
		hi, lo := mulSigned(a, b)
		c.gpr[x86.RAX], c.gpr[x86.RDX] = lo, hi
		c.overflow(hi != uint64(int64(lo)>>63))
		return true
	}
	r := a * b
	switch o.size {
	case 1:
		c.w16(offRAX, uint16(r))
	case 2:
		c.w16(offRAX, uint16(r))
		c.w16(offRDX, uint16(r>>16))
	default:
		c.w32(offRAX, uint32(r))
		c.w32(offRDX, uint32(r>>32))
	}
	c.overflow(r != signed(uint64(r), o.size))
	return true
}

func bindIMUL(bd *builder, in *decode.Inst, o *op) handler {
	if in.NArgs == 1 {
		bd.source(in.Args[0], o)
		return imul
	}
	s := in.Args[in.NArgs-1]
	constant := false
	if s.Kind == decode.Imm {
		constant = true
		s = in.Args[in.NArgs-2] // IMUL r, imm is IMUL r, r, imm
		o.imm = uint64(in.Imm)
	}
	bd.source(s, o)
	o.size, o.dst = in.Args[0].Size, reg(in.Args[0])
	if z := sizeIndex(o.size) - 2; z >= 0 {
		switch {
		case s.Kind != decode.Mem && constant:
			bd.clean(true, imul_rriq[z])
			return imul_rri[z]
		case s.Kind != decode.Mem:
			bd.clean(true, imul_rrq[z])
			return imul_rr[z]
		case !constant:
			bd.does = setsFlags | stops
			return imul_rm[z]
		}
	}
	if constant {
		return imul3
	}
	return imul2
}

func imul2(c *CPU, o *op) bool {
	v, ok := c.source(o)
	if ok {
		c.product(o, c.loc(o.dst, int(o.size)), v)
	}
	return ok
}

func imul3(c *CPU, o *op) bool {
	v, ok := c.source(o)
	if ok {
		c.product(o, v, o.imm)
	}
	return ok
}

func (c *CPU) product(o *op, x, y uint64) {
	a, b := signed(x, o.size), signed(y, o.size)
	if o.size == 8 {
		hi, lo := mulSigned(a, b)
		c.w64(o.dst, lo)
		c.overflow(hi != uint64(int64(lo)>>63))
		return
	}
	r := a * b
	c.setReg(o.dst/8, int(o.size), uint64(r))
	c.overflow(r != signed(uint64(r), o.size))
}

func div(c *CPU, o *op) bool {
	d, ok := c.source(o)
	if !ok {
		return false
	}
	if d == 0 {
		return c.raise(x86.DE)
	}
	if o.size == 8 {
		if c.gpr[x86.RDX] >= d {
			return c.raise(x86.DE)
		}
		c.gpr[x86.RAX], c.gpr[x86.RDX] = bits.Div64(c.gpr[x86.RDX], c.gpr[x86.RAX], d)
		return true
	}
	n := c.dividend(o.size)
	q, r := n/d, n%d
	if q > sizeMask(int(o.size)) {
		return c.raise(x86.DE)
	}
	c.setQuotient(o.size, q, r)
	return true
}

// dividend is AX, DX:AX or EDX:EAX.
func (c *CPU) dividend(size uint8) uint64 {
	if size == 1 {
		return c.gpr[x86.RAX] & 0xFFFF
	}
	m := sizeMask(int(size))
	return c.gpr[x86.RDX]&m<<(8*size) | c.gpr[x86.RAX]&m
}

func (c *CPU) setQuotient(size uint8, q, r uint64) {
	if size == 1 {
		c.w16(offRAX, uint16(q&0xFF|r<<8))
		return
	}
	c.setReg(x86.RAX, int(size), q)
	c.setReg(x86.RDX, int(size), r)
}

func idiv(c *CPU, o *op) bool {
	v, ok := c.source(o)
	if !ok {
		return false
	}
	d := signed(v, o.size)
	if d == 0 {
		return c.raise(x86.DE)
	}
	if o.size == 8 {
		return c.idiv64(d)
	}
	n := int64(c.dividend(o.size))
	if o.size < 4 {
		n = signed(uint64(n), o.size*2)
	}
	if n == -1<<63 && d == -1 {
		return c.raise(x86.DE)
	}
	q, r := n/d, n%d
	if q != signed(uint64(q), o.size) {
		return c.raise(x86.DE)
	}
	c.setQuotient(o.size, uint64(q), uint64(r))
	return true
}

func (c *CPU) idiv64(d int64) bool {
	hi, lo := c.gpr[x86.RDX], c.gpr[x86.RAX]
	negN, negD := int64(hi) < 0, d < 0
	if negN {
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	u := uint64(d)
	if negD {
		u = -u
	}
	if hi >= u {
		return c.raise(x86.DE)
	}
	q, r := bits.Div64(hi, lo, u)
	if negN != negD {
		if q > 1<<63 {
			return c.raise(x86.DE)
		}
		q = -q
	} else if q >= 1<<63 {
		return c.raise(x86.DE)
	}
	if negN {
		r = -r
	}
	c.gpr[x86.RAX], c.gpr[x86.RDX] = q, r
	return true
}
