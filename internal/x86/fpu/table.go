package fpu

import (
	"fmt"
	"strings"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// what says how an instruction's operands meet the stub's registers.
type what uint16

const (
	fp     what = 1 << iota // reads MXCSR's control bits, may raise #XM
	flags                   // writes RFLAGS, not its first operand
	x0in                    // reads XMM0
	x0out                   // writes XMM0
	str                     // PCMPxSTRx: writes RFLAGS, and ECX or XMM0, not its first operand
	mmx                     // both vector operands are MMX registers
	mmxSrc                  // the second is
	mmxDst                  // the first is
	gprDst                  // the first, in ModRM.reg, is a general register
	gprSrc                  // the second, in ModRM.rm, is a general register
	store                   // the first, in ModRM.rm, is a general register, the second in ModRM.reg a vector
	shift                   // the only operand is in ModRM.rm, ModRM.reg extends the opcode
	imm                     // has an immediate byte
)

// A row is what this package knows of an opcode. The table is also the list of what guests may make the host execute.
type row struct {
	pfx, esc uint8           // mandatory prefix, map
	need     decode.Features // what the host must have; SSE2 every x86-64 processor has
	what     what
	opcodes  string
}

var table = []row{
	{0x00, 1, 0, 0, "10-17 28 29 2B 52-57"},
	{0x00, 1, 0, gprDst, "50"},
	{0x00, 1, 0, fp, "51 58 59 5C-5F"},
	{0x00, 1, 0, fp, "5A 5B"},
	{0x00, 1, 0, fp | imm, "C2"},
	{0x00, 1, 0, imm, "C6"},
	{0x00, 1, 0, fp | mmxSrc, "2A"},
	{0x00, 1, 0, fp | mmxDst, "2C 2D"},
	{0x00, 1, 0, fp | flags, "2E 2F"},
	{0x66, 1, 0, 0, "10-17 28 29 2B 54-57"},
	{0x66, 1, 0, gprDst, "50"},
	{0x66, 1, 0, fp, "51 58-5F E6"},
	{0x66, 1, 0, fp | imm, "C2"},
	{0x66, 1, 0, imm, "C6 70"},
	{0x66, 1, 0, fp | mmxSrc, "2A"},
	{0x66, 1, 0, fp | mmxDst, "2C 2D"},
	{0x66, 1, 0, fp | flags, "2E 2F"},
	{0x66, 1, decode.FeatureSSE3, fp, "7C 7D D0"},
	{0xF3, 1, 0, 0, "10 11 52 53"},
	{0xF3, 1, decode.FeatureSSE3, 0, "12 16"},
	{0xF3, 1, 0, fp, "51 58 59 5C-5F"},
	{0xF3, 1, 0, fp, "5A 5B E6"},
	{0xF3, 1, 0, fp | imm, "C2"},
	{0xF3, 1, 0, fp | gprSrc, "2A"},
	{0xF3, 1, 0, fp | gprDst, "2C 2D"},
	{0xF3, 1, 0, 0, "6F 7E 7F"},
	{0xF3, 1, 0, mmxSrc, "D6"},
	{0xF3, 1, 0, imm, "70"},
	{0xF2, 1, 0, 0, "10 11"},
	{0xF2, 1, decode.FeatureSSE3, 0, "12 F0"},
	{0xF2, 1, 0, fp, "51 58-5A 5C-5F E6"},
	{0xF2, 1, 0, fp | imm, "C2"},
	{0xF2, 1, 0, fp | gprSrc, "2A"},
	{0xF2, 1, 0, fp | gprDst, "2C 2D"},
	{0xF2, 1, 0, mmxDst, "D6"},
	{0xF2, 1, 0, imm, "70"},
	{0xF2, 1, decode.FeatureSSE3, fp, "7C 7D D0"},

	{0x00, 1, 0, mmx, "60-6B 6E 6F 74-76 7E 7F D1-D3 D5 D8 D9 DB-DD DF E1 E2 E5 E8 E9 EB-ED EF F1-F3 F5 F8-FA FC-FE"},
	{0x00, 1, 0, mmx, "DA DE E0 E3 E4 E7 EA EE F6 F7"},
	{0x00, 1, 0, mmx, "D4 F4 FB"},
	{0x00, 1, 0, mmx | shift | imm, "71-73"},
	{0x00, 1, 0, mmx | imm, "70"},
	{0x00, 1, 0, mmx | gprSrc | imm, "C4"},
	{0x00, 1, 0, mmx | gprDst | imm, "C5"},
	{0x00, 1, 0, mmx | gprDst, "D7"},
	{0x00, 2, decode.FeatureSSSE3, mmx, "00-0B 1C-1E"},
	{0x00, 3, decode.FeatureSSSE3, mmx | imm, "0F"},
	{0x66, 1, 0, 0, "60-6F 74-76 7E 7F D1-D6 D8-DF E0-E5 E7-EF F1-FE"},
	{0x66, 1, 0, shift | imm, "71-73"},
	{0x66, 1, 0, gprSrc | imm, "C4"},
	{0x66, 1, 0, gprDst | imm, "C5"},
	{0x66, 1, 0, gprDst, "D7"},
	{0x66, 2, decode.FeatureSSSE3, 0, "00-0B 1C-1E"},
	{0x66, 3, decode.FeatureSSSE3, imm, "0F"},

	{0x66, 2, decode.FeatureSSE41, x0in, "10 14 15"},
	{0x66, 2, decode.FeatureSSE41, flags, "17"},
	{0x66, 2, decode.FeatureSSE41, 0, "20-25 28-2B 30-35 38-41"},
	{0x66, 2, decode.FeatureSSE42, 0, "37"},
	{0x66, 3, decode.FeatureSSE41, fp | imm, "08-0B 40 41"},
	{0x66, 3, decode.FeatureSSE41, imm, "0C-0E 21 42"},
	{0x66, 3, decode.FeatureSSE41, store | imm, "14-17"},
	{0x66, 3, decode.FeatureSSE41, gprSrc | imm, "20 22"},
	{0x66, 3, decode.FeatureSSE42, str | imm, "61 63"},
	{0x66, 3, decode.FeatureSSE42, str | x0out | imm, "60 62"},
	{0x66, 3, decode.FeaturePCLMUL, imm, "44"},
	{0x66, 2, decode.FeatureAES, 0, "DB-DF"},
	{0x66, 3, decode.FeatureAES, imm, "DF"},
	{0x00, 2, decode.FeatureSHA, 0, "C8-CA CC CD"},
	{0x00, 2, decode.FeatureSHA, x0in, "CB"},
	{0x00, 3, decode.FeatureSHA, imm, "CC"},
}

// rows is the table by encoding.
var rows = index(table)

func index(table []row) map[[3]uint8]*row {
	m := make(map[[3]uint8]*row)
	for i := range table {
		r := &table[i]
		for _, f := range strings.Fields(r.opcodes) {
			var lo, hi int
			if n, _ := fmt.Sscanf(f, "%02X-%02X", &lo, &hi); n < 2 {
				hi = lo
			}
			for op := lo; op <= hi; op++ {
				k := [3]uint8{r.esc, r.pfx, uint8(op)}
				if m[k] != nil {
					panic(fmt.Sprintf("BUG: fpu: two rows for %x", k))
				}
				m[k] = r
			}
		}
	}
	return m
}

func lookup(in *decode.Inst) *row {
	if r := rows[[3]uint8{in.Map, in.Pfx, in.Opcode}]; r != nil && in.Flags&decode.Vec != 0 {
		return r
	}
	return nil
}
