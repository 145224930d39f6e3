package fpu

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Bits of MXCSR (SDM vol. 1 10.2.3).
const (
	mxIE, mxDE, mxZE, mxOE, mxUE, mxPE = 1, 2, 4, 8, 16, 32
	mxcsrFlags                         = 0x003F
	mxcsrMasks                         = 0x1F80
	mxcsrFTZ                           = 0x8000
	mxcsrDAZ                           = 0x0040
	mxPre                              = mxIE | mxDE | mxZE // found before the computation
)

// A tiny says in which elements of the result an exact denormal is an underflow: masked, the processor flags only inexact ones
// (SDM vol. 1 4.9.1.5).
type tiny struct{ size, count uint8 } // bytes an element, elements; none where the operation cannot underflow

// An arith is what is known of an operation for the sake of unmasked exceptions.
type arith struct {
	tiny   tiny
	opcode uint8
	kind   arithKind
	imm    uint8 // of VCVTPS2PH: how it rounds
}

// arithKind is how an operation's elements are made.
type arithKind uint8

const (
	opaque  arithKind = iota // of several roundings
	legacy                   // from the destination and ModRM.rm
	vexed                    // from VEX.vvvv and ModRM.rm
	fused                    // from all three
	halving                  // from ModRM.reg, to 16 bits: VCVTPS2PH
)

func arithOf(in *decode.Inst) arith {
	a := arith{opcode: in.Opcode, kind: legacy}
	if in.Prefix&decode.Vex != 0 {
		a.kind = vexed
	}
	long := uint8(1)
	if in.Prefix&decode.VexL != 0 {
		long = 2
	}
	single, double := tiny{4, 4 * long}, tiny{8, 2 * long}
	switch in.Map {
	case 1:
		a.tiny = a.tinyOf(in, single, double)
	case 2:
		if in.Op == decode.VCVTPH2PS || in.Flags&decode.ReadsDst == 0 || in.Flags&decode.VSIB != 0 {
			break
		}
		a.kind, a.tiny = fused, single
		if in.Prefix&decode.RexW != 0 {
			a.tiny = double
		}
		if in.Flags&decode.Lig != 0 {
			a.tiny.count = 1
		}
	case 3:
		switch {
		case in.Op == decode.VCVTPS2PH:
			a.kind, a.tiny, a.imm = halving, tiny{2, single.count}, uint8(in.Imm)
		case in.Opcode == 0x40: // DPPS
			a.kind, a.tiny = opaque, single
		case in.Opcode == 0x41: // DPPD
			a.kind, a.tiny = opaque, double
		}
	}
	return a
}

// tinyOf is for map 1.
func (a *arith) tinyOf(in *decode.Inst, single, double tiny) tiny {
	switch in.Opcode {
	case opADD, opMUL, opSUB, opDIV:
		switch in.Pfx {
		case 0x66:
			return double
		case 0xF3:
			return tiny{4, 1}
		case 0xF2:
			return tiny{8, 1}
		}
		return single
	case opCVT:
		switch in.Pfx {
		case 0x66: // CVTPD2PS
			return tiny{4, double.count}
		case 0xF2: // CVTSD2SS
			return tiny{4, 1}
		}
	case 0x7C, 0x7D, 0xD0: // HADD, HSUB, ADDSUB
		if in.Pfx == 0x66 {
			return double
		}
		return single
	}
	return tiny{}
}

// inputs are the operands of an instruction as they were before it.
type inputs struct{ dst, vvvv, rm *x86.YMM }

// unmasked executes while the guest has exceptions unmasked: the instruction runs masked on a copy of its destination, and the copy
// is kept if nothing is to be reported.
func (o *sseOp) unmasked(s *x86.FPU, e *Env, r *regs) x86.Vector {
	res := &e.res
	*res = x86.YMM{}
	dst := r.dst
	n := 2 // words of the destination
	if o.dst.kind == decode.MMX {
		n = 1
	}
	if o.dst.kind != decode.None {
		copy(res[:n], words(dst, n))
	}
	r.dst = ref(res)
	raised, v := o.run(o.stub, s, e, r, res, &inputs{dst: vec(dst), rm: vec(r.src)})
	s.MXCSR |= raised
	if v != x86.NoVector {
		if o.mmx { // An instruction that uses MMX registers has switched to them by then (a Zen 4 was asked).
			toMMX(s)
		}
		return v
	}
	if o.dst.kind != decode.None && o.what&flags == 0 {
		copy(words(dst, n), res[:n])
	}
	o.finish(s, e, r)
	return x86.NoVector
}

// run executes the stub with all exceptions masked, and derives from the flags that it raised those that the processor reports, and whether it reports #XM:
// exceptions found before the computation hide those found after it (SDM vol. 1 11.5.3, 4.9.2). res is where the stub leaves the result.
func (a *arith) run(stub uintptr, s *x86.FPU, e *Env, r *regs, res *x86.YMM, in *inputs) (reported uint32, v x86.Vector) {
	open := ^(s.MXCSR >> 7) & mxcsrFlags
	r.mxcsr = s.MXCSR&MXCSRMask&^mxcsrFlags | mxcsrMasks
	if open&mxUE != 0 {
		r.mxcsr &^= mxcsrFTZ // flush to zero is for masked underflow only
	}
	ctl := r.mxcsr
	invokeFP(stub, r)
	raised := r.mxcsr & mxcsrFlags
	if raised&open&mxPre != 0 {
		return raised & mxPre, x86.XM
	}
	if open&mxUE != 0 && a.tiny.in(res) {
		raised |= mxUE
	}
	if raised&open&(mxOE|mxUE) != 0 && a.tiny.count != 0 {
		pe, err := a.inexact(e, in, open, ctl, raised&mxPE)
		if err != nil {
			panic("BUG: fpu: no stub for what the host has just executed: " + err.Error())
		}
		raised = raised&^mxPE | pe
	}
	if raised&open != 0 {
		return raised, x86.XM
	}
	return raised, x86.NoVector
}

// in says whether an element of the result is denormal.
func (t *tiny) in(res *x86.YMM) bool {
	for i := range t.count {
		v := at(res, i, t.size) << (64 - 8*t.size) << 1
		if exp := [...]uint8{2: 5, 4: 8, 8: 11}[t.size&15]; v != 0 && v>>(64-exp) == 0 {
			return true
		}
	}
	return false
}

// at is element i of v, size bytes wide.
func at(v *x86.YMM, i, size uint8) uint64 {
	bit := uint(i) * uint(size) * 8
	return v[bit>>6&3] >> (bit & 63) & (1<<(8*size) - 1)
}
