package interp

import (
	"encoding/binary"
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

func bindMOV(bd *builder, in *decode.Inst, o *op) handler {
	d, s := in.Args[0], in.Args[1]
	if d.Kind == decode.SReg {
		bd.keep(o)
		if fn := systemHandler(in); fn != nil {
			return fn
		}
		return raiseUD
	}
	if s.Kind == decode.SReg {
		// To memory it is 16 bits; to a register as wide as the operand.
		o.aux = s.Reg
		if d.Kind == decode.Mem {
			bd.mem(o)
			return movSegToMem
		}
		bd.clean(false, nil)
		o.dst = reg(d)
		return movSegToReg
	}
	z := sizeIndex(d.Size)
	o.size, o.imm = d.Size, uint64(in.Imm)
	switch {
	case d.Kind == decode.Mem:
		bd.does = stops
		bd.mem(o)
		if s.Kind == decode.Imm {
			return mov_mi[z]
		}
		o.src = reg(s)
		return mov_mr[z]
	case s.Kind == decode.Mem:
		bd.does = stops
		bd.mem(o)
		o.dst = reg(d)
		return mov_rm[z]
	case s.Kind == decode.Imm:
		bd.clean(false, nil)
		o.dst = reg(d)
		return mov_ri[z]
	}
	bd.clean(false, nil)
	o.dst, o.src = reg(d), reg(s)
	return mov_rr[z]
}

func movSegToReg(c *CPU, o *op) bool {
	c.setReg(o.dst/8, int(o.size), uint64(c.seg[o.aux].Selector))
	return true
}

func movSegToMem(c *CPU, o *op) bool { return c.store16(c.addr(o), c.seg[o.aux].Selector) }

func bindExtend(rr, rm *[3][4]handler) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		d, s := in.Args[0], in.Args[1]
		o.dst = reg(d)
		from, to := sizeIndex(s.Size), sizeIndex(d.Size)
		if from >= to { // MOVSXD without REX.W, MOVZX of 16 bits to 16
			return bindMOV(bd, in, o)
		}
		if s.Kind == decode.Mem {
			bd.does = stops
			bd.mem(o)
			return rm[from][to]
		}
		bd.clean(false, nil)
		o.src = reg(s)
		return rr[from][to]
	}
}

func bindLEA(bd *builder, in *decode.Inst, o *op) handler {
	bd.clean(false, nil)
	o.dst = reg(in.Args[0])
	if in.Mode == decode.Mode64 && in.AddrSize == 8 {
		in.Mem.Seg = x86.DS // LEA ignores the segment
		bd.mem(o)
		return lea_[sizeIndex(in.Args[0].Size)]
	}
	bd.keep(o)
	o.size = in.Args[0].Size
	return func(c *CPU, o *op) bool {
		c.setReg(o.dst/8, int(o.size), c.offset(o))
		return true
	}
}

func bindXCHG(bd *builder, in *decode.Inst, o *op) handler {
	d, s := in.Args[0], in.Args[1]
	if s.Kind == decode.Mem {
		d, s = s, d
	}
	o.size = d.Size
	o.src = reg(s)
	if d.Kind == decode.Mem {
		bd.mem(o)
		return xchgMem
	}
	bd.clean(false, nil)
	o.dst = reg(d)
	return func(c *CPU, o *op) bool {
		n := int(o.size)
		a, b := c.loc(o.dst, n), c.loc(o.src, n)
		c.setLoc(o.dst, n, b)
		c.setLoc(o.src, n, a)
		return true
	}
}

// xchgMem is locked with or without a prefix.
func xchgMem(c *CPU, o *op) bool {
	n := int(o.size)
	v := c.loc(o.src, n)
	var old uint64
	if !c.rmw(c.addr(o), uint64(o.size), true, func(a uint64) uint64 { old = a; return v }) {
		return false
	}
	c.setLoc(o.src, n, old)
	return true
}

func bindXADD(bd *builder, in *decode.Inst, o *op) handler {
	d := in.Args[0]
	o.size, o.src = d.Size, reg(in.Args[1])
	if d.Kind == decode.Mem {
		bd.mem(o)
		lock := in.Prefix&decode.Lock != 0
		return func(c *CPU, o *op) bool {
			n := int(o.size)
			v := c.loc(o.src, n)
			var old uint64
			if !c.rmw(c.addr(o), uint64(o.size), lock, func(a uint64) uint64 { old = a; return c.alu(aluAdd, a, v, uint64(n)) }) {
				return false
			}
			c.setLoc(o.src, n, old)
			return true
		}
	}
	o.dst = reg(d)
	return func(c *CPU, o *op) bool {
		n := int(o.size)
		a := c.loc(o.dst, n)
		r := c.alu(aluAdd, a, c.loc(o.src, n), uint64(n))
		c.setLoc(o.src, n, a)
		c.setLoc(o.dst, n, r)
		return true
	}
}

