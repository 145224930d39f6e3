package jit

import "vitrine.dev/vitrine/internal/x86/decode"

// A VecUse is which vector instructions may run as they are: what CR0, CR4 and XCR0 say now. Code is valid for the one it was made for.
type VecUse uint8

// The uses.
const (
	NoVec VecUse = iota // each raises an exception, or its unit is not on
	SSE
	AVX // and SSE
)

// notNative are vector instructions that do more than their operands say: they are the interpreter's.
var notNative = [decode.NumOps]bool{
	decode.LDMXCSR: true, decode.STMXCSR: true, decode.MASKMOVDQU: true,
	decode.VMASKMOVPS: true, decode.VMASKMOVPD: true, decode.VPMASKMOVD: true, decode.VPMASKMOVQ: true,
}

// vector translates an SSE or AVX instruction: the same one, with its memory operand where the TLB says.
func (t *Translator) vector(in *Inst, live bool) bool {
	switch {
	case in.Flags&(decode.X87|decode.MMXUnit|decode.VSIB) != 0 || notNative[in.Op]:
		return false
	case in.Flags&decode.AVX != 0 && t.vec < AVX, in.Flags&decode.SSE != 0 && t.vec < SSE, in.Flags&(decode.SSE|decode.AVX) == 0:
		return false
	}
	reg, rm, vvvv := in.ModRM>>3&7, uint8(0), uint8(0)
	memory, out, imm := -1, -1, byte(in.Imm)
	for k := range in.NArgs {
		a := &in.Args[k]
		n := a.Reg
		switch a.Kind {
		case decode.XMM:
		case decode.Imm:
			continue
		case decode.Mem:
			if a.Size == 0 {
				return false
			}
			memory = int(k)
			continue
		case decode.GPR:
			if n = hostReg(a.Reg); n == noReg {
				n = t0
				if k == 0 {
					out = int(a.Reg)
				}
			}
		default:
			return false
		}
		switch a.Place {
		case decode.InReg:
			reg = n
		case decode.InRM:
			rm = n
		case decode.InVvvv:
			vvvv = n
		case decode.InIs4:
			imm = n << 4
		}
	}
	t.wantVec()
	if memory >= 0 {
		t.address(in)
		t.check(in, int(in.Args[memory].Size), in.Flags&decode.MemWrite != 0, live)
	} else {
		for k := range in.NArgs {
			if a := &in.Args[k]; a.Kind == decode.GPR && k > 0 && hostReg(a.Reg) == noReg {
				t.load(t0, slot(a.Reg))
			}
		}
	}
	host := mem{base: t1, index: t0}
	switch {
	case in.Prefix&decode.Vex != 0:
		t.vex(in, reg, rm, vvvv, memory >= 0)
		switch {
		case in.Flags&decode.HasModRM == 0:
		case memory >= 0:
			t.operand(reg, host)
		default:
			t.byte(0xC0 | reg&7<<3 | rm&7)
		}
	default:
		e := enc{pfx: in.Pfx, w: in.Prefix&decode.RexW != 0, esc: in.Map, op: in.Opcode}
		if memory >= 0 {
			t.rm(e, reg, host)
		} else {
			t.rr(e, reg, rm)
		}
	}
	if immBytes(&in.Inst) != 0 {
		t.byte(imm)
	}
	if out >= 0 {
		t.out(uint8(out))
	}
	return true
}

// vex appends a VEX prefix of three bytes and the opcode.
func (t *Translator) vex(in *Inst, reg, rm, vvvv uint8, memory bool) {
	inverted := uint8(0xE0)
	if reg >= 8 {
		inverted &^= 0x80
	}
	if memory { // base and index are T1 and T0
		inverted &^= 0x60
	} else if rm >= 8 {
		inverted &^= 0x20
	}
	last := ^vvvv & 15 << 3
	if in.Prefix&decode.RexW != 0 {
		last |= 0x80
	}
	if in.Prefix&decode.VexL != 0 {
		last |= 4
	}
	switch in.Pfx {
	case 0x66:
		last |= 1
	case 0xF3:
		last |= 2
	case 0xF2:
		last |= 3
	}
	t.byte(0xC4, inverted|in.Map, last, in.Opcode)
}

// wantVec makes the block, at its first vector instruction, load the vector registers where nobody has since the processor was entered. Who enters a
// block that has such instructions behind its beginning loads them himself ([Code].Vec).
func (t *Translator) wantVec() {
	if t.code.Vec {
		return
	}
	t.code.Vec = true
	t.rm(enc{op: 0x8D, w: true}, t1, mem{base: rbp, index: noReg, disp: 1 << 30}) // LEA T1, [behind the jump]
	at0 := t.pos() - 4
	t.buf[at0-1] = t.buf[at0-1] & 0x3F // mod 0, base 5: relative to RIP
	t.jmpMem(at(t.layout.Frame + frameVecEnter))
	t.to(fixup(at0), t.pos())
}

// loadVec appends the loader that frameVecEnter leads to: it goes on at T1.
func (a *asm) loadVec(l *Layout, avx bool) {
	a.moveVec(l, avx, 0x10)
	a.rm(enc{esc: 1, op: 0xAE}, 2, at(l.MXCSR)) // LDMXCSR
	a.store32i(at(l.Frame+frameVecLive), 1)
}

// moveVec appends loads (op 10) or stores (op 11) of all vector registers.
func (a *asm) moveVec(l *Layout, avx bool, op uint8) {
	for r := range uint8(16) {
		m := at(l.Vec + 32*int32(r))
		if !avx {
			a.rm(enc{esc: 1, op: op}, r, m)
			continue
		}
		inverted := uint8(0xE0)
		if r >= 8 {
			inverted &^= 0x80
		}
		a.byte(0xC4, inverted|1, 0x7C, op) // VMOVUPS ymm
		a.operand(r, m)
	}
}
