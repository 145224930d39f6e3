package jit

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// How an integer instruction treats its operands.
type props uint8

const (
	known   props = 1 << iota // it can be encoded again, as it is
	reads0                    // reads its first operand
	writes0                   // writes it
	writes1                   // writes its second operand

)

var integer = [decode.NumOps]props{
	decode.ADD: known | reads0 | writes0, decode.OR: known | reads0 | writes0, decode.ADC: known | reads0 | writes0, decode.SBB: known | reads0 | writes0,
	decode.AND: known | reads0 | writes0, decode.SUB: known | reads0 | writes0, decode.XOR: known | reads0 | writes0,
	decode.CMP: known | reads0, decode.TEST: known | reads0,
	decode.INC: known | reads0 | writes0, decode.DEC: known | reads0 | writes0, decode.NEG: known | reads0 | writes0, decode.NOT: known | reads0 | writes0,
	decode.ROL: known | reads0 | writes0, decode.ROR: known | reads0 | writes0, decode.RCL: known | reads0 | writes0, decode.RCR: known | reads0 | writes0,
	decode.SHL: known | reads0 | writes0, decode.SHR: known | reads0 | writes0, decode.SAR: known | reads0 | writes0,
	decode.SHLD: known | reads0 | writes0, decode.SHRD: known | reads0 | writes0,
	decode.MUL: known | reads0, decode.IMUL: known | reads0 | writes0, decode.DIV: known | reads0, decode.IDIV: known | reads0,
	decode.MOV: known | writes0, decode.MOVNTI: known | writes0, decode.MOVZX: known | writes0, decode.MOVSX: known | writes0, decode.MOVSXD: known | writes0,
	decode.XCHG: known | reads0 | writes0 | writes1, decode.XADD: known | reads0 | writes0 | writes1, decode.CMPXCHG: known | reads0 | writes0,
	decode.CMOVCC: known | reads0 | writes0, decode.SETCC: known | writes0,
	decode.BT: known | reads0, decode.BTS: known | reads0 | writes0, decode.BTR: known | reads0 | writes0, decode.BTC: known | reads0 | writes0,
	decode.BSF: known | reads0 | writes0, decode.BSR: known | reads0 | writes0,
	decode.POPCNT: known | writes0, decode.TZCNT: known | writes0, decode.LZCNT: known | writes0,
	decode.CRC32: known | reads0 | writes0, decode.MOVBE: known | writes0,
}

// mandatory is the prefix that is part of an integer operation.
var mandatory = [decode.NumOps]uint8{decode.POPCNT: 0xF3, decode.TZCNT: 0xF3, decode.LZCNT: 0xF3, decode.CRC32: 0xF2}

// groups are the opcodes whose ModRM.reg is part of the opcode, by map.
var groups = [2][256]bool{
	{
		0x80: true, 0x81: true, 0x83: true, 0x8F: true, 0xC0: true, 0xC1: true, 0xC6: true, 0xC7: true,
		0xD0: true, 0xD1: true, 0xD2: true, 0xD3: true, 0xF6: true, 0xF7: true, 0xFE: true, 0xFF: true,
	},
	{0x71: true, 0x72: true, 0x73: true, 0xBA: true, 0xC7: true, 0xAE: true, 0x90: false},
}

// instruction translates one that is not a jump. It returns false where it is the interpreter's.
func (t *Translator) instruction(b *Block, i int) bool {
	in := &b.Insts[i]
	live := t.liveBefore(b, i)
	switch in.Op {
	case decode.NOP, decode.ENDBR32, decode.ENDBR64, decode.PREFETCH, decode.PREFETCHW, decode.PREFETCHNTA, decode.PREFETCHT0, decode.PREFETCHT1,
		decode.PREFETCHT2, decode.LFENCE, decode.SFENCE:
		return true
	case decode.PAUSE:
		t.byte(0xF3, 0x90)
		return true
	case decode.MFENCE:
		t.byte(0x0F, 0xAE, 0xF0)
		return true
	case decode.CBW, decode.CWD, decode.CLC, decode.STC, decode.CMC, decode.LAHF, decode.SAHF:
		return t.verbatim(b, in)
	case decode.PUSH, decode.POP, decode.LEAVE:
		return t.stack(in, live)
	case decode.LEA:
		return t.leaInst(in)
	case decode.BSWAP:
		return t.bswap(in)
	}
	if in.Flags&decode.Vec != 0 {
		return t.vector(in, live)
	}
	if integer[in.Op]&known == 0 {
		return false
	}
	for k := range in.NArgs {
		switch in.Args[k].Kind {
		case decode.GPR, decode.High, decode.Mem, decode.Imm:
		default:
			return false
		}
	}
	if in.Flags&decode.HasModRM == 0 {
		return t.short(b, in, live)
	}
	return t.modRM(in, live)
}

