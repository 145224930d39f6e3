package jit

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// flagSet is a set of status flags, by their bits in RFLAGS.
type flagSet uint16

const (
	allFlags flagSet = x86.Status
	fCF      flagSet = x86.CF
	fZF      flagSet = x86.ZF
	fCO      flagSet = x86.CF | x86.OF
)

// condReads is what condition cc>>1 looks at.
var condReads = [8]flagSet{x86.OF, x86.CF, x86.ZF, x86.CF | x86.ZF, x86.SF, x86.PF, x86.SF | x86.OF, x86.SF | x86.OF | x86.ZF}

// written is what an operation writes whatever its operands are; undefined flags count as written where all are either.
var written = [decode.NumOps]flagSet{
	decode.ADD: allFlags, decode.OR: allFlags, decode.ADC: allFlags, decode.SBB: allFlags, decode.AND: allFlags, decode.SUB: allFlags,
	decode.XOR: allFlags, decode.CMP: allFlags, decode.TEST: allFlags, decode.NEG: allFlags,
	decode.XADD: allFlags, decode.CMPXCHG: allFlags,
	decode.INC: allFlags &^ fCF, decode.DEC: allFlags &^ fCF,
	decode.MUL: allFlags, decode.IMUL: allFlags,
	decode.BT: fCF, decode.BTS: fCF, decode.BTR: fCF, decode.BTC: fCF,
	decode.BSF: fZF, decode.BSR: fZF, decode.POPCNT: allFlags, decode.TZCNT: fCF | fZF, decode.LZCNT: fCF | fZF,
	decode.ROL: fCF, decode.ROR: fCF, decode.RCL: fCF, decode.RCR: fCF,
	decode.SHL: allFlags, decode.SHR: allFlags, decode.SAR: allFlags, decode.SHLD: allFlags, decode.SHRD: allFlags,
	decode.SAHF: allFlags &^ x86.OF, decode.CLC: fCF, decode.STC: fCF, decode.CMC: fCF,
	decode.COMISD: allFlags, decode.COMISS: allFlags, decode.UCOMISD: allFlags, decode.UCOMISS: allFlags, decode.PTEST: allFlags,
	decode.CMPXCHG8B: fZF, decode.CMPXCHG16B: fZF, decode.POPF: allFlags,
}

// deliberate are operations that exist for their flags alone. Where no instruction of the block reads those before a RET or an indirect jump, they are
// taken for a result; flags that others leave there are not.
var deliberate = [decode.NumOps]bool{
	decode.CMP: true, decode.TEST: true, decode.BT: true, decode.SAHF: true, decode.CLC: true, decode.STC: true, decode.CMC: true,
	decode.COMISD: true, decode.COMISS: true, decode.UCOMISD: true, decode.UCOMISS: true, decode.PTEST: true, decode.POPF: true,
}

// writes is what in writes for certain.
func writes(in *decode.Inst) flagSet {
	switch in.Op {
	case decode.SHL, decode.SHR, decode.SAR, decode.SHLD, decode.SHRD, decode.ROL, decode.ROR, decode.RCL, decode.RCR:
		mask := int64(31)
		if in.Size == 8 {
			mask = 63
		}
		last := in.Args[in.NArgs-1]
		if last.Kind != decode.Imm || in.Imm&mask == 0 { // a count of zero changes nothing
			return 0
		}
	}
	return written[in.Op]
}

// reads is what in looks at.
func reads(in *decode.Inst) flagSet {
	switch in.Op {
	case decode.JCC, decode.SETCC, decode.CMOVCC:
		return condReads[in.Opcode>>1&7]
	case decode.ADC, decode.SBB, decode.RCL, decode.RCR, decode.CMC:
		return fCF
	}
	if in.Flags&decode.ReadsFlags != 0 {
		return allFlags
	}
	return 0
}

