package fpu

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A vector is an operand of a stub: a register of s, or memory.
type vector struct {
	kind decode.Kind // XMM, MMX, Mem; None: there is none
	reg  uint8
}

func (v vector) at(s *x86.FPU, e *Env) operand {
	switch v.kind {
	case decode.XMM:
		return ref(&s.Vec[v.reg&15])
	case decode.MMX:
		return ref(&s.R[v.reg&7].Mant)
	}
	return ref(&e.Mem)
}

// A sseOp is a compiled instruction. In its stub the first operand is XMM1 or MM1, the second XMM2 or MM2, a general register RAX.
type sseOp struct {
	stub     uintptr
	dst, src vector
	what     what
	memGPR   int8 // 1: RAX comes from memory, 2: it goes there
	mmx      bool // switches the x87 unit to MMX
	arith
}

func compileSSE(in *decode.Inst, r *row) (Fn, error) {
	o := &sseOp{what: r.what, mmx: in.Flags&decode.MMXUnit != 0 && !loadsPI(in), arith: arithOf(in)}
	dom := func(bit what) decode.Kind {
		if r.what&(mmx|bit) != 0 {
			return decode.MMX
		}
		return decode.XMM
	}
	dstDom, srcDom := dom(mmxDst), dom(mmxSrc)
	var modrm uint8
	a, b := in.Args[0], in.Args[1]
	switch {
	case r.what&store != 0: // reg is the source
		o.src = vector{b.Kind, b.Reg}
		modrm = 0xC0 | 2<<3 // RAX, xmm2
		if a.Kind == decode.Mem {
			o.memGPR = 2
		}
	case r.what&shift != 0:
		o.dst = vector{a.Kind, a.Reg}
		modrm = 0xC1 | in.ModRM&0x38
	default:
		if r.what&gprDst == 0 {
			o.dst = vector{a.Kind, a.Reg}
			modrm |= 1 << 3
		}
		if r.what&gprSrc != 0 {
			if b.Kind == decode.Mem {
				o.memGPR = 1
			}
		} else {
			o.src = vector{b.Kind, b.Reg}
			modrm |= 2
		}
		modrm |= 0xC0
	}
	if o.dst.kind == decode.Mem {
		return nil, fmt.Errorf("%w: %v to memory", ErrUnknown, in.Op)
	}
	c := make([]byte, 0, 48)
	if o.dst.kind != decode.None {
		c = appendMove(c, dstDom, 1, 6, false)
	}
	if o.src.kind != decode.None {
		c = appendMove(c, srcDom, 2, 7, false)
	}
	if r.what&x0in != 0 {
		c = append(c, 0x41, 0x0F, 0x10, 0x00) // MOVUPS XMM0, [R8]
	}
	c = appendOp(c, in, r, modrm)
	if r.what&(flags|str) != 0 {
		c = append(c, 0x9C, 0x58) // PUSHFQ; POP RAX
	} else if o.dst.kind != decode.None {
		c = appendMove(c, dstDom, 1, 6, true)
	}
	if r.what&x0out != 0 {
		c = append(c, 0x41, 0x0F, 0x11, 0x00) // MOVUPS [R8], XMM0
	}
	if r.what&(mmx|mmxSrc|mmxDst) != 0 {
		c = append(c, 0x0F, 0x77) // EMMS
	}
	var err error
	if o.stub, err = stub(c); err != nil {
		return nil, err
	}
	switch {
	case r.what&fp != 0:
		return o.float, nil
	case r.what&^imm == 0 && o.dst.kind == decode.XMM && !o.mmx:
		return o.plain(), nil
	}
	return o.integer, nil
}

// appendMove appends a move between vector register reg and the memory that general register base points to.
func appendMove(c []byte, k decode.Kind, reg, base uint8, store bool) []byte {
	op := uint8(0x10) // MOVUPS xmm, m128
	if k == decode.MMX {
		op = 0x6F // MOVQ mm, m64
	}
	if store {
		op |= 0x11 // 0x11, 0x7F
	}
	return append(c, 0x0F, op, reg<<3|base)
}