// verbatim copies an instruction that names no register that lives elsewhere.
func (t *Translator) verbatim(b *Block, in *Inst) bool {
	end := int(in.Off) + int(in.Len)
	if end > len(b.Page) {
		return false
	}
	if in.Size == 2 {
		t.byte(0x66)
	}
	if in.Prefix&decode.RexW != 0 {
		t.byte(0x48)
	}
	if in.Map != 0 {
		return false
	}
	t.byte(in.Opcode)
	return true
}

// immediate appends the immediate of n bytes.
func (t *Translator) immediate(v int64, n int) {
	for range n {
		t.byte(byte(v))
		v >>= 8
	}
}

// short translates the forms without a ModRM byte.
func (t *Translator) short(b *Block, in *Inst, live bool) bool {
	e := enc{size: in.Size == 2, w: in.Prefix&decode.RexW != 0}
	z := min(int(in.Size), 4)
	switch op := in.Opcode; {
	case in.Map != 0:
		return false
	case op < 0x40 && op&6 == 4, op == 0xA8, op == 0xA9: // AL or rAX and an immediate
		if op&1 == 0 {
			e, z = enc{}, 1
		}
		e.op = op
		t.prefixes(e, 0, 0, 0)
		t.immediate(in.Imm, z)
	case op >= 0xB0 && op < 0xC0:
		return t.moveImm(in)
	case op > 0x90 && op < 0x98: // XCHG rAX, r
		r := in.Args[0].Reg
		if in.Args[1].Reg != x86.RAX {
			r = in.Args[1].Reg
		}
		e.op = 0x87
		h := t.in(r, t0)
		t.rr(e, rax, h)
		if h == t0 {
			t.out(r)
		}
	case op >= 0xA0 && op < 0xA4: // absolute offsets
		t.address(in)
		size := int(in.Size)
		if op&1 == 0 {
			size, e = 1, enc{}
		}
		t.check(in, size, op >= 0xA2, live)
		e.op = 0x8A | op&1
		if op >= 0xA2 {
			e.op = 0x88 | op&1
		}
		t.rm(e, rax, mem{base: t1, index: t0})
	default:
		return false
	}
	return true
}

// out stores t0 as a guest register that is in the state.
func (t *Translator) out(r uint8) { t.store(slot(r), t0) }

// moveImm translates MOV of an immediate to a register.
func (t *Translator) moveImm(in *Inst) bool {
	a := in.Args[0]
	switch {
	case in.Opcode < 0xB8: // a byte
		if a.Kind == decode.High {
			t.byte(0xB0|(a.Reg+4), byte(in.Imm))
			return true
		}
		h := t.in(a.Reg, t0)
		t.prefixes(enc{op: 0xB0 | h&7, rex: h >= 4}, 0, 0, h)
		t.byte(byte(in.Imm))
		if h == t0 {
			t.out(a.Reg)
		}
	case in.Size == 8 && int64(int32(in.Imm)) == in.Imm:
		if h := hostReg(a.Reg); h != noReg {
			t.rr(enc{op: 0xC7, w: true}, 0, h)
		} else {
			t.rm(enc{op: 0xC7, w: true}, 0, slot(a.Reg))
		}
		t.u32(uint32(in.Imm))
	default:
		h := hostReg(a.Reg)
		spilled := h == noReg
		if spilled {
			h = t0
			if in.Size == 2 {
				t.load(t0, slot(a.Reg))
			}
		}
		t.prefixes(enc{op: 0xB8 | h&7, size: in.Size == 2, w: in.Size == 8}, 0, 0, h)
		t.immediate(in.Imm, int(in.Size))
		if spilled {
			t.out(a.Reg)
		}
	}
	return true
}

// leaInst translates LEA.
func (t *Translator) leaInst(in *Inst) bool {
	plain := in.Inst
	plain.Mem.Seg = x86.DS // LEA knows no segments
	t.address(&Inst{Inst: plain, Off: in.Off})
	d := in.Args[0].Reg
	h := hostReg(d)
	if h == noReg {
		if in.Size == 2 {
			t.load(t1, slot(d))
			t.rr(enc{op: 0x89, size: true}, t0, t1)
			t.store(slot(d), t1)
			return true
		}
		if in.Size == 4 {
			t.rr(enc{op: 0x89}, t0, t0)
		}
		t.out(d)
		return true
	}
	t.rr(enc{op: 0x89, size: in.Size == 2, w: in.Size == 8}, t0, h)
	return true
}

func (t *Translator) bswap(in *Inst) bool {
	if in.Size == 2 {
		return false
	}
	r := in.Args[0].Reg
	h := t.in(r, t0)
	t.prefixes(enc{esc: 1, op: 0xC8 | h&7, w: in.Size == 8}, 0, 0, h)
	if h == t0 {
		t.out(r)
	}
	return true
}

// raw is a register operand's number in its encoding, without REX.
func raw(a decode.Arg) uint8 {
	if a.Kind == decode.High {
		return a.Reg + 4
	}
	return a.Reg
}

