package decode

import (
	"fmt"
	"strings"
)

var conditions = [16]string{"O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G"}

// Mnemonic is what an assembler calls the instruction, condition and size included where the SDM has them in the name.
func (in *Inst) Mnemonic() string {
	cond := conditions[in.Opcode&15]
	size := func(b, w, d, q string) string {
		switch in.Size {
		case 1:
			return b
		case 2:
			return w
		case 4:
			return d
		}
		return q
	}
	switch in.Op {
	case JCC:
		return "J" + cond
	case SETCC:
		return "SET" + cond
	case CMOVCC:
		return "CMOV" + cond
	case MOVCR, MOVDR:
		return "MOV"
	case MOVSDX:
		return "MOVSD"
	case CMPSDX:
		return "CMPSD"
	case CBW:
		return size("", "CBW", "CWDE", "CDQE")
	case CWD:
		return size("", "CWD", "CDQ", "CQO")
	case IRET:
		return size("", "IRET", "IRETD", "IRETQ")
	case JCXZ:
		return map[uint8]string{2: "JCXZ", 4: "JECXZ", 8: "JRCXZ"}[in.AddrSize]
	case MOVS, CMPS, STOS, LODS, SCAS, INS, OUTS:
		return in.Op.String() + size("B", "W", "D", "Q")
	case FXSAVE, FXRSTOR, XSAVE, XRSTOR, XSAVEC, XSAVEOPT, XSAVES, XRSTORS:
		return in.Op.String() + size("", "", "", "64")
	}
	return in.Op.String()
}

// String is the instruction in the SDM's syntax; a branch target is relative to the instruction's first byte, written $.
func (in *Inst) String() string {
	var b strings.Builder
	if in.Prefix&Lock != 0 {
		b.WriteString("LOCK ")
	}
	if in.Flags&String != 0 {
		switch {
		case in.Prefix&RepNE != 0:
			b.WriteString("REPNE ")
		case in.Prefix&RepE != 0:
			b.WriteString("REP ")
		}
	}
	b.WriteString(in.Mnemonic())
	for i, a := range in.Args[:in.NArgs] {
		if i == 0 {
			b.WriteByte(' ')
		} else {
			b.WriteString(", ")
		}
		in.writeArg(&b, a)
	}
	return b.String()
}

var segNames = [8]string{"ES", "CS", "SS", "DS", "FS", "GS", "?", "?"}

var gprNames = [8]string{"AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI"}

// regName is general register r in its low size bytes.
func regName(r, size uint8) string {
	if r >= 8 {
		return fmt.Sprintf("R%d%s", r, map[uint8]string{1: "B", 2: "W", 4: "D"}[size])
	}
	switch size {
	case 1:
		return [8]string{"AL", "CL", "DL", "BL", "SPL", "BPL", "SIL", "DIL"}[r]
	case 2:
		return gprNames[r]
	case 4:
		return "E" + gprNames[r]
	}
	return "R" + gprNames[r]
}

// vectorLetter is that of a vector register of which size bytes count.
func vectorLetter(size uint8) byte {
	if size == 32 {
		return 'Y'
	}
	return 'X'
}

// indexSize is the bytes of a gather's index register: four or eight for each element of the destination.
func (in *Inst) indexSize() uint8 {
	n := in.Args[0].Size / max(in.Args[1].Size, 1) * 8
	if in.Opcode&1 == 0 {
		n /= 2
	}
	return max(n, 16)
}

func (in *Inst) writeArg(b *strings.Builder, a Arg) {
	switch a.Kind {
	case GPR:
		b.WriteString(regName(a.Reg, a.Size))
	case High:
		b.WriteString([4]string{"AH", "CH", "DH", "BH"}[a.Reg&3])
	case Mem:
		in.writeMem(b, a.Size)
	case Imm:
		v := uint64(in.Imm)
		if a.Size > 0 && a.Size < 8 {
			v &= 1<<(8*a.Size) - 1
		}
		fmt.Fprintf(b, "%#x", v)
	case Imm2:
		fmt.Fprintf(b, "%#x", uint64(in.Imm2))
	case Rel:
		fmt.Fprintf(b, "$%+#x", in.Imm+int64(in.Len))
	case SReg:
		b.WriteString(segNames[a.Reg&7])
	case CReg:
		fmt.Fprintf(b, "CR%d", a.Reg)
	case DReg:
		fmt.Fprintf(b, "DR%d", a.Reg)
	case XMM:
		fmt.Fprintf(b, "%cMM%d", vectorLetter(a.Size), a.Reg)
	case MMX:
		fmt.Fprintf(b, "MM%d", a.Reg)
	case STReg:
		fmt.Fprintf(b, "ST(%d)", a.Reg)
	}
}

func (in *Inst) writeMem(b *strings.Builder, size uint8) {
	if name := map[uint8]string{1: "BYTE", 2: "WORD", 4: "DWORD", 6: "FWORD", 8: "QWORD", 10: "TBYTE", 16: "OWORD", 32: "YWORD"}[size]; name != "" {
		b.WriteString(name + " PTR ")
	}
	m := &in.Mem
	fmt.Fprintf(b, "%s:[", segNames[m.Seg&7])
	sep := ""
	switch m.Base {
	case NoReg:
	case RIP:
		b.WriteString("RIP")
		sep = "+"
	default:
		b.WriteString(regName(m.Base, in.AddrSize))
		sep = "+"
	}
	if m.Index != NoReg {
		name := regName(m.Index, in.AddrSize)
		if in.Flags&VSIB != 0 {
			name = fmt.Sprintf("%cMM%d", vectorLetter(in.indexSize()), m.Index)
		}
		b.WriteString(sep + name)
		if m.Scale > 1 {
			fmt.Fprintf(b, "*%d", m.Scale)
		}
		sep = "+"
	}
	switch {
	case sep == "":
		fmt.Fprintf(b, "%#x", uint64(m.Disp))
	case m.Disp != 0:
		fmt.Fprintf(b, "%+#x", m.Disp)
	}
	b.WriteByte(']')
}
