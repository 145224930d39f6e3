package interp

import (
	"hash/crc32"
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// What BT's family does with the bit.
const (
	bitTest = iota
	bitSet
	bitReset
	bitComplement
)

func changeBit(kind int, v, bit uint64) uint64 {
	switch kind {
	case bitSet:
		return v | bit
	case bitReset:
		return v &^ bit
	case bitComplement:
		return v ^ bit
	}
	return v
}

func bindBT(kind int) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		d, s := in.Args[0], in.Args[1]
		w := uint64(d.Size) * 8
		o.size = d.Size
		byReg := s.Kind != decode.Imm
		if byReg {
			o.src = reg(s)
		}
		o.imm = uint64(in.Imm) & (w - 1)
		if d.Kind != decode.Mem {
			o.dst = reg(d)
			bd.does = readsFlags
			return func(c *CPU, o *op) bool {
				n, size := o.imm, int(o.size)
				if byReg {
					n = *c.r64(o.src) & (uint64(size)*8 - 1)
				}
				v := c.loc(o.dst, size)
				c.setCF(v>>n&1 != 0)
				if kind != bitTest {
					c.setLoc(o.dst, size, changeBit(kind, v, 1<<n))
				}
				return true
			}
		}
		lock := in.Prefix&decode.Lock != 0
		if !byReg || in.Mode == decode.Mode64 && in.AddrSize == 8 {
			bd.mem(o)
			return func(c *CPU, o *op) bool {
				n, va := o.imm, c.addr(o)
				if byReg {
					n, va = c.bitAt(o, va)
				}
				return c.bitMem(kind, va, n, uint64(o.size), lock)
			}
		}
		bd.keep(o)
		return func(c *CPU, o *op) bool {
			size := uint64(o.size)
			n, off := c.bitAt(o, c.offset(o))
			va, ok := c.linear(o.inst.Mem.Seg, off&sizeMask(int(o.inst.AddrSize)), size, kind != bitTest)
			return ok && c.bitMem(kind, va, n, size, lock)
		}
	}
}

// bitAt moves address a to the operand-sized word that the bit string's bit number in o.src is in; the number is signed.
func (c *CPU) bitAt(o *op, a uint64) (bit, at uint64) {
	n := signed(*c.r64(o.src), o.size)
	w := int64(o.size) * 8
	return uint64(n & (w - 1)), a + uint64((n&^(w-1))/8)
}

func (c *CPU) bitMem(kind int, va, n, size uint64, lock bool) bool {
	var old uint64
	if kind == bitTest {
		var ok bool
		if old, ok = c.load(va, size); !ok {
			return false
		}
	} else if !c.rmw(va, size, lock, func(v uint64) uint64 { old = v; return changeBit(kind, v, 1<<n) }) {
		return false
	}
	c.setCF(old>>n&1 != 0)
	return true
}

// bindBitScan binds BSF and BSR. A source of zero leaves the destination, as processors do.
func bindBitScan(reverse bool) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		bd.source(in.Args[1], o)
		o.dst = reg(in.Args[0])
		return func(c *CPU, o *op) bool {
			v, ok := c.source(o)
			if !ok {
				return false
			}
			c.setZF(v == 0)
			switch {
			case v == 0:
			case reverse:
				c.setReg(o.dst/8, int(o.size), uint64(bits.Len64(v)-1))
			default:
				c.setReg(o.dst/8, int(o.size), uint64(bits.TrailingZeros64(v)))
			}
			return true
		}
	}
}

// bindCount binds POPCNT, TZCNT and LZCNT.
func bindCount(f func(v, size uint64) (r, flags uint64)) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		bd.source(in.Args[1], o)
		o.dst = reg(in.Args[0])
		return func(c *CPU, o *op) bool {
			v, ok := c.source(o)
			if !ok {
				return false
			}
			r, flags := f(v, uint64(o.size))
			c.setStatus(flags)
			c.setReg(o.dst/8, int(o.size), r)
			return true
		}
	}
}

func popcnt(v, _ uint64) (uint64, uint64) {
	if v == 0 {
		return 0, x86.ZF
	}
	return uint64(bits.OnesCount64(v)), 0
}

func tzcnt(v, size uint64) (uint64, uint64) {
	return countFlags(min(uint64(bits.TrailingZeros64(v)), 8*size), v)
}

func lzcnt(v, size uint64) (uint64, uint64) {
	return countFlags(uint64(bits.LeadingZeros64(v))-(64-8*size), v)
}

func countFlags(r, v uint64) (uint64, uint64) {
	switch {
	case v == 0:
		return r, x86.CF
	case r == 0:
		return r, x86.ZF
	}
	return r, 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func bindCRC32(bd *builder, in *decode.Inst, o *op) handler {
	bd.source(in.Args[1], o)
	o.dst = reg(in.Args[0])
	if in.Args[1].Kind != decode.Mem {
		bd.clean(false, nil)
	}
	return func(c *CPU, o *op) bool {
		v, ok := c.source(o)
		if !ok {
			return false
		}
		crc := *c.r32(o.dst)
		for range o.size {
			crc = castagnoli[uint8(crc)^uint8(v)] ^ crc>>8
			v >>= 8
		}
		c.w32(o.dst, crc)
		return true
	}
}
