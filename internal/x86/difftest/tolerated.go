package difftest

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A tolerance is what is not compared at the end of a case, where processors differ among themselves and interp follows another than this one.
type tolerance struct {
	all  bool
	addr bool // CR2
	x87  bool // x87 and MMX registers

	vectors bool // XMM and YMM registers
}

func tolerated(c *Case, want, got *Outcome) (t tolerance) {
	first, _ := instructionAt(c, want.Regs[regRIP])
	if (first.Op == decode.DPPS || first.Op == decode.DPPD || first.Op == decode.VDPPS || first.Op == decode.VDPPD) && want.Vector == uint8(x86.MF) {
		// #XM of a product that is not in the result: interp looks for exceptions in that, and reports those of the sums with them.
		t.all = true
		return t
	}
	if (first.Op == decode.WRFSBASE || first.Op == decode.WRGSBASE) && want.Vector == uint8(x86.GP) {
		// interp has 57-bit addresses, and takes a base that is canonical in those whatever CR4.LA57 is (SDM vol. 3A 4.5.2); this
		// processor may have 48.
		v := int64(want.Regs[first.Args[0].Reg])
		if t.all = v<<7>>7 == v; t.all {
			return t
		}
	}
	in, ok := instructionAt(c, got.Regs[regRIP])
	if !ok {
		return t
	}
	pf, gp, ss := uint8(x86.PFV), uint8(x86.GP), uint8(x86.SSV)
	misaligned := in.Flags&decode.Aligned != 0 && got.Vector == gp
	switch in.Op {
	case decode.SHA1MSG1, decode.SHA1MSG2, decode.SHA1NEXTE, decode.SHA1RNDS4, decode.SHA256MSG1, decode.SHA256MSG2, decode.SHA256RNDS2:
		t.all = misaligned // AMD's processors do not ask for alignment here
		return t
	case decode.LDMXCSR, decode.VLDMXCSR, decode.FXRSTOR:
		if t.all = got.Vector == gp; t.all { // AMD's MXCSR has a bit 17, MM
			return t
		}
	}
	if want.Regs[regRIP] != got.Regs[regRIP] {
		return t
	}
	switch {
	case misaligned && want.Vector == pf:
		// AMD's processors translate an operand that is not aligned before they find that out; interp finds it out first.
		t.all = true
	case (in.Flags&decode.Aligned != 0 || in.Op == decode.FXRSTOR) && got.Vector == ss && want.Vector == gp:
		t.all = true // and they find it out before they look whether a reference to the stack is canonical
	case in.Op == decode.CALL && got.Vector == gp && (want.Vector == pf || want.Vector == ss):
		t.all = true // AMD's processors push before they look whether the target is canonical
	case (in.Op == decode.CMPS || in.Op == decode.MOVS) && want.Vector != got.Vector && c.Bits == 32 && (got.Vector == gp || got.Vector == pf):
		t.all = true // both operands fault, in the processor the one at rSI first
	case c.Bits == 32 && (got.Vector == gp || got.Vector == ss) && want.Vector == pf && (want.Addr >= 1<<32-pageSize || want.Addr < pageSize):
		t.all = true // an operand across 4 GiB goes on at 0 in AMD's processors; interp takes it to be beyond the segment's limit
	case (in.Op == decode.FXRSTOR || in.Op == decode.FRSTOR || in.Op == decode.FLDENV) && want.Vector == pf && got.Vector == pf:
		t.addr = true // AMD's processors look at the end first
	case in.Op == decode.POPA && want.Vector == pf && got.Vector == pf:
		t.all = true // AMD's processors have written what they had read before the fault
	case in.Op == decode.MASKMOVQ && want.Vector == got.Vector:
		t.x87 = true // AMD's processors have switched to MMX when the store faults
	}
	return t
}

// instructionAt decodes the instruction of c at rip.
func instructionAt(c *Case, rip uint64) (decode.Inst, bool) {
	off := rip - c.Regs[regRIP]
	if off >= uint64(len(c.Code)) {
		return decode.Inst{}, false
	}
	in, err := decode.Decode(c.Code[off:], c.mode(), features)
	return in, err == nil
}
