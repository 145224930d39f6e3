package fpu

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A vexOp is a compiled VEX instruction. Its stub is the instruction itself with other registers: what is in ModRM.reg becomes YMM1 or RAX, VEX.vvvv YMM2,
// ModRM.rm YMM3, RAX or the memory that DI points to, and is4 YMM4. Each is loaded from the place its operand has, and the destination is stored whole, so that
// the upper half is zero where the processor makes it zero.
type vexOp struct {
	stub              uintptr
	reg, rm, vvvv, x1 vector // None: nothing to load or store
	dst               *vector
	flags             decode.Flags
	what              what
	arith
}

// vexPlaces is the stub's register and its pointer's number for each place.
var vexPlaces = [...]struct{ vector, pointer uint8 }{
	decode.InReg: {1, 6}, decode.InVvvv: {2, 8}, decode.InRM: {3, 7}, decode.InIs4: {4, 10},
}

// Masked tells whether in loads or stores each element of its memory operand by itself, as a mask says: VMASKMOV, VPMASKMOV and gathers. Who translates addresses
// executes these; Compile does not know them.
func Masked(in *decode.Inst) bool {
	switch in.Op {
	case decode.VMASKMOVPS, decode.VMASKMOVPD, decode.VPMASKMOVD, decode.VPMASKMOVQ:
		return true
	}
	return in.Flags&decode.VSIB != 0
}

func compileVEX(in *decode.Inst) (Fn, error) {
	if in.Flags&decode.AVX == 0 || Masked(in) {
		return nil, fmt.Errorf("%w: %v", ErrUnknown, in.Op)
	}
	if fn := control(in); fn != nil {
		return fn, nil
	}
	if fn := moveVEX(in); fn != nil {
		return fn, nil
	}
	o := &vexOp{flags: in.Flags, arith: arithOf(in)}
	switch in.Op {
	case decode.VPCMPESTRM, decode.VPCMPISTRM:
		o.what, o.x1 = str|x0out, vector{decode.XMM, 0}
	case decode.VPCMPESTRI, decode.VPCMPISTRI:
		o.what = str
	}
	code := o.assemble(in)
	var err error
	if o.stub, err = stub(code); err != nil {
		return nil, err
	}
	if in.Flags&decode.SIMDExc != 0 {
		return o.float, nil
	}
	return o.integer, nil
}

// assemble makes the stub, and notes which operand is where.
func (o *vexOp) assemble(in *decode.Inst) []byte {
	c := make([]byte, 0, 64)
	var modrm, vvvv uint8 = 0xC0, 0
	imm := -1
	dst := -1
	for i, a := range in.Args[:in.NArgs] {
		switch a.Kind {
		case decode.Imm:
			imm = int(uint8(in.Imm))
		case decode.GPR:
			if a.Place == decode.InReg {
				o.what |= gprDst
			} else if i == 0 {
				o.what |= store
			}
		case decode.Mem:
			modrm = modrm&0x38 | vexPlaces[decode.InRM].pointer // [RDI]
			o.rm = vector{decode.Mem, 0}
		case decode.XMM:
			p := vexPlaces[a.Place]
			v := vector{decode.XMM, a.Reg}
			switch a.Place {
			case decode.InReg:
				o.reg = v
				modrm |= p.vector << 3
			case decode.InVvvv:
				o.vvvv = v
				vvvv = p.vector
			case decode.InRM:
				o.rm = v
				modrm |= p.vector
			case decode.InIs4:
				o.x1 = v
				imm = int(p.vector) << 4
			}
			if i == 0 && in.Flags&decode.WritesNone == 0 {
				dst = i
				if in.Flags&decode.ReadsDst == 0 {
					continue
				}
			}
			c = appendMoveYMM(c, p.vector, p.pointer, a.Size == 32, false)
		}
	}
	if o.reg.kind == decode.None && o.what&gprDst == 0 {
		modrm |= in.ModRM & 0x38 // a part of the opcode: shifts by an immediate
	}
	prefix3 := (vvvv^15)<<3 | [...]uint8{0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}[in.Pfx]
	if in.Prefix&decode.VexL != 0 && in.Flags&decode.Lig == 0 {
		prefix3 |= 4
	}
	if in.Prefix&decode.RexW != 0 && (in.Mode == decode.Mode64 || !wIsSize(in)) {
		prefix3 |= 0x80
	}
	c = append(c, 0xC4, 0xE0|in.Map, prefix3, in.Opcode, modrm)
	if imm >= 0 {
		c = append(c, uint8(imm))
	}
	if in.Flags&decode.WritesFlags != 0 {
		c = append(c, 0x9C, 0x58) // PUSHFQ; POP RAX
	}
	if dst >= 0 {
		p := vexPlaces[in.Args[dst].Place]
		c = appendMoveYMM(c, p.vector, p.pointer, true, true)
		switch in.Args[dst].Place {
		case decode.InReg:
			o.dst = &o.reg
		case decode.InVvvv:
			o.dst = &o.vvvv
		default:
			o.dst = &o.rm
		}
	}
	if o.what&x0out != 0 {
		c = appendMoveYMM(c, 0, vexPlaces[decode.InIs4].pointer, true, true)
	}
	return append(c, 0xC5, 0xF8, 0x77) // VZEROUPPER
}

