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

func tinyOf(in *decode.Inst) tiny {
	single, double := tiny{4, 4}, tiny{8, 2}
	switch {
	case in.Map == 3 && in.Opcode == 0x40: // DPPS
		return single
	case in.Map == 3 && in.Opcode == 0x41: // DPPD
		return double
	case in.Map != 1:
		return tiny{}
	}
	switch in.Opcode {
	case 0x58, 0x59, 0x5C, 0x5E: // ADD, MUL, SUB, DIV
		switch in.Pfx {
		case 0x66:
			return double
		case 0xF3:
			return tiny{4, 1}
		case 0xF2:
			return tiny{8, 1}
		}
		return single
	case 0x5A:
		switch in.Pfx {
		case 0x66: // CVTPD2PS
			return tiny{4, 2}
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

// unmasked executes while the guest has exceptions unmasked: the instruction runs masked on a copy of its destination, and the copy
// is kept if nothing is to be reported. Without that, what the processor would have left is derived from the flags:
// exceptions found before the computation hide those found after it (SDM vol. 1 11.5.3, 4.9.2).
func (o *sseOp) unmasked(s *x86.FPU, e *Env, r *regs) x86.Vector {
	open := ^(s.MXCSR >> 7) & mxcsrFlags
	res := &e.res
	*res = [2]uint64{}
	dst := r.dst
	n := 2 // words of the destination
	if o.dst.kind == decode.MMX {
		n = 1
	}
	if o.dst.kind != decode.None {
		copy(res[:n], words(dst, n))
	}
	r.dst = ref(res)
	r.mxcsr = s.MXCSR&MXCSRMask&^mxcsrFlags | mxcsrMasks
	if open&mxUE != 0 {
		r.mxcsr &^= mxcsrFTZ // flush to zero is for masked underflow only
	}
	ctl := r.mxcsr
	invokeFP(o.stub, r)
	raised := r.mxcsr & mxcsrFlags
	if raised&open&mxPre != 0 {
		s.MXCSR |= raised & mxPre
		return o.xm(s)
	}
	if open&mxUE != 0 && o.tiny.in(res) {
		raised |= mxUE
	}
	if raised&open&(mxOE|mxUE) != 0 && o.tiny.count != 0 {
		pe, err := o.inexact(e, pair(dst), pair(r.src), open, ctl, raised&mxPE)
		if err != nil {
			panic("BUG: fpu: no stub for what the host has just executed: " + err.Error())
		}
		raised = raised&^mxPE | pe
	}
	s.MXCSR |= raised
	if raised&open != 0 {
		return o.xm(s)
	}
	if o.dst.kind != decode.None && o.what&flags == 0 {
		copy(words(dst, n), res[:n])
	}
	o.finish(s, e, r)
	return x86.NoVector
}

// xm reports #XM. An instruction that uses MMX registers has switched to them by then (a Zen 4 was asked).
func (o *sseOp) xm(s *x86.FPU) x86.Vector {
	if o.mmx {
		toMMX(s)
	}
	return x86.XM
}

// in says whether an element of the result is denormal.
func (t tiny) in(res *[2]uint64) bool {
	for i := range t.count {
		if t.size == 8 {
			if v := res[i] << 1; v != 0 && v>>53 == 0 {
				return true
			}
		} else if v := uint32(res[i/2]>>(i%2*32)) << 1; v != 0 && v>>24 == 0 {
			return true
		}
	}
	return false
}