// operands finds which arguments are in ModRM.reg and ModRM.rm; -1 is none.
func operands(in *Inst) (reg, rm int) {
	if in.Map < 2 && groups[in.Map][in.Opcode] {
		return -1, 0
	}
	r, m := in.ModRM>>3&7|uint8(in.Prefix/decode.RexR&1)<<3, in.ModRM&7|uint8(in.Prefix/decode.RexB&1)<<3
	isReg := func(a decode.Arg) bool { return a.Kind == decode.GPR || a.Kind == decode.High }
	a0, a1 := in.Args[0], in.Args[1]
	switch {
	case in.NArgs < 2 || a1.Kind == decode.Imm:
		return -1, 0
	case a0.Kind == decode.Mem:
		return 1, 0
	case a1.Kind == decode.Mem:
		return 0, 1
	case isReg(a0) && isReg(a1) && raw(a0) == r && raw(a1) == m:
		return 0, 1
	}
	return 1, 0
}

// immBytes is how long the immediate of a ModRM form is.
func immBytes(in *decode.Inst) int {
	z := min(int(in.Size), 4)
	switch in.Map {
	case 0:
		switch in.Opcode {
		case 0x69, 0x81:
			return z
		case 0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6:
			return 1
		case 0xC7:
			return z
		case 0xF6:
			if in.ModRM&0x30 == 0 {
				return 1
			}
		case 0xF7:
			if in.ModRM&0x30 == 0 {
				return z
			}
		}
	case 1:
		switch in.Opcode {
		case 0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6:
			return 1
		}
	case 3:
		return 1
	}
	return 0
}

// modRM translates an instruction with a ModRM byte whose registers are general ones.
func (t *Translator) modRM(in *Inst, live bool) bool {
	p := integer[in.Op]
	reg, rm := operands(in)
	if reg < 0 && in.Op == decode.IMUL {
		p &^= writes0 // to rDX and rAX
	}
	isMem := in.Args[rm].Kind == decode.Mem
	if isMem && reg >= 0 && (in.Op == decode.BT || in.Op == decode.BTS || in.Op == decode.BTR || in.Op == decode.BTC) {
		return false // the register reaches beyond the operand
	}
	e := enc{lock: in.Prefix&decode.Lock != 0, size: in.Size == 2, w: in.Prefix&decode.RexW != 0, pfx: mandatory[in.Op], esc: in.Map, op: in.Opcode}
	if in.Op == decode.CRC32 {
		e.size = in.Prefix&decode.OpSize != 0
	}
	high := false
	regHost, rmHost := in.ModRM>>3&7, uint8(0)
	var regOut, rmOut bool // to be stored afterwards
	hostOf := func(k int, scratch uint8) (h uint8, out bool) {
		a := in.Args[k]
		if a.Kind == decode.High {
			high = true
			return a.Reg + 4, false
		}
		wr := k == 0 && p&writes0 != 0 || k == 1 && p&writes1 != 0
		h = hostReg(a.Reg)
		if h == noReg {
			h = scratch
			if k != 0 || p&reads0 != 0 || a.Size < 4 {
				t.load(h, slot(a.Reg))
			}
			out = wr
		}
		if a.Size == 1 && h >= 4 {
			e.rex = true
		}
		return h, out
	}
	if isMem {
		t.address(in)
		write := p&writes0 != 0 && rm == 0 || p&writes1 != 0 && rm == 1
		t.check(in, int(in.Args[rm].Size), write, live)
		m := mem{base: t1, index: t0}
		if reg >= 0 {
			if a := in.Args[reg]; a.Kind == decode.GPR && hostReg(a.Reg) == noReg {
				t.lea(t1, m)
				m.index = noReg
			}
			regHost, regOut = hostOf(reg, t0)
		}
		if high && in.Op == decode.CMPXCHG {
			return false // AL is an operand too
		}
		if high {
			t.byte(0x86, 0xC0|regHost&3<<3|regHost) // XCHG low, high: the form with REX cannot name AH
			t.rm(e, regHost&3, m)
			t.immediate(in.Imm, immBytes(&in.Inst))
			t.byte(0x86, 0xC0|regHost&3<<3|regHost)
			return true
		}
		t.rm(e, regHost, m)
		t.immediate(in.Imm, immBytes(&in.Inst))
		if regOut {
			t.out(in.Args[reg].Reg)
		}
		return true
	}
	rmHost, rmOut = hostOf(rm, t1)
	if reg >= 0 {
		regHost, regOut = hostOf(reg, t0)
		// The same register twice is one.
		if a := in.Args[reg]; a.Kind == decode.GPR && in.Args[rm].Kind == decode.GPR && in.Args[rm].Reg == a.Reg && rmHost == t1 {
			t.load(t0, slot(a.Reg))
			rmHost = t0
			regOut, rmOut = regOut || rmOut, false
		}
	}
	if high && (regHost >= 8 && reg >= 0 || rmHost >= 8 || e.w || e.rex) {
		return false
	}
	t.rr(e, regHost, rmHost)
	t.immediate(in.Imm, immBytes(&in.Inst))
	if regOut {
		t.out(in.Args[reg].Reg)
	}
	if rmOut {
		t.store(slot(in.Args[rm].Reg), t1)
	}
	return true
}
