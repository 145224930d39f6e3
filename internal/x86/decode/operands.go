package decode

// Segment and register numbers, as instructions encode them.
const (
	segCS, segSS, segDS = 1, 2, 3
	rBX, rSP, rBP       = 3, 4, 5
	rSI, rDI            = 6, 7
)

// operands fills in what row says, reading the rest of the instruction.
func (in *Inst) operands(row *row, r *reader) error {
	in.Op, in.Flags, in.Pfx = row.op, row.flags, row.pfx
	v := in.sizes(row.size)
	isMem := row.flags&HasModRM != 0 && in.ModRM < 0xC0 && row.specs[0].how != argC && row.specs[0].how != argD && row.specs[0].how != argR
	if isMem {
		if row.flags&VSIB != 0 && (in.ModRM&7 != rSP || in.AddrSize == 2) {
			return ErrUD
		}
		if !in.memory(r) {
			return r.short()
		}
	}
	if in.Seg == noSeg {
		in.Seg = segDS
	}
	rexB, rexR := uint8(in.Prefix/RexB&1)<<3, uint8(in.Prefix/RexR&1)<<3
	reg, rm := in.ModRM>>3&7, in.ModRM&7
	ok := true
	for i := 0; i < int(row.nspec) && i < len(row.specs); i++ {
		s := row.specs[i]
		a := &in.Args[in.NArgs&3]
		in.NArgs++
		a.Size, a.Place = s.wide, places[s.how&31]
		if s.wide >= wideV {
			a.Size = in.width(s.wide, v, isMem)
		}
		switch s.how {
		case argE, argM:
			if isMem {
				a.Kind = Mem
				continue
			}
			in.gpr(a, rm, rexB)
		case argG:
			in.gpr(a, reg, rexR)
		case argR:
			a.Kind, a.Reg = GPR, rm|rexB
		case argZ:
			in.gpr(a, in.Opcode&7, rexB)
		case argI:
			n := min(a.Size, 8)
			if s.wide == wideZ {
				n = min(v, 4)
				a.Size = v
			}
			var imm int64
			switch {
			case s.wide == wideZ:
				imm, ok = r.signed(n)
			default:
				var u uint64
				u, ok = r.unsigned(n)
				imm = int64(u)
			}
			in.immediate(a, imm)
		case argIs:
			a.Kind = Imm
			in.Imm, ok = r.signed(1)
			if row.size == size1 {
				a.Size = 1
			}
		case argOne:
			a.Kind, in.Imm = Imm, 1
		case argJ:
			a.Kind = Rel
			n := uint8(1)
			if s.wide == wideZ {
				n = min(v, 4)
			}
			in.Imm, ok = r.signed(n)
			a.Size = v
		case argA:
			a.Kind = Imm
			var off, sel uint64
			if off, ok = r.unsigned(v); ok {
				sel, ok = r.unsigned(2)
			}
			in.Imm, in.Imm2 = int64(off), int64(sel)
			in.Args[in.NArgs&3] = Arg{Kind: Imm2, Size: 2}
			in.NArgs++
		case argO:
			a.Kind = Mem
			var u uint64
			u, ok = r.unsigned(in.AddrSize)
			in.Mem = Memory{Seg: in.Seg, Base: NoReg, Index: NoReg, Scale: 1, Disp: int64(u)}
		case argS:
			a.Kind, a.Reg = SReg, reg
			if reg > 5 || reg == segCS && i == 0 { // MOV to CS does not exist
				return ErrUD
			}
		case argC:
			a.Kind, a.Reg = CReg, reg|rexR
			if 1<<a.Reg&(1<<0|1<<2|1<<3|1<<4|1<<8) == 0 {
				return ErrUD
			}
		case argD:
			a.Kind, a.Reg = DReg, reg|rexR
			if rexR != 0 {
				return ErrUD
			}
		case argV:
			a.Kind, a.Reg = XMM, reg|rexR
		case argW, argU:
			a.Kind, a.Reg = XMM, rm|rexB
			if isMem {
				a.Kind, a.Reg = Mem, 0
			}
		case argP:
			a.Kind, a.Reg = MMX, reg
		case argQ, argN:
			a.Kind, a.Reg = MMX, rm
			if isMem {
				a.Kind, a.Reg = Mem, 0
			}
		case argST:
			a.Kind = STReg
		case argSTi:
			a.Kind, a.Reg = STReg, rm
		case argBD:
			a.Kind = Mem
			in.Mem = Memory{Seg: in.Seg, Base: rDI, Index: NoReg, Scale: 1}
		case argH:
			a.Kind, a.Reg = XMM, in.vvvv(r)
		case argB:
			a.Kind, a.Reg = GPR, in.vvvv(r)
		case argL:
			a.Kind = XMM
			if a.Reg, ok = r.u8(); ok {
				a.Reg >>= 4
				if in.Mode != Mode64 {
					a.Reg &= 7
				}
			}
		case argFixed:
			a.Kind, a.Reg = GPR, s.reg
		case argSeg:
			a.Kind, a.Reg = SReg, s.reg
		}
		if !ok {
			return r.short()
		}
	}
	if r.vvvv != 0 || row.flags&VSIB != 0 && in.overlap() { // what vvvv does not name must be 1111
		return ErrUD
	}
	return nil
}

// vvvv takes the register that VEX.vvvv names; outside of 64-bit mode its top bit is not looked at.
func (in *Inst) vvvv(r *reader) uint8 {
	v := r.vvvv
	r.vvvv = 0
	if in.Mode != Mode64 {
		v &= 7
	}
	return v
}

// overlap tells whether a gather uses a register twice, as destination, index or mask: #UD.
func (in *Inst) overlap() bool {
	d, m := in.Args[0].Reg, in.Args[2].Reg
	return d == m || d == in.Mem.Index || m == in.Mem.Index
}