func bindCMPXCHG(bd *builder, in *decode.Inst, o *op) handler {
	d := in.Args[0]
	o.size, o.src = d.Size, reg(in.Args[1])
	if d.Kind == decode.Mem {
		bd.mem(o)
		lock := in.Prefix&decode.Lock != 0
		return func(c *CPU, o *op) bool {
			n := int(o.size)
			v, want := c.loc(o.src, n), c.loc(offRAX, n)
			var old uint64
			// The destination is written in either case, with what it held if the comparison fails (SDM vol. 2, CMPXCHG).
			if !c.rmw(c.addr(o), uint64(o.size), lock, func(a uint64) uint64 {
				old = a
				c.alu(aluCmp, want, a, uint64(n))
				if a == want {
					return v
				}
				return a
			}) {
				return false
			}
			if old != want {
				c.setLoc(offRAX, n, old)
			}
			return true
		}
	}
	o.dst = reg(d)
	return func(c *CPU, o *op) bool {
		n := int(o.size)
		a, want := c.loc(o.dst, n), c.loc(offRAX, n)
		c.alu(aluCmp, want, a, uint64(n))
		if a == want {
			c.setLoc(o.dst, n, c.loc(o.src, n))
		} else {
			c.setLoc(o.dst, n, a)
			c.setLoc(offRAX, n, a)
		}
		return true
	}
}

func bindCMPXCHG8B(bd *builder, in *decode.Inst, o *op) handler {
	bd.mem(o)
	lock := in.Prefix&decode.Lock != 0
	return func(c *CPU, o *op) bool {
		want := c.gpr[x86.RDX]<<32 | c.gpr[x86.RAX]&0xFFFFFFFF
		v := c.gpr[x86.RCX]<<32 | c.gpr[x86.RBX]&0xFFFFFFFF
		var old uint64
		if !c.rmw(c.addr(o), 8, lock, func(a uint64) uint64 {
			old = a
			if a == want {
				return v
			}
			return a
		}) {
			return false
		}
		if old != want {
			c.gpr[x86.RAX], c.gpr[x86.RDX] = old&0xFFFFFFFF, old>>32
		}
		c.setZF(old == want)
		return true
	}
}

func bindCMPXCHG16B(bd *builder, in *decode.Inst, o *op) handler {
	bd.mem(o)
	return cmpxchg16b
}

