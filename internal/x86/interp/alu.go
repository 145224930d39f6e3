package interp

import (
	"unsafe"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// The two-operand operations, in the order of the generated tables.
const (
	aluAdd = iota
	aluOr
	aluAdc
	aluSbb
	aluAnd
	aluSub
	aluXor
	aluCmp
	aluTest
)

// sizeIndex is a size's column in the generated tables.
func sizeIndex(size uint8) int {
	switch size {
	case 1:
		return 0
	case 2:
		return 1
	case 4:
		return 2
	}
	return 3
}

// bindALU binds a two-operand operation.
func bindALU(k int) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		d, s := in.Args[0], in.Args[1]
		z := sizeIndex(d.Size)
		o.aux, o.size, o.imm = uint8(k), d.Size, uint64(in.Imm)
		sets := effect(setsFlags)
		if k == aluAdc || k == aluSbb {
			sets |= readsFlags
		}
		switch {
		case d.Kind == decode.Mem:
			bd.does = stops | sets
			bd.mem(o)
			if s.Kind != decode.Imm {
				o.src = reg(s)
			}
			switch {
			case in.Prefix&decode.Lock != 0:
				if s.Kind == decode.Imm {
					return lockALUi
				}
				return lockALUr
			case s.Kind == decode.Imm:
				return alu_mi[k][z]
			}
			return alu_mr[k][z]
		case s.Kind == decode.Mem:
			bd.does = stops | sets
			bd.mem(o)
			o.dst = reg(d)
			return alu_rm[k][z]
		case s.Kind == decode.Imm:
			o.dst = reg(d)
			bd.does, bd.quiet = sets, alu_riq[k][z]
			return alu_ri[k][z]
		}
		o.dst, o.src = reg(d), reg(s)
		bd.does, bd.quiet = sets, alu_rrq[k][z]
		return alu_rr[k][z]
	}
}

// alu computes an operation of any size with its flags.
func (c *CPU) alu(k uint8, a, b, size uint64) uint64 {
	sh := 64 - 8*size
	a, b = uint64(int64(a<<sh)>>sh), uint64(int64(b<<sh)>>sh)
	var r uint64
	var kind ccKind
	switch k {
	case aluAdd:
		r, kind = a+b, ccAdd
	case aluAdc:
		cf := c.cfBit()
		r, kind = a+b+cf, ccAdd+ccKind(cf)
	case aluSub, aluCmp:
		r, kind = a-b, ccSub
	case aluSbb:
		cf := c.cfBit()
		r, kind = a-b-cf, ccSub+ccKind(cf)
	case aluOr:
		r, kind = a|b, ccRes
	case aluXor:
		r, kind = a^b, ccRes
	default:
		r, kind = a&b, ccRes
	}
	r = uint64(int64(r<<sh) >> sh)
	if kind == ccRes {
		b = 0
	}
	c.cc = lazyFlags{res: r, a: a, b: b, kind: kind}
	return r
}

// slowALU is a read-modify-write that misses the TLB, or whose page is tracked.
func (c *CPU) slowALU(o *op, va, size, b uint64) bool {
	return c.rmw(va, size, false, func(a uint64) uint64 { return c.alu(o.aux, a, b, size) })
}

func lockALUr(c *CPU, o *op) bool {
	size, b := uint64(o.size), c.loc(o.src, int(o.size))
	return c.rmw(c.addr(o), size, true, func(a uint64) uint64 { return c.alu(o.aux, a, b, size) })
}

func lockALUi(c *CPU, o *op) bool {
	size := uint64(o.size)
	return c.rmw(c.addr(o), size, true, func(a uint64) uint64 { return c.alu(o.aux, a, o.imm, size) })
}

// rmw replaces the size bytes at va by f of them, atomically if lock is set. f may change flags; it can be called more than once, each
// time with the flags as they were. Nothing is changed on a fault.
func (c *CPU) rmw(va, size uint64, lock bool, f func(uint64) uint64) bool {
	e := c.tlb.entry(va)
	off := va - e.write
	switch {
	case off <= pageSize-size && !lock:
		e.set(off, size, f(e.get(off, size)))
		return true
	case off <= pageSize-size:
		c.atomic(unsafe.Pointer(e.at8(off)), size, f)
		return true
	case !lock:
		if !c.probeWrite(va, size) {
			return false
		}
		v, ok := c.slowLoad(va, size)
		return ok && c.slowStore(va, f(v), size)
	}
	p, pa, ok := c.slowRMW(va, size)
	if !ok {
		return false
	}
	if p != nil {
		c.atomic(p, size, f)
		c.ram.Written(pa, int(size))
		c.ownMail()
		return true
	}
	// No host instruction does it: across pages, or a device. The VM's lock makes such accesses atomic towards each other.
	if !c.probeWrite(va, size) {
		return false
	}
	c.park()
	c.vm.split.Lock()
	c.unpark()
	defer c.vm.split.Unlock()
	v, ok := c.slowLoad(va, size)
	return ok && c.slowStore(va, f(v), size)
}

func (c *CPU) atomic(p unsafe.Pointer, size uint64, f func(uint64) uint64) {
	cc := c.cc
	atomicUpdate(p, size, func(v uint64) uint64 {
		c.cc = cc
		return f(v)
	})
}

// bindUnary binds INC, DEC, NEG and NOT.
func bindUnary(regs *[4]handler, f func(c *CPU, a, size uint64) uint64, does effect) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		d := in.Args[0]
		o.size = d.Size
		if d.Kind != decode.Mem {
			o.dst = reg(d)
			bd.does = does
			return regs[sizeIndex(d.Size)]
		}
		bd.mem(o)
		lock := in.Prefix&decode.Lock != 0
		return func(c *CPU, o *op) bool {
			size := uint64(o.size)
			return c.rmw(c.addr(o), size, lock, func(a uint64) uint64 { return f(c, a, size) })
		}
	}
}

func (c *CPU) inc(a, size uint64) uint64 {
	cf := c.cfBit()
	r := c.alu(aluAdd, a, 1, size)
	c.cc.kind, c.cc.b = ccInc, cf
	return r
}

func (c *CPU) dec(a, size uint64) uint64 {
	cf := c.cfBit()
	r := c.alu(aluSub, a, 1, size)
	c.cc.kind, c.cc.b = ccDec, cf
	return r
}

func (c *CPU) neg(a, size uint64) uint64 { return c.alu(aluSub, 0, a, size) }
func (c *CPU) not(a, _ uint64) uint64    { return ^a }