// wIsSize tells whether VEX.W is an operand's size, which code outside of 64-bit mode does not have.
func wIsSize(in *decode.Inst) bool {
	switch in.Op {
	case decode.VMOVD, decode.VPINSRD, decode.VPEXTRD, decode.VPCMPESTRI, decode.VPCMPESTRM, decode.VCVTSI2SS, decode.VCVTSI2SD,
		decode.VCVTSS2SI, decode.VCVTSD2SI, decode.VCVTTSS2SI, decode.VCVTTSD2SI:
		return true
	}
	return false
}

// appendMoveYMM appends VMOVUPS between vector register reg and the memory that general register base points to.
func appendMoveYMM(c []byte, reg, base uint8, ymm, store bool) []byte {
	op, last := uint8(0x10), uint8(0x78)
	if store {
		op = 0x11
	}
	if ymm {
		last = 0x7C
	}
	return append(c, 0xC4, 0xE1&^(base>>3<<5), last, op, reg<<3|base&7)
}

// operands points r at what the stub loads and stores.
func (o *vexOp) operands(s *x86.FPU, e *Env, r *regs) {
	if o.reg.kind != decode.None {
		r.dst = ref(&s.Vec[o.reg.reg&15])
	}
	if o.rm.kind != decode.None {
		r.src = o.rm.at(s, e)
	}
	if o.vvvv.kind != decode.None {
		r.x0 = ref(&s.Vec[o.vvvv.reg&15])
	}
	if o.x1.kind != decode.None {
		r.x1 = ref(&s.Vec[o.x1.reg&15])
	}
}

// integer executes what MXCSR is nothing to.
func (o *vexOp) integer(s *x86.FPU, e *Env) x86.Vector {
	var r regs
	o.operands(s, e, &r)
	r.ax, r.cx, r.dx = e.GPR, e.RCX, e.RDX
	if o.what&str != 0 {
		r.ax = e.RAX
	}
	invoke(o.stub, &r)
	o.finish(e, &r)
	return x86.NoVector
}

// float executes under MXCSR, with all exceptions masked in the host.
func (o *vexOp) float(s *x86.FPU, e *Env) x86.Vector {
	r := regs{ax: e.GPR}
	o.operands(s, e, &r)
	if s.MXCSR&mxcsrMasks != mxcsrMasks {
		return o.unmasked(s, e, &r)
	}
	r.mxcsr = s.MXCSR & MXCSRMask
	invokeFP(o.stub, &r)
	s.MXCSR |= r.mxcsr & mxcsrFlags
	o.finish(e, &r)
	return x86.NoVector
}

func (o *vexOp) finish(e *Env, r *regs) {
	e.NoStore = false
	switch {
	case o.what&str != 0:
		setStatus(e, r.ax&x86.Status)
		e.RCX = r.cx
	case o.flags&decode.WritesFlags != 0:
		setStatus(e, r.ax&(x86.ZF|x86.PF|x86.CF))
	case o.what&(gprDst|store) != 0:
		e.GPR = r.ax
	}
}

// unmasked executes while the guest has exceptions unmasked, as sseOp's does.
func (o *vexOp) unmasked(s *x86.FPU, e *Env, r *regs) x86.Vector {
	in := inputs{dst: vec(r.dst), vvvv: vec(r.x0), rm: vec(r.src)} // as they are: the stub writes to e.res
	res := &e.res
	*res = x86.YMM{}
	if o.dst != nil {
		*res = s.Vec[o.dst.reg&15]
		if o.dst == &o.reg {
			r.dst = ref(res)
		} else {
			r.src = ref(res)
		}
	} else if o.flags&decode.MemWrite != 0 {
		res = vec(ref(&e.Mem))
	}
	raised, v := o.run(o.stub, s, e, r, res, &in)
	s.MXCSR |= raised
	if v != x86.NoVector {
		return v
	}
	if o.dst != nil {
		s.Vec[o.dst.reg&15] = *res
	}
	o.finish(e, r)
	return x86.NoVector
}