func cmpxchg16b(c *CPU, o *op) bool {
	va := c.addr(o)
	if !c.canonical(va) {
		c.raiseCode(x86.GP, 0)
		c.fault.canon = true
		return false
	}
	if va&15 != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	want := [2]uint64{c.gpr[x86.RAX], c.gpr[x86.RDX]}
	v := [2]uint64{c.gpr[x86.RBX], c.gpr[x86.RCX]}
	old, same := want, false
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-16 {
		same = cas128(e.at8(off), &old, &v)
	} else {
		p, pa, ok := c.slowRMW(va, 16)
		if !ok {
			return false
		}
		if p != nil {
			same = cas128((*uint8)(p), &old, &v)
			c.ram.Written(pa, 16)
			c.ownMail()
		} else {
			var b [16]byte
			if !c.probeWrite(va, 16) || !c.slowLoadN(va, b[:]) {
				return false
			}
			old = [2]uint64{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
			if same = old == want; same {
				binary.LittleEndian.PutUint64(b[:], v[0])
				binary.LittleEndian.PutUint64(b[8:], v[1])
			}
			if !c.slowStoreN(va, b[:]) {
				return false
			}
		}
	}
	if !same {
		c.gpr[x86.RAX], c.gpr[x86.RDX] = old[0], old[1]
	}
	c.setZF(same)
	return true
}

// setZF changes ZF alone.
func (c *CPU) setZF(on bool) {
	v := c.status() &^ x86.ZF
	if on {
		v |= x86.ZF
	}
	c.setStatus(v)
}

func bindCMOV(bd *builder, in *decode.Inst, o *op) handler {
	d, s := in.Args[0], in.Args[1]
	o.aux, o.size, o.dst = in.Opcode&15, d.Size, reg(d)
	if s.Kind == decode.Mem {
		bd.mem(o)
		return func(c *CPU, o *op) bool {
			v, ok := c.load(c.addr(o), uint64(o.size))
			if !ok {
				return false
			}
			c.cmov(o, v)
			return true
		}
	}
	bd.does = readsFlags
	o.src = reg(s)
	if d.Size >= 4 {
		return cmov_rr[o.aux][sizeIndex(d.Size)-2]
	}
	return func(c *CPU, o *op) bool {
		c.cmov(o, *c.r64(o.src))
		return true
	}
}

// cmov clears the upper half of a 32-bit destination even if the condition is false.
func (c *CPU) cmov(o *op, v uint64) {
	if !c.cond(o.aux) {
		v = *c.r64(o.dst)
	}
	switch o.size {
	case 2:
		c.w16(o.dst, uint16(v))
	case 4:
		c.w32(o.dst, uint32(v))
	default:
		c.w64(o.dst, v)
	}
}

func bindSETCC(bd *builder, in *decode.Inst, o *op) handler {
	o.aux = in.Opcode & 15
	if in.Args[0].Kind == decode.Mem {
		bd.mem(o)
		return func(c *CPU, o *op) bool { return c.store8(c.addr(o), c.condByte(o.aux)) }
	}
	bd.does = readsFlags
	o.dst = reg(in.Args[0])
	return setcc_[o.aux]
}

func (c *CPU) condByte(cc uint8) uint8 {
	if c.cond(cc) {
		return 1
	}
	return 0
}

func bindBSWAP(bd *builder, in *decode.Inst, o *op) handler {
	bd.clean(false, nil)
	o.dst = reg(in.Args[0])
	switch in.Args[0].Size {
	case 8:
		return func(c *CPU, o *op) bool {
			c.w64(o.dst, bits.ReverseBytes64(*c.r64(o.dst)))
			return true
		}
	case 4:
		return func(c *CPU, o *op) bool {
			c.w32(o.dst, bits.ReverseBytes32(*c.r32(o.dst)))
			return true
		}
	}
	return func(c *CPU, o *op) bool { // undefined; processors clear it
		c.w16(o.dst, 0)
		return true
	}
}

func bindMOVBE(bd *builder, in *decode.Inst, o *op) handler {
	d, s := in.Args[0], in.Args[1]
	bd.mem(o)
	if d.Kind == decode.Mem {
		o.size, o.src = d.Size, reg(s)
		return func(c *CPU, o *op) bool {
			v := bits.ReverseBytes64(*c.r64(o.src)) >> (64 - 8*uint(o.size))
			return c.store(c.addr(o), v, uint64(o.size))
		}
	}
	o.size, o.dst = d.Size, reg(d)
	return func(c *CPU, o *op) bool {
		v, ok := c.load(c.addr(o), uint64(o.size))
		if ok {
			c.setReg(o.dst/8, int(o.size), bits.ReverseBytes64(v)>>(64-8*uint(o.size)))
		}
		return ok
	}
}

func bindXLAT(bd *builder, in *decode.Inst, o *op) handler {
	bd.keep(o)
	o.mseg = in.Seg
	return func(c *CPU, o *op) bool {
		off := (c.gpr[x86.RBX] + c.gpr[x86.RAX]&0xFF) & sizeMask(int(o.inst.AddrSize))
		va, ok := c.linear(o.inst.Seg, off, 1, false)
		if !ok {
			return false
		}
		v, ok := c.load8(va)
		if ok {
			c.w8(offRAX, v)
		}
		return ok
	}
}

func bindCBW(bd *builder, in *decode.Inst, o *op) handler {
	bd.clean(false, nil)
	o.size = in.Size
	return func(c *CPU, o *op) bool {
		a := c.gpr[x86.RAX]
		switch o.size {
		case 2:
			c.w16(offRAX, uint16(int8(a)))
		case 4:
			c.w32(offRAX, uint32(int16(a)))
		default:
			c.w64(offRAX, uint64(int32(a)))
		}
		return true
	}
}

func bindCWD(bd *builder, in *decode.Inst, o *op) handler {
	bd.clean(false, nil)
	o.size = in.Size
	return func(c *CPU, o *op) bool {
		a := c.gpr[x86.RAX]
		switch o.size {
		case 2:
			c.w16(offRDX, uint16(int16(a)>>15))
		case 4:
			c.w32(offRDX, uint32(int32(a)>>31))
		default:
			c.w64(offRDX, uint64(int64(a)>>63))
		}
		return true
	}
}