// places says where each kind of operand is written.
var places = [32]Place{argE: InRM, argM: InRM, argR: InRM, argW: InRM, argU: InRM, argQ: InRM, argN: InRM, argSTi: InRM,
	argG: InReg, argS: InReg, argC: InReg, argD: InReg, argV: InReg, argP: InReg, argZ: InOpcode, argH: InVvvv, argB: InVvvv, argL: InIs4}

// sizes sets Inst.Size and returns the size of operands that follow the operand-size prefix.
func (in *Inst) sizes(rule sizeRule) (v uint8) {
	v = 4
	if in.Prefix&(OpSize|RexW) != 0 || in.Mode == Mode16 {
		switch {
		case in.Prefix&RexW != 0:
			v = 8
		case (in.Prefix&OpSize != 0) != (in.Mode == Mode16):
			v = 2
		}
	}
	switch rule {
	case sizeV:
		in.Size = v
	case size1, size2, size4, size8, size16:
		in.Size = 1 << (rule - size1)
	case sizeY:
		in.Size = 4
		if in.Mode == Mode64 {
			in.Size += uint8(in.Prefix/RexW&1) * 4
		}
	case sizeZ:
		v = min(v, 4)
		in.Size = v
	case sizeMode:
		in.Size = v
		if in.Mode == Mode64 {
			in.Size = 8
		}
	case sizeD64, sizeF64:
		if in.Mode == Mode64 && (v == 4 || rule == sizeF64) {
			v = 8
		}
		in.Size = v
	}
	return v
}

// width is the bytes of an operand whose width is not a number; v is what a 66 prefix changes.
func (in *Inst) width(wide, v uint8, isMem bool) uint8 {
	switch wide {
	case wideZ:
		return min(v, 4)
	case wideY:
		if in.Mode != Mode64 { // VEX.W is ignored
			return 4
		}
		return 4 + uint8(in.Prefix/RexW&1)*4
	case wideL, wideL2, wideL4, wideL8:
		return 16 << (in.Prefix / VexL & 1) >> (wide - wideL)
	case wideMode:
		if in.Mode == Mode64 {
			return 8
		}
		return 4
	case wideP:
		return v + 2
	case wideS:
		if in.Mode == Mode64 {
			return 10
		}
		return 6
	case wideA:
		return 2 * v
	case wideVW:
		if isMem {
			return 2
		}
	case wideDB:
		if isMem {
			return 1
		}
		return 4
	case wideDW:
		if isMem {
			return 2
		}
		return 4
	}
	return v
}

// gpr makes a general register operand of field (three bits) and its REX bit.
func (in *Inst) gpr(a *Arg, field, rex uint8) {
	if a.Size == 1 && field >= 4 && in.Prefix&Rex == 0 {
		a.Kind, a.Reg = High, field-4
		return
	}
	a.Kind, a.Reg = GPR, field|rex
}

// immediate makes the next immediate operand.
func (in *Inst) immediate(a *Arg, v int64) {
	for i := range in.NArgs - 1 {
		if in.Args[i].Kind == Imm {
			a.Kind, in.Imm2 = Imm2, v
			return
		}
	}
	a.Kind, in.Imm = Imm, v
}

// memory reads what follows a ModRM byte that names memory (SDM vol. 2A 2.1.5, 2.2.1).
func (in *Inst) memory(r *reader) (ok bool) {
	m := &in.Mem
	m.Base, m.Index, m.Scale = NoReg, NoReg, 1
	mod, rm := in.ModRM>>6, in.ModRM&7
	if in.AddrSize == 2 {
		return in.memory16(r, mod, rm)
	}
	disp := mod // 1: a byte, 2: four
	switch {
	case rm == rSP:
		sib, ok := r.u8()
		if !ok {
			return false
		}
		if x := sib>>3&7 | uint8(in.Prefix/RexX&1)<<3; x != rSP || in.Flags&VSIB != 0 {
			m.Index, m.Scale = x, 1<<(sib>>6)
		}
		if rm = sib & 7; rm == rBP && mod == 0 {
			disp = 2
			break
		}
		m.Base = rm | uint8(in.Prefix/RexB&1)<<3
	case rm == rBP && mod == 0:
		disp = 2
		if in.Mode == Mode64 {
			m.Base = RIP
		}
	default:
		m.Base = rm | uint8(in.Prefix/RexB&1)<<3
	}
	in.segment(m.Base == rSP || m.Base == rBP)
	switch disp {
	case 1:
		m.Disp, ok = r.signed(1)
		return ok
	case 2:
		m.Disp, ok = r.signed(4)
		return ok
	}
	return true
}

// memory16 reads the 16-bit form (SDM vol. 2A table 2-1).
func (in *Inst) memory16(r *reader, mod, rm uint8) (ok bool) {
	m := &in.Mem
	m.Base, m.Index = forms16[rm][0], forms16[rm][1]
	disp := mod
	if mod == 0 && rm == 6 {
		m.Base, disp = NoReg, 2
	}
	in.segment(m.Base == rBP)
	if disp == 0 {
		return true
	}
	m.Disp, ok = r.signed(disp)
	return ok
}

var forms16 = [8][2]uint8{{rBX, rSI}, {rBX, rDI}, {rBP, rSI}, {rBP, rDI}, {rSI, NoReg}, {rDI, NoReg}, {rBP, NoReg}, {rBX, NoReg}}

// segment settles the memory operand's segment.
func (in *Inst) segment(stack bool) {
	if in.Seg == noSeg {
		in.Seg = segDS
		if stack {
			in.Seg = segSS
		}
	}
	in.Mem.Seg = in.Seg
}