func appendOp(c []byte, in *decode.Inst, r *row, modrm uint8) []byte {
	if in.Pfx != 0 {
		c = append(c, in.Pfx)
	}
	if in.Mode == decode.Mode64 && in.Prefix&decode.RexW != 0 && r.what&(gprSrc|gprDst|store|str) != 0 {
		c = append(c, 0x48)
	}
	c = append(c, 0x0F)
	switch in.Map {
	case 2:
		c = append(c, 0x38)
	case 3:
		c = append(c, 0x3A)
	}
	c = append(c, in.Opcode, modrm)
	if r.what&imm != 0 {
		i := uint8(in.Imm)
		if in.Op == decode.INSERTPS && in.Args[1].Kind == decode.Mem {
			i &= 0x3F // COUNT_S selects in a register only
		}
		c = append(c, i)
	}
	return c
}

// plain is the hot case: XMM registers and memory, nothing else.
func (o *sseOp) plain() Fn {
	stub, d, n := o.stub, o.dst.reg&15, o.src.reg&15
	if o.src.kind == decode.Mem {
		return func(s *x86.FPU, e *Env) x86.Vector {
			r := regs{dst: ref(&s.Vec[d]), src: ref(&e.Mem)}
			invoke(stub, &r)
			return x86.NoVector
		}
	}
	return func(s *x86.FPU, _ *Env) x86.Vector {
		r := regs{dst: ref(&s.Vec[d]), src: ref(&s.Vec[n])}
		invoke(stub, &r)
		return x86.NoVector
	}
}

// integer executes what MXCSR is nothing to.
func (o *sseOp) integer(s *x86.FPU, e *Env) x86.Vector {
	r := regs{dst: o.dst.at(s, e), src: o.src.at(s, e), x0: ref(&s.Vec[0])}
	r.ax, r.cx, r.dx = e.GPR, e.RCX, e.RDX
	switch {
	case o.memGPR == 1:
		r.ax = le.Uint64(e.Mem[:])
	case o.what&str != 0:
		r.ax = e.RAX
	}
	invoke(o.stub, &r)
	o.finish(s, e, &r)
	return x86.NoVector
}

// float executes under MXCSR, with all exceptions masked in the host.
func (o *sseOp) float(s *x86.FPU, e *Env) x86.Vector {
	r := regs{dst: o.dst.at(s, e), src: o.src.at(s, e), ax: e.GPR}
	if o.memGPR == 1 {
		r.ax = le.Uint64(e.Mem[:])
	}
	if s.MXCSR&mxcsrMasks != mxcsrMasks {
		return o.unmasked(s, e, &r)
	}
	r.mxcsr = s.MXCSR & MXCSRMask
	invokeFP(o.stub, &r)
	s.MXCSR |= r.mxcsr & mxcsrFlags
	o.finish(s, e, &r)
	return x86.NoVector
}

// finish moves results that are not in dst to where they belong, and does what MMX instructions do to the x87 state (SDM vol. 1 9.6.2).
func (o *sseOp) finish(s *x86.FPU, e *Env, r *regs) {
	switch {
	case o.what&flags != 0:
		setStatus(e, r.ax&(x86.ZF|x86.PF|x86.CF))
	case o.what&str != 0:
		setStatus(e, r.ax&x86.Status)
		e.RCX = r.cx
	case o.what&(gprDst|store) != 0:
		e.GPR = r.ax
		if o.memGPR == 2 {
			e.NoStore = false
			le.PutUint64(e.Mem[:], r.ax)
		}
	}
	if o.mmx {
		toMMX(s)
		if o.dst.kind == decode.MMX {
			s.R[o.dst.reg&7].SE = 0xFFFF
		}
	}
}

// toMMX makes all registers valid and physical register 0 the top.
func toMMX(s *x86.FPU) {
	s.FSW &^= fswTop
	s.FTW = 0xFF
}