// liveAfter fills t.live: for each instruction, the flags that are looked at behind it before they are written.
func (t *Translator) liveAfter(b *Block) {
	n := len(b.Insts)
	if t.exact {
		for i := range t.live {
			t.live[i] = allFlags
		}
		t.liveIn = allFlags
		return
	}
	live := t.liveOut(b)
	for i := n - 1; i >= 0; i-- {
		in := &b.Insts[i].Inst
		t.live[i] = live
		live = live&^writes(in) | reads(in)
		if in.Flags&(decode.Jump|decode.EndBlock) != 0 && i != n-1 {
			live = allFlags
		}
	}
	t.liveIn = live
}

// liveBefore tells whether any flag is looked at, from instruction i of the block on, before it is written.
func (t *Translator) liveBefore(b *Block, i int) bool {
	return t.exact || t.live[i]&^writes(&b.Insts[i].Inst)|reads(&b.Insts[i].Inst) != 0
}

// liveOut is the flags that are looked at behind the block.
func (t *Translator) liveOut(b *Block) flagSet {
	last := &b.Insts[len(b.Insts)-1]
	next := int(last.Off) + int(last.Len)
	if last.Flags&(decode.Jump|decode.EndBlock) == 0 {
		t.handed = 0
		return t.liveAt(b, next, peekDepth)
	}
	t.handed = t.result(b)
	switch last.Op {
	case decode.JMP:
		if last.Args[0].Kind == decode.Rel {
			return t.liveAt(b, next+int(last.Imm), peekDepth)
		}
		return t.handed
	case decode.JCC:
		t.handed = 0 // it is what they were for
		return t.liveAt(b, next, peekDepth) | t.liveAt(b, next+int(last.Imm), peekDepth)
	case decode.CALL, decode.RET:
		return t.handed
	}
	return allFlags
}

// result is the flags that the block hands to who is behind a RET or an indirect jump.
func (t *Translator) result(b *Block) flagSet {
	for i := len(b.Insts) - 2; i >= 0; i-- {
		in := &b.Insts[i].Inst
		if w := written[in.Op]; w != 0 {
			if deliberate[in.Op] {
				return w
			}
			return 0
		}
		if reads(in) != 0 {
			return 0
		}
	}
	// POPF ends a block, so what it leaves may be a result of this one, or of the two that a return thunk makes of a RET: Linux's this_cpu_cmpxchg16b_emu
	// says so by ZF whether it stored (v6.5).
	const popf = 0x9D
	first := int(b.Insts[0].Off)
	if first == 0 || b.Page[first-1] == popf || len(b.Insts) == 1 && b.Insts[0].Op != decode.CALL {
		return allFlags
	}
	return 0
}

// peekDepth is how many instructions liveAt looks at, in all.
const peekDepth = 8

// liveAt is the flags that code at off of the block's page looks at before it writes them, as far as is seen.
func (t *Translator) liveAt(b *Block, off, depth int) flagSet {
	if t.exact {
		return allFlags
	}
	var dead flagSet
	for ; depth > 0; depth-- {
		if off < 0 || off >= len(b.Page) {
			break
		}
		in, err := decode.Decode(b.Page[off:], decode.Mode64, t.features)
		if err != nil {
			break
		}
		if reads(&in)&^dead != 0 {
			return allFlags &^ dead
		}
		dead |= writes(&in)
		if dead == allFlags {
			return 0
		}
		off += int(in.Len)
		if in.Flags&decode.EndBlock != 0 {
			break
		}
		if in.Flags&decode.Jump == 0 {
			continue
		}
		switch in.Op {
		case decode.JMP:
			if in.Args[0].Kind != decode.Rel {
				return t.handed &^ dead
			}
			off += int(in.Imm)
		case decode.CALL, decode.RET:
			return t.handed &^ dead
		case decode.JCC:
			return (t.liveAt(b, off, depth/2) | t.liveAt(b, off+int(in.Imm), depth/2)) &^ dead
		default:
			return allFlags &^ dead
		}
	}
	return allFlags &^ dead
}
