package fpu

import (
	"math"
	"math/big"

	"vitrine.dev/vitrine/internal/x86"
)

// A masked overflow or underflow always is inexact as well; an unmasked one only if the result, rounded as if the exponent had no bounds, is (SDM
// vol. 1 11.5.2.4, 11.5.2.5). The x87 unit has such an exponent as far as doubles are concerned: with the precision of the
// operation's format in FCW, its PE is what a processor reports.

// An element is one operation within a vector instruction: x op y, op being the opcode of ADD, MUL, SUB, DIV or CVT; or x * y op z, op being
// FMA's opcode in the form 213 of scalars; or x made a half.
type element struct {
	x, y, z uint64
	op      uint8
}

const (
	opADD, opMUL, opCVT, opSUB, opDIV = 0x58, 0x59, 0x5A, 0x5C, 0x5E
	opFMADD, opFMSUB                  = 0xA9, 0xAB
)

// elements takes an instruction apart. There are none for what is made of several roundings (DPPS, DPPD).
func (a *arith) elements(in *inputs) (list [8]element, n int) {
	size, count := a.tiny.size, a.tiny.count
	first := in.dst
	if a.kind == vexed {
		first = in.vvvv
	}
	lane := min(16/size, count)
	for i := range count {
		e := element{op: a.opcode}
		switch {
		case a.kind == opaque:
			return list, 0
		case a.kind == halving:
			e.x = at(in.dst, i, 4)
		case a.kind == fused:
			e = a.fused(in, i)
		case a.opcode == opADD, a.opcode == opMUL, a.opcode == opSUB, a.opcode == opDIV:
			e.x, e.y = at(first, i, size), at(in.rm, i, size)
		case a.opcode == opCVT:
			e.x = at(in.rm, i, 8)
		case a.opcode == 0xD0: // ADDSUB: odd elements are added
			e.x, e.y, e.op = at(first, i, size), at(in.rm, i, size), opSUB
			if i&1 == 1 {
				e.op = opADD
			}
		case a.opcode == 0x7C, a.opcode == 0x7D: // HADD, HSUB: in each lane the sums of one operand, then of the other
			v, j := first, i%lane*2
			if j >= lane {
				v, j = in.rm, j-lane
			}
			j += i / lane * lane
			e.x, e.y, e.op = at(v, j, size), at(v, j+1, size), opADD
			if a.opcode == 0x7D {
				e.op = opSUB
			}
		default:
			return list, 0
		}
		list[i] = e
	}
	return list, int(count)
}

// fused is element i of an FMA instruction.
func (a *arith) fused(in *inputs, i uint8) element {
	size := a.tiny.size
	d, h, r := at(in.dst, i, size), at(in.vvvv, i, size), at(in.rm, i, size)
	e := element{x: h, y: d, z: r} // 213
	switch a.opcode >> 4 {
	case 9: // 132
		e = element{x: d, y: r, z: h}
	case 0xB: // 231
		e = element{x: h, y: r, z: d}
	}
	e.op = 0xA1 | a.opcode&0xE
	switch odd := i&1 == 1; {
	case a.opcode&15 == 6: // FMADDSUB
		e.op = opFMSUB
		if odd {
			e.op = opFMADD
		}
	case a.opcode&15 == 7: // FMSUBADD
		e.op = opFMADD
		if odd {
			e.op = opFMSUB
		}
	}
	return e
}

// inexact is the PE that the processor reports when open, the unmasked exceptions, include one of OE and UE that was raised.
// masked is PE as the masked run had it, ctl what MXCSR it ran under.
func (a *arith) inexact(e *Env, in *inputs, open, ctl, masked uint32) (uint32, error) {
	list, n := a.elements(in)
	if n == 0 {
		return masked, nil
	}
	var pe uint32
	for _, el := range list[:n] {
		f, err := a.scalar(el, ctl)
		if err != nil {
			return 0, err
		}
		if f&open&(mxOE|mxUE) != 0 {
			switch a.kind {
			case fused:
				f = a.exact(el, ctl)
			case halving:
				f = halfInexact(uint32(el.x))
			default:
				if f, err = a.unbounded(e, el, ctl); err != nil {
					return 0, err
				}
			}
		}
		pe |= f & mxPE
	}
	return pe, nil
}

