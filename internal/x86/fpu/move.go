package fpu

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// What only moves or combines bits needs no stub. Interpreters spend most of their vector time here.

// move returns what executes in without a stub, or nil.
func move(in *decode.Inst) Fn {
	a, b := in.Args[0], in.Args[1]
	d, n := a.Reg&15, b.Reg&15
	memSrc := b.Kind == decode.Mem
	switch in.Op {
	case decode.MOVAPS, decode.MOVAPD, decode.MOVUPS, decode.MOVUPD, decode.MOVDQA, decode.MOVDQU, decode.LDDQU,
		decode.MOVNTPS, decode.MOVNTPD, decode.MOVNTDQ, decode.MOVNTDQA:
		switch {
		case a.Kind == decode.Mem:
			return func(s *x86.FPU, e *Env) x86.Vector {
				e.NoStore = false
				le.PutUint64(e.Mem[0:], s.Vec[n][0])
				le.PutUint64(e.Mem[8:], s.Vec[n][1])
				return x86.NoVector
			}
		case memSrc:
			return func(s *x86.FPU, e *Env) x86.Vector {
				s.Vec[d][0], s.Vec[d][1] = le.Uint64(e.Mem[0:]), le.Uint64(e.Mem[8:])
				return x86.NoVector
			}
		}
		return func(s *x86.FPU, _ *Env) x86.Vector {
			s.Vec[d][0], s.Vec[d][1] = s.Vec[n][0], s.Vec[n][1]
			return x86.NoVector
		}
	case decode.MOVD, decode.MOVQ, decode.MOVNTQ, decode.MOVQ2DQ, decode.MOVDQ2Q:
		return moveWord(in)
	case decode.MOVSS, decode.MOVSDX:
		return moveScalar(in)
	case decode.MOVLPS, decode.MOVLPD, decode.MOVHPS, decode.MOVHPD:
		half := 0
		if in.Op == decode.MOVHPS || in.Op == decode.MOVHPD {
			half = 1
		}
		if a.Kind == decode.Mem {
			return func(s *x86.FPU, e *Env) x86.Vector {
				e.NoStore = false
				le.PutUint64(e.Mem[:], s.Vec[n][half])
				return x86.NoVector
			}
		}
		return func(s *x86.FPU, e *Env) x86.Vector {
			s.Vec[d][half] = le.Uint64(e.Mem[:])
			return x86.NoVector
		}
	case decode.MOVHLPS:
		return func(s *x86.FPU, _ *Env) x86.Vector { s.Vec[d][0] = s.Vec[n][1]; return x86.NoVector }
	case decode.MOVLHPS:
		return func(s *x86.FPU, _ *Env) x86.Vector { s.Vec[d][1] = s.Vec[n][0]; return x86.NoVector }
	case decode.MASKMOVQ, decode.MASKMOVDQU:
		return maskedMove(in)
	case decode.PXOR, decode.POR, decode.PAND, decode.PANDN:
		if a.Kind == decode.MMX {
			return nil
		}
	}
	return logic(in)
}

// moveWord is MOVD and MOVQ in all directions: what is read fills the rest of a vector register with zeros.
func moveWord(in *decode.Inst) Fn {
	a, b := in.Args[0], in.Args[1]
	d, n := a.Reg&15, b.Reg&15
	mask := scalarMask(in)
	read := func(s *x86.FPU, e *Env) uint64 {
		switch b.Kind {
		case decode.XMM:
			return s.Vec[n][0] & mask
		case decode.MMX:
			return s.R[n&7].Mant & mask
		case decode.Mem:
			return le.Uint64(e.Mem[:]) & mask
		}
		return e.GPR & mask
	}
	if a.Kind == decode.XMM && b.Kind == decode.Mem {
		return func(s *x86.FPU, e *Env) x86.Vector {
			s.Vec[d][0], s.Vec[d][1] = le.Uint64(e.Mem[:])&mask, 0
			return x86.NoVector
		}
	}
	isMMX := a.Kind == decode.MMX || b.Kind == decode.MMX
	return func(s *x86.FPU, e *Env) x86.Vector {
		v := read(s, e)
		if isMMX {
			toMMX(s)
		}
		switch a.Kind {
		case decode.XMM:
			s.Vec[d][0], s.Vec[d][1] = v, 0
		case decode.MMX:
			s.R[d&7] = x86.F80{Mant: v, SE: 0xFFFF}
		case decode.Mem:
			e.NoStore = false
			le.PutUint64(e.Mem[:], v)
		default:
			e.GPR = v
		}
		return x86.NoVector
	}
}

