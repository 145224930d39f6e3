package decode

//go:generate go run ./gen

// Op is what an instruction does. The zero Op is none.
//
// JCC, SETCC and CMOVCC have their condition in the low four bits of Inst.Opcode. One Op serves all operand sizes:
// CBW is CWDE and CDQE too, CWD is CDQ and CQO, MOVS is MOVSB to MOVSQ, IRET is IRETQ, FXSAVE is FXSAVE64, by Inst.Size.
// MOVSDX and CMPSDX are SSE2's MOVSD and CMPSD. MOVCR and MOVDR are MOV to and from CRn and DRn.
type Op uint16

// String is the operation's name.
func (o Op) String() string {
	if o >= NumOps {
		return "?"
	}
	return opNames[o]
}