// scalar is the flags of one element by itself.
func (a *arith) scalar(el element, ctl uint32) (uint32, error) {
	double := a.tiny.size == 8 || a.kind != fused && a.kind != halving && el.op == opCVT
	var code []byte
	switch pfx := uint8(0xF3); a.kind {
	case fused:
		w := uint8(0x69) // VEX: xmm2, 66
		if double {
			w |= 0x80
		}
		code = []byte{0x0F, 0x10, 0x0E, 0x0F, 0x10, 0x17, 0x41, 0x0F, 0x10, 0x18, 0xC4, 0xE2, w, el.op, 0xCB, 0xC5, 0xF8, 0x77} // xmm1, xmm2, xmm3
	case halving:
		code = []byte{0x0F, 0x10, 0x0E, 0xC4, 0xE3, 0x79, 0x1D, 0xC9, a.imm, 0xC5, 0xF8, 0x77} // xmm1, xmm1
	default:
		if double {
			pfx = 0xF2
		}
		code = []byte{0x0F, 0x10, 0x0E, 0x0F, 0x10, 0x17, pfx, 0x0F, el.op, 0xCA} // xmm1, xmm2
	}
	p, err := stub(code)
	if err != nil {
		return 0, err
	}
	x, y, z := x86.YMM{el.x}, x86.YMM{el.y}, x86.YMM{el.z}
	switch {
	case a.kind == fused:
		x, y = y, x // 213: xmm2 * xmm1 + xmm3
	case el.op == opCVT && a.kind != halving:
		y = x
	}
	r := regs{dst: ref(&x), src: ref(&y), x0: ref(&z), mxcsr: ctl}
	invokeFP(p, &r)
	return r.mxcsr & mxcsrFlags, nil
}

// unbounded is the x87 unit's flags for one element.
func (a *arith) unbounded(e *Env, el element, ctl uint32) (uint32, error) {
	double := a.tiny.size == 8 || el.op == opCVT // the operands' format
	load, op := uint8(0xD9), uint8(0xD8)
	if double {
		load, op = 0xDD, 0xDC
	}
	if ctl&mxcsrDAZ != 0 {
		el.x, el.y = noDenormal(el.x, double), noDenormal(el.y, double)
	}
	reg := map[uint8]uint8{opADD: 0, opCVT: 0, opMUL: 1, opSUB: 4, opDIV: 6}[el.op]
	p, err := stub([]byte{load, 0x06, op, reg<<3 | 7}) // FLD [RSI]; op ST0, [RDI]
	if err != nil {
		return 0, err
	}
	s := x86.FPU{FCW: fcwInit&^0x0F00 | uint16(ctl>>13&3)<<10}
	if a.tiny.size == 8 {
		s.FCW |= 2 << 8
	}
	m := e.img.area()
	enter87(&s, m)
	r := regs{dst: ref(&el.x), src: ref(&el.y)}
	invokeX87(p, &r, &m[0])
	leave87(&s, m)
	return uint32(s.FSW) & mxcsrFlags, nil
}

// noDenormal is what DAZ makes of a number.
func noDenormal(v uint64, double bool) uint64 {
	mask := uint64(0x7F800000)
	if double {
		mask = 0x7FF << 52
	}
	if v&mask == 0 {
		return 0
	}
	return v
}

// exact is PE if x * y + z, or - z, of numbers that are finite has more digits than the format.
func (a *arith) exact(el element, ctl uint32) uint32 {
	number := func(v uint64) *big.Float {
		if ctl&mxcsrDAZ != 0 {
			v = noDenormal(v, a.tiny.size == 8)
		}
		if a.tiny.size == 8 {
			return big.NewFloat(math.Float64frombits(v))
		}
		return big.NewFloat(float64(math.Float32frombits(uint32(v))))
	}
	const digits = 5000 // from the square of the largest double to that of the smallest
	v := new(big.Float).SetPrec(digits)
	v.Mul(number(el.x), number(el.y))
	// FMADD and FNMSUB are a sum up to the sign, FMSUB and FNMADD a difference.
	if z := number(el.z); el.op == opFMADD || el.op == 0xAF {
		v.Add(v, z)
	} else {
		v.Sub(v, z)
	}
	prec := uint(24)
	if a.tiny.size == 8 {
		prec = 53
	}
	if v.MinPrec() > prec {
		return mxPE
	}
	return 0
}

// halfInexact is PE if a single has more digits than a half.
func halfInexact(v uint32) uint32 {
	m := v & 0x7FFFFF
	if v&0x7F800000 != 0 {
		m |= 0x800000
	}
	if big.NewFloat(float64(m)).MinPrec() > 11 {
		return mxPE
	}
	return 0
}