// scalarMask is the bits of the element that an instruction moves.
func scalarMask(in *decode.Inst) uint64 {
	switch in.Op {
	case decode.MOVD, decode.VMOVD, decode.MOVSS, decode.VMOVSS:
		return 1<<32 - 1
	}
	return 1<<64 - 1
}

// moveScalar is MOVSS and MOVSD: from memory the rest of the register is cleared, from a register it is kept.
func moveScalar(in *decode.Inst) Fn {
	a, b := in.Args[0], in.Args[1]
	d, n := a.Reg&15, b.Reg&15
	mask := scalarMask(in)
	switch {
	case a.Kind == decode.Mem:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			le.PutUint64(e.Mem[:], s.Vec[n][0])
			return x86.NoVector
		}
	case b.Kind == decode.Mem:
		return func(s *x86.FPU, e *Env) x86.Vector {
			s.Vec[d][0], s.Vec[d][1] = le.Uint64(e.Mem[:])&mask, 0
			return x86.NoVector
		}
	}
	return func(s *x86.FPU, _ *Env) x86.Vector {
		s.Vec[d][0] = s.Vec[d][0]&^mask | s.Vec[n][0]&mask
		return x86.NoVector
	}
}

// maskedMove merges the source into the bytes of memory that the mask's sign bits select.
func maskedMove(in *decode.Inst) Fn {
	d, n, isMMX := in.Args[0].Reg&15, in.Args[1].Reg&15, in.Op == decode.MASKMOVQ // else MASKMOVDQU or VMASKMOVDQU
	return func(s *x86.FPU, e *Env) x86.Vector {
		v, m := [2]uint64(s.Vec[d][:2]), [2]uint64(s.Vec[n][:2])
		words := 2
		if isMMX {
			v[0], m[0], words = s.R[d&7].Mant, s.R[n&7].Mant, 1
			toMMX(s)
		}
		e.NoStore = false
		for i := range words {
			bytes := m[i] >> 7 & 0x0101010101010101 * 0xFF
			le.PutUint64(e.Mem[8*i:], le.Uint64(e.Mem[8*i:])&^bytes|v[i]&bytes)
		}
		return x86.NoVector
	}
}

// logic is the bitwise operations on XMM registers.
func logic(in *decode.Inst) Fn {
	a, b := in.Args[0], in.Args[1]
	d, n := a.Reg&15, b.Reg&15
	if b.Kind == decode.Mem {
		var f func(x, y uint64) uint64
		switch in.Op {
		case decode.PXOR, decode.XORPS, decode.XORPD:
			f = func(x, y uint64) uint64 { return x ^ y }
		case decode.POR, decode.ORPS, decode.ORPD:
			f = func(x, y uint64) uint64 { return x | y }
		case decode.PAND, decode.ANDPS, decode.ANDPD:
			f = func(x, y uint64) uint64 { return x & y }
		case decode.PANDN, decode.ANDNPS, decode.ANDNPD:
			f = func(x, y uint64) uint64 { return ^x & y }
		default:
			return nil
		}
		return func(s *x86.FPU, e *Env) x86.Vector {
			v := &s.Vec[d]
			v[0], v[1] = f(v[0], le.Uint64(e.Mem[0:])), f(v[1], le.Uint64(e.Mem[8:]))
			return x86.NoVector
		}
	}
	switch in.Op {
	case decode.PXOR, decode.XORPS, decode.XORPD:
		return func(s *x86.FPU, _ *Env) x86.Vector {
			v, w := &s.Vec[d], &s.Vec[n]
			v[0], v[1] = v[0]^w[0], v[1]^w[1]
			return x86.NoVector
		}
	case decode.POR, decode.ORPS, decode.ORPD:
		return func(s *x86.FPU, _ *Env) x86.Vector {
			v, w := &s.Vec[d], &s.Vec[n]
			v[0], v[1] = v[0]|w[0], v[1]|w[1]
			return x86.NoVector
		}
	case decode.PAND, decode.ANDPS, decode.ANDPD:
		return func(s *x86.FPU, _ *Env) x86.Vector {
			v, w := &s.Vec[d], &s.Vec[n]
			v[0], v[1] = v[0]&w[0], v[1]&w[1]
			return x86.NoVector
		}
	case decode.PANDN, decode.ANDNPS, decode.ANDNPD:
		return func(s *x86.FPU, _ *Env) x86.Vector {
			v, w := &s.Vec[d], &s.Vec[n]
			v[0], v[1] = w[0]&^v[0], w[1]&^v[1]
			return x86.NoVector
		}
	}
	return nil
}
