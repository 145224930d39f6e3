package fpu

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// moveVEX returns what executes in without a stub, or nil.
func moveVEX(in *decode.Inst) Fn {
	a, b := in.Args[0], in.Args[1]
	d, n := a.Reg&15, b.Reg&15
	switch in.Op {
	case decode.VZEROUPPER, decode.VZEROALL:
		return zeroVectors(in)
	case decode.VMASKMOVDQU:
		return maskedMove(in)
	case decode.VMOVAPS, decode.VMOVAPD, decode.VMOVUPS, decode.VMOVUPD, decode.VMOVDQA, decode.VMOVDQU, decode.VLDDQU,
		decode.VMOVNTPS, decode.VMOVNTPD, decode.VMOVNTDQ, decode.VMOVNTDQA:
		long := a.Size == 32
		switch {
		case a.Kind == decode.Mem:
			return func(s *x86.FPU, e *Env) x86.Vector {
				e.NoStore = false
				for i, v := range s.Vec[n] {
					le.PutUint64(e.Mem[8*i:], v)
				}
				return x86.NoVector
			}
		case b.Kind == decode.Mem:
			return func(s *x86.FPU, e *Env) x86.Vector {
				v := x86.YMM{le.Uint64(e.Mem[0:]), le.Uint64(e.Mem[8:])}
				if long {
					v[2], v[3] = le.Uint64(e.Mem[16:]), le.Uint64(e.Mem[24:])
				}
				s.Vec[d] = v
				return x86.NoVector
			}
		}
		return func(s *x86.FPU, _ *Env) x86.Vector {
			v := s.Vec[n]
			if !long {
				v[2], v[3] = 0, 0
			}
			s.Vec[d] = v
			return x86.NoVector
		}
	case decode.VMOVD, decode.VMOVQ:
		return clearUpper(moveWord(in), a)
	case decode.VMOVSS, decode.VMOVSD:
		if in.NArgs == 2 {
			return clearUpper(moveScalar(in), a)
		}
		d, h, n := in.Args[0].Reg&15, in.Args[1].Reg&15, in.Args[2].Reg&15
		mask := scalarMask(in)
		return func(s *x86.FPU, _ *Env) x86.Vector {
			v, w := &s.Vec[h], &s.Vec[n]
			s.Vec[d] = x86.YMM{v[0]&^mask | w[0]&mask, v[1]}
			return x86.NoVector
		}
	}
	return nil
}

// clearUpper is fn, and the upper half of its destination cleared.
func clearUpper(fn Fn, dst decode.Arg) Fn {
	if dst.Kind != decode.XMM {
		return fn
	}
	return func(s *x86.FPU, e *Env) x86.Vector {
		s.Vec[dst.Reg&15][2], s.Vec[dst.Reg&15][3] = 0, 0
		return fn(s, e)
	}
}

// zeroVectors is VZEROUPPER and VZEROALL, which outside of 64-bit mode leave registers 8 to 15 alone.
func zeroVectors(in *decode.Inst) Fn {
	count, all := 8, in.Op == decode.VZEROALL
	if in.Mode == decode.Mode64 {
		count = 16
	}
	return func(s *x86.FPU, _ *Env) x86.Vector {
		for i := range s.Vec[:count] {
			v := &s.Vec[i]
			if v[2], v[3] = 0, 0; all {
				v[0], v[1] = 0, 0
			}
		}
		return x86.NoVector
	}
}
