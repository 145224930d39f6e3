package difftest

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// flagEffect is what an operation does to the status flags. A count of zero leaves them alone, so shifts define none for certain.
type flagEffect struct {
	defines   uint64 // whatever the operands
	undefines uint64 // what the SDM leaves undefined, for some operands
}

const (
	allFlags = x86.Status
	af       = x86.AF
	szp      = x86.SF | x86.ZF | x86.PF
)

// flagEffects is the SDM's text, instruction by instruction (vol. 2, "Flags Affected"). What is not here defines nothing and leaves nothing undefined.
var flagEffects = map[decode.Op]flagEffect{
	decode.ADD: {defines: allFlags}, decode.ADC: {defines: allFlags}, decode.SUB: {defines: allFlags}, decode.SBB: {defines: allFlags},
	decode.CMP: {defines: allFlags}, decode.NEG: {defines: allFlags}, decode.XADD: {defines: allFlags}, decode.CMPXCHG: {defines: allFlags},
	decode.CMPS: {}, decode.SCAS: {}, // REP with a count of zero does nothing
	decode.AND: {allFlags &^ af, af}, decode.OR: {allFlags &^ af, af}, decode.XOR: {allFlags &^ af, af}, decode.TEST: {allFlags &^ af, af},
	decode.SHL: {undefines: x86.AF | x86.OF | x86.CF}, decode.SHR: {undefines: x86.AF | x86.OF | x86.CF}, decode.SAR: {undefines: x86.AF | x86.OF | x86.CF},
	decode.ROL: {undefines: x86.OF}, decode.ROR: {undefines: x86.OF}, decode.RCL: {undefines: x86.OF}, decode.RCR: {undefines: x86.OF},
	decode.SHLD: {undefines: allFlags}, decode.SHRD: {undefines: allFlags},
	decode.MUL: {x86.CF | x86.OF, szp | af}, decode.IMUL: {x86.CF | x86.OF, szp | af},
	decode.DIV: {undefines: allFlags}, decode.IDIV: {undefines: allFlags},
	decode.BT: {x86.CF, x86.OF | x86.SF | x86.AF | x86.PF}, decode.BTS: {x86.CF, x86.OF | x86.SF | x86.AF | x86.PF},
	decode.BTR: {x86.CF, x86.OF | x86.SF | x86.AF | x86.PF}, decode.BTC: {x86.CF, x86.OF | x86.SF | x86.AF | x86.PF},
	decode.BSF: {x86.ZF, x86.CF | x86.OF | x86.SF | x86.AF | x86.PF}, decode.BSR: {x86.ZF, x86.CF | x86.OF | x86.SF | x86.AF | x86.PF},
	decode.POPF: {defines: allFlags}, decode.SAHF: {defines: allFlags &^ x86.OF},
	decode.DAA: {szp | x86.CF | af, x86.OF}, decode.DAS: {szp | x86.CF | af, x86.OF},
	decode.AAA: {x86.CF | af, szp | x86.OF}, decode.AAS: {x86.CF | af, szp | x86.OF},
	decode.AAM: {szp, x86.CF | af | x86.OF}, decode.AAD: {szp, x86.CF | af | x86.OF},
	decode.POPCNT: {defines: allFlags},
	decode.ANDN:   {allFlags &^ (af | x86.PF), af | x86.PF}, decode.BLSR: {allFlags &^ (af | x86.PF), af | x86.PF}, decode.BLSI: {allFlags &^ (af | x86.PF), af | x86.PF},
	decode.BLSMSK: {allFlags &^ (af | x86.PF), af | x86.PF}, decode.BZHI: {allFlags &^ (af | x86.PF), af | x86.PF},
	decode.BEXTR: {x86.ZF | x86.CF | x86.OF, x86.SF | af | x86.PF},
	decode.TZCNT: {x86.ZF | x86.CF, x86.OF | x86.SF | x86.PF | af}, decode.LZCNT: {x86.ZF | x86.CF, x86.OF | x86.SF | x86.PF | af},
	decode.VCOMISS: {defines: allFlags}, decode.VCOMISD: {defines: allFlags}, decode.VUCOMISS: {defines: allFlags}, decode.VUCOMISD: {defines: allFlags},
	decode.VPTEST: {defines: allFlags}, decode.VTESTPS: {defines: allFlags}, decode.VTESTPD: {defines: allFlags}, decode.VPCMPESTRI: {defines: allFlags},
	decode.VPCMPESTRM: {defines: allFlags}, decode.VPCMPISTRI: {defines: allFlags}, decode.VPCMPISTRM: {defines: allFlags},
	decode.COMISS: {defines: allFlags}, decode.COMISD: {defines: allFlags}, decode.UCOMISS: {defines: allFlags}, decode.UCOMISD: {defines: allFlags},
	decode.PTEST: {defines: allFlags}, decode.PCMPESTRI: {defines: allFlags}, decode.PCMPESTRM: {defines: allFlags},
	decode.PCMPISTRI: {defines: allFlags}, decode.PCMPISTRM: {defines: allFlags},
}

// flagsAfter is what is undefined after in, where undefined was before it. An instruction that faults has not undefined anything, nor defined it:
// the union stands for both.
func flagsAfter(in *decode.Inst, undefined uint64) uint64 {
	e := flagEffects[in.Op]
	return undefined&^e.defines | e.undefines
}

// readsFlags tells whether in depends on one of the undefined flags.
func readsFlags(in *decode.Inst, undefined uint64) bool {
	if in.Flags&decode.Jump != 0 {
		return true
	}
	if in.Flags&decode.ReadsFlags == 0 {
		return false
	}
	switch in.Op {
	case decode.SHL, decode.SHR, decode.SAR, decode.ROL, decode.ROR, decode.SHLD, decode.SHRD:
		return false // they only keep them
	case decode.ADOX:
		return undefined&x86.OF != 0
	case decode.ADC, decode.SBB, decode.RCL, decode.RCR, decode.CMC, decode.ADCX:
		return undefined&x86.CF != 0
	}
	return true
}

// undefinedAt is what is undefined where a case ended at rip: the flags of all instructions before it. The generator lets no branch be taken
// while flags are undefined, so what it skips does not matter; an end outside of the code was by such a branch.
func undefinedAt(c *Case, rip uint64) (undefined uint64) {
	code := c.Code
	for at := c.Regs[regRIP]; len(code) > 0; {
		in, err := decode.Decode(code, c.mode(), features)
		if err != nil || at == rip {
			return undefined
		}
		undefined = flagsAfter(&in, undefined)
		code, at = code[in.Len:], at+uint64(in.Len)
	}
	if rip-c.Regs[regRIP] > uint64(len(c.Code)) {
		return 0
	}
	return undefined
}
