package fpu

import (
	"vitrine.dev/vitrine/internal/x86"
)

// A masked overflow or underflow always is inexact as well; an unmasked one only if the result, rounded as if the exponent had no bounds, is (SDM
// vol. 1 11.5.2.4, 11.5.2.5). The x87 unit has such an exponent as far as doubles are concerned: with the precision of the
// operation's format in FCW, its PE is what a processor reports.

// An element is one operation within a vector instruction: x op y, op being the opcode of ADD, MUL, SUB, DIV or CVT.
type element struct {
	x, y uint64
	op   uint8
}

const (
	opADD, opMUL, opCVT, opSUB, opDIV = 0x58, 0x59, 0x5A, 0x5C, 0x5E
)

// elements takes an instruction apart. There are none for what is made of several roundings (DPPS, DPPD).
func (o *sseOp) elements(dst, src *[2]uint64) (list [4]element, n int) {
	at := func(v *[2]uint64, i, size uint8) uint64 {
		if size == 8 {
			return v[i&1]
		}
		return uint64(uint32(v[i>>1&1] >> (i & 1 * 32)))
	}
	size, count := o.tiny.size, o.tiny.count
	for i := range count {
		e := element{op: o.opcode}
		switch o.opcode {
		case opADD, opMUL, opSUB, opDIV:
			e.x, e.y = at(dst, i, size), at(src, i, size)
		case opCVT:
			e.x = at(src, i, 8)
		case 0xD0: // ADDSUB: odd elements are added
			e.x, e.y, e.op = at(dst, i, size), at(src, i, size), opSUB
			if i&1 == 1 {
				e.op = opADD
			}
		case 0x7C, 0x7D: // HADD, HSUB
			v, j := dst, 2*i
			if j >= count {
				v, j = src, j-count
			}
			e.x, e.y, e.op = at(v, j, size), at(v, j+1, size), opADD
			if o.opcode == 0x7D {
				e.op = opSUB
			}
		default:
			return list, 0
		}
		list[i] = e
	}
	return list, int(count)
}

// inexact is the PE that the processor reports when open, the unmasked exceptions, include one of OE and UE that was raised.
// masked is PE as the masked run had it, ctl what MXCSR it ran under.
func (o *sseOp) inexact(e *Env, dst, src *[2]uint64, open, ctl, masked uint32) (uint32, error) {
	list, n := o.elements(dst, src)
	if n == 0 {
		return masked, nil
	}
	var pe uint32
	for _, el := range list[:n] {
		f, err := o.scalar(el, ctl)
		if err != nil {
			return 0, err
		}
		if f&open&(mxOE|mxUE) != 0 {
			if f, err = o.unbounded(e, el, ctl); err != nil {
				return 0, err
			}
		}
		pe |= f & mxPE
	}
	return pe, nil
}

// scalar is the flags of one element by itself.
func (o *sseOp) scalar(el element, ctl uint32) (uint32, error) {
	pfx := uint8(0xF3)
	if o.tiny.size == 8 || el.op == opCVT {
		pfx = 0xF2
	}
	a, err := stub([]byte{0x0F, 0x10, 0x0E, 0x0F, 0x10, 0x17, pfx, 0x0F, el.op, 0xCA}) // xmm1, xmm2
	if err != nil {
		return 0, err
	}
	x, y := [2]uint64{el.x}, [2]uint64{el.y}
	if el.op == opCVT {
		y = x
	}
	r := regs{dst: ref(&x), src: ref(&y), mxcsr: ctl}
	invokeFP(a, &r)
	return r.mxcsr & mxcsrFlags, nil
}

// unbounded is the x87 unit's flags for one element.
func (o *sseOp) unbounded(e *Env, el element, ctl uint32) (uint32, error) {
	double := o.tiny.size == 8 || el.op == opCVT // the operands' format
	load, op, mask := uint8(0xD9), uint8(0xD8), uint64(0x7F800000)
	if double {
		load, op, mask = 0xDD, 0xDC, 0x7FF<<52
	}
	if ctl&mxcsrDAZ != 0 {
		for _, p := range []*uint64{&el.x, &el.y} {
			if *p&mask == 0 {
				*p = 0
			}
		}
	}
	reg := map[uint8]uint8{opADD: 0, opCVT: 0, opMUL: 1, opSUB: 4, opDIV: 6}[el.op]
	a, err := stub([]byte{load, 0x06, op, reg<<3 | 7}) // FLD [RSI]; op ST0, [RDI]
	if err != nil {
		return 0, err
	}
	s := x86.FPU{FCW: fcwInit&^0x0F00 | uint16(ctl>>13&3)<<10}
	if o.tiny.size == 8 {
		s.FCW |= 2 << 8
	}
	m := e.img.area()
	enter87(&s, m)
	r := regs{dst: ref(&el.x), src: ref(&el.y)}
	invokeX87(a, &r, &m[0])
	leave87(&s, m)
	return uint32(s.FSW) & mxcsrFlags, nil
}
