package decode_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86/decode"
)

const (
	m16 = decode.Mode16
	m32 = decode.Mode32
	m64 = decode.Mode64
	all = decode.AllFeatures
)

// corners are encodings that decoders get wrong; want is the text, or what the error is.
var corners = []struct {
	code string
	mode decode.Mode
	f    decode.Features
	want string
}{
	// Prefixes.
	{"48 66 89 c3", m64, all, "MOV BX, AX"}, // REX in front of another prefix does not count
	{"66 48 89 c3", m64, all, "MOV RBX, RAX"},
	{"66 b8 11 22 33 44", m16, all, "MOV EAX, 0x44332211"},
	{"b8 11 22", m16, all, "MOV AX, 0x2211"},
	{"64 2e 8b 00", m64, all, "MOV EAX, DWORD PTR FS:[RAX]"}, // CS, DS, ES and SS overrides are nothing in 64-bit mode
	{"36 8b 00", m64, all, "MOV EAX, DWORD PTR DS:[RAX]"},
	{"36 8b 00", m32, all, "MOV EAX, DWORD PTR SS:[EAX]"},
	{"66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", m64, all, "NOP"},
	{"66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", m64, all, "long"},
	{"66 66 66 66 66 66 66 66 66 66 66 66 66 66 66", m64, all, "long"},
	{"66 66 66 66 66 66 66 66 66 66 66 66 66 66", m64, all, "short"},
	{"2e 2e 2e 2e 2e 2e 2e 2e 2e 2e 2e 81 c0 00 00 00 00", m32, all, "long"},
	// Mandatory prefixes: the last of F2 and F3 wins, and either goes before 66.
	{"f2 f3 0f 10 c1", m64, all, "MOVSS XMM0, XMM1"},
	{"f3 f2 0f 10 c1", m64, all, "MOVSD XMM0, XMM1"},
	{"f3 66 0f 10 c1", m64, all, "MOVSS XMM0, XMM1"},
	{"66 f2 0f 38 f1 c1", m64, all, "CRC32 EAX, CX"},
	{"66 f3 0f b8 c1", m64, all, "POPCNT AX, CX"},
	{"0f b8 c1", m64, all, "ud"},
	{"66 0f 38 f0 00", m64, all, "MOVBE AX, WORD PTR DS:[RAX]"},
	{"0f 38 f0 c0", m64, all, "ud"},
	// Features.
	{"f3 0f bc c1", m64, 0, "BSF EAX, ECX"},
	{"f3 0f bc c1", m64, all, "TZCNT EAX, ECX"},
	{"f3 0f bd c1", m64, 0, "BSR EAX, ECX"},
	{"f3 0f b8 c1", m64, 0, "ud"},
	{"66 0f 38 00 c1", m64, 0, "ud"},
	{"48 0f c7 08", m64, 0, "ud"},
	{"0f c7 08", m64, 0, "CMPXCHG8B QWORD PTR DS:[RAX]"},
	// LOCK.
	{"f0 01 03", m64, all, "LOCK ADD DWORD PTR DS:[RBX], EAX"},
	{"f0 01 c3", m64, all, "ud"},
	{"f0 03 03", m64, all, "ud"},
	{"f0 39 03", m64, all, "ud"},
	{"f0 8b 03", m64, all, "ud"},
	{"f0 0f ba 23 01", m64, all, "ud"}, // BT
	{"f0 0f ba 2b 01", m64, all, "LOCK BTS DWORD PTR DS:[RBX], 0x1"},
	{"f0 90", m64, all, "ud"},
	{"f0 c3", m64, all, "ud"},
	// Byte registers.
	{"88 e0", m64, all, "MOV AL, AH"},
	{"40 88 e0", m64, all, "MOV AL, SPL"},
	{"0f b6 c5", m64, all, "MOVZX EAX, CH"},
	{"b4 01", m64, all, "MOV AH, 0x1"},
	{"40 b4 01", m64, all, "MOV SPL, 0x1"},
	// Addressing.
	{"8b 04 25 00 00 00 80", m64, all, "MOV EAX, DWORD PTR DS:[0xffffffff80000000]"},
	{"8b 05 04 00 00 00", m64, all, "MOV EAX, DWORD PTR DS:[RIP+0x4]"},
	{"67 8b 05 04 00 00 00", m64, all, "MOV EAX, DWORD PTR DS:[RIP+0x4]"},
	{"8b 05 04 00 00 00", m32, all, "MOV EAX, DWORD PTR DS:[0x4]"},
	{"8b 45 00", m64, all, "MOV EAX, DWORD PTR SS:[RBP]"},
	{"41 8b 45 00", m64, all, "MOV EAX, DWORD PTR DS:[R13]"},
	{"41 8b 04 24", m64, all, "MOV EAX, DWORD PTR DS:[R12]"},
	{"8b 04 24", m64, all, "MOV EAX, DWORD PTR SS:[RSP]"},
	{"42 8b 04 20", m64, all, "MOV EAX, DWORD PTR DS:[RAX+R12]"},
	{"8b 04 2d 00 00 00 00", m64, all, "MOV EAX, DWORD PTR DS:[RBP]"}, // an index of RBP is no stack base
	{"8b 02", m16, all, "MOV AX, WORD PTR SS:[BP+SI]"},
	{"8b 06 34 12", m16, all, "MOV AX, WORD PTR DS:[0x1234]"},
	{"67 8b 04 91", m16, all, "MOV AX, WORD PTR DS:[ECX+EDX*4]"},
	{"67 8b 07", m32, all, "MOV EAX, DWORD PTR DS:[BX]"},
	{"a1 11 22 33 44 55 66 77 88", m64, all, "MOV EAX, DWORD PTR DS:[0x8877665544332211]"},
	{"67 a1 11 22 33 44", m64, all, "MOV EAX, DWORD PTR DS:[0x44332211]"},
	{"65 48 a3 10 00 00 00 00 00 00 00", m64, all, "MOV QWORD PTR GS:[0x10], RAX"},
	// Sizes that 64-bit mode sets.
	{"50", m64, all, "PUSH RAX"},
	{"66 50", m64, all, "PUSH AX"},
	{"6a ff", m64, all, "PUSH 0xffffffffffffffff"},
	{"68 00 00 00 80", m64, all, "PUSH 0xffffffff80000000"},
	{"66 68 01 02", m64, all, "PUSH 0x201"},
	{"66 e9 00 00 00 00", m64, all, "JMP $+0x6"},
	{"66 e9 00 01", m32, all, "JMP $+0x104"},
	{"ff d0", m64, all, "CALL RAX"},
	{"66 ff d0", m64, all, "CALL RAX"},
	{"48 63 c1", m64, all, "MOVSXD RAX, ECX"},
	{"63 c1", m32, all, "ARPL CX, AX"},
	{"c7 c0 ff ff ff ff", m64, all, "MOV EAX, 0xffffffff"},
	{"48 c7 c0 ff ff ff ff", m64, all, "MOV RAX, 0xffffffffffffffff"},
	{"48 cf", m64, all, "IRETQ"},
	{"cf", m64, all, "IRETD"},
	// One mode only.
	{"06", m64, all, "ud"}, {"27", m64, all, "ud"}, {"60", m64, all, "ud"}, {"62 00", m64, all, "ud"}, {"82 c0 01", m64, all, "ud"},
	{"9a 00 00 00 00 00 00", m64, all, "ud"}, {"c4 c0", m64, all, "short"}, {"ce", m64, all, "ud"}, {"d4 0a", m64, all, "ud"}, {"d6", m64, all, "ud"},
	{"82 c0 01", m32, all, "ADD AL, 0x1"}, {"40", m32, all, "INC EAX"}, {"0f 01 f8", m32, all, "ud"},
	{"ea 11 22 33 44 55 66", m32, all, "JMPF 0x44332211, 0x6655"}, {"c4 06 34 12", m16, all, "LES AX, DWORD PTR DS:[0x1234]"},
	{"f3 0f ae c0", m32, all, "ud"},
	// System registers: MOV takes a register whatever mod says.
	{"0f 20 00", m64, all, "MOV RAX, CR0"}, {"0f 22 d8", m64, all, "MOV CR3, RAX"}, {"44 0f 20 c0", m64, all, "MOV RAX, CR8"},
	{"0f 20 c8", m64, all, "ud"}, {"0f 20 28", m64, all, "ud"}, {"44 0f 20 c8", m64, all, "ud"}, {"44 0f 21 c0", m64, all, "ud"},
	{"0f 21 f8", m32, all, "MOV EAX, DR7"},
	{"8e c8", m64, all, "ud"}, {"8c f0", m64, all, "ud"}, {"8c c8", m64, all, "MOV EAX, CS"}, {"48 8c c8", m64, all, "MOV RAX, CS"}, {"8c 08", m64, all, "MOV WORD PTR DS:[RAX], CS"},
	// Odds.
	{"90", m64, all, "NOP"}, {"41 90", m64, all, "XCHG R8D, EAX"}, {"48 90", m64, all, "NOP"}, {"f3 90", m64, all, "PAUSE"},
	{"c8 10 00 02", m64, all, "ENTER 0x10, 0x2"},
	{"0f 0b", m64, all, "UD2"}, {"0f ff 00", m64, all, "UD0 EAX, DWORD PTR DS:[RAX]"}, {"0f 04", m64, all, "ud"},
	{"ff f8", m64, all, "ud"}, {"ff d8", m64, all, "ud"}, {"8d c0", m64, all, "ud"}, {"fe d0", m64, all, "ud"}, {"8f c8", m64, all, "ud"},
	{"0f c7 f0", m64, all, "RDRAND EAX"}, {"f3 0f c7 f8", m64, all, "RDPID RAX"},
	{"66 0f 6e c0", m64, all, "MOVD XMM0, EAX"}, {"66 48 0f 6e c0", m64, all, "MOVQ XMM0, RAX"},
	{"0f 12 c1", m64, all, "MOVHLPS XMM0, XMM1"}, {"0f 12 01", m64, all, "MOVLPS XMM0, QWORD PTR DS:[RCX]"}, {"0f 13 c1", m64, all, "ud"},
	{"0f ae e8", m64, all, "LFENCE"}, {"0f ae 28", m64, all, "XRSTOR DS:[RAX]"}, {"48 0f ae 00", m64, all, "FXSAVE64 DS:[RAX]"},
	{"d9 d1", m64, all, "ud"}, {"d9 08", m64, all, "ud"}, {"de d8", m64, all, "ud"}, {"de d9", m64, all, "FCOMPP"}, {"df e0", m64, all, "FNSTSW AX"},
	{"dc e1", m64, all, "FSUBR ST(1), ST(0)"}, {"d8 e1", m64, all, "FSUB ST(0), ST(1)"},
	{"66 0f f7 c1", m64, all, "MASKMOVDQU XMM0, XMM1, OWORD PTR DS:[RDI]"},
	// VEX.
	{"c5 f8 58 c1", m64, all, "VADDPS XMM0, XMM0, XMM1"}, {"c5 fc 58 01", m64, all, "VADDPS YMM0, YMM0, YWORD PTR DS:[RCX]"},
	{"c4 41 74 58 c8", m64, all, "VADDPS YMM9, YMM1, YMM8"}, {"c4 c1 f4 58 c8", m64, all, "VADDPS YMM1, YMM1, YMM8"},
	{"c5 fe 58 c1", m64, all, "VADDSS XMM0, XMM0, XMM1"}, // VEX.L of scalars is ignored
	{"c5 f8 77", m64, all, "VZEROUPPER"}, {"c5 fc 77", m64, all, "VZEROALL"}, {"c5 f0 77", m64, all, "ud"}, {"c5 f9 77", m64, all, "ud"},
	{"c5 f0 28 c1", m64, all, "ud"}, {"c5 f8 28 c1", m64, all, "VMOVAPS XMM0, XMM1"}, // vvvv must be 1111 where it names nothing
	{"c5 fd 6e c0", m64, all, "ud"}, {"c5 f9 6e c0", m64, all, "VMOVD XMM0, EAX"}, {"c4 e1 f9 6e c0", m64, all, "VMOVQ XMM0, RAX"},
	{"c4 e1 f9 6e c0", m32, all, "VMOVD XMM0, EAX"}, // and W outside of 64-bit mode
	{"66 c5 f8 58 c1", m64, all, "ud"}, {"f3 c5 f8 58 c1", m64, all, "ud"}, {"f0 c5 f8 58 01", m64, all, "ud"}, {"40 c5 f8 58 c1", m64, all, "ud"},
	{"40 2e c5 f8 58 c1", m64, all, "VADDPS XMM0, XMM0, XMM1"}, {"c4 e4 78 58 c1", m64, all, "ud"}, {"c4 e0 78 58 c1", m64, all, "ud"},
	{"c4 e2 7d 16 c1", m64, all, "VPERMPS YMM0, YMM0, YMM1"}, {"c4 e2 79 16 c1", m64, all, "ud"}, {"c4 e2 fd 16 c1", m64, all, "ud"},
	{"c5 fd fc c1", m64, all, "VPADDB YMM0, YMM0, YMM1"}, {"c5 fd fc c1", m64, all &^ decode.FeatureAVX2, "ud"}, {"c5 f9 fc c1", m64, all &^ decode.FeatureAVX2, "VPADDB XMM0, XMM0, XMM1"},
	{"c4 e2 79 dc c1", m64, all &^ decode.FeatureAES, "ud"}, {"c4 e2 79 dc c1", m64, all &^ decode.FeatureAVX, "ud"}, {"c4 e2 79 dc c1", m64, all, "VAESENC XMM0, XMM0, XMM1"},
	{"c4 e2 78 f2 c1", m64, all, "ANDN EAX, EAX, ECX"}, {"c4 e2 f8 f2 c1", m64, all &^ decode.FeatureAVX, "ANDN RAX, RAX, RCX"}, {"c4 e2 f8 f2 c1", m32, all, "ANDN EAX, EAX, ECX"},
	{"c4 e2 7c f2 c1", m64, all, "ud"}, {"c4 e2 f0 f3 d8", m64, all, "BLSI RCX, RAX"}, {"c4 e3 fb f0 c1 07", m64, all, "RORX RAX, RCX, 0x7"},
	{"c4 e3 71 4a c2 30", m64, all, "VBLENDVPS XMM0, XMM1, XMM2, XMM3"}, {"c4 e3 71 4a c2 b0", m32, all, "VBLENDVPS XMM0, XMM1, XMM2, XMM3"},
	{"c4 e2 69 92 04 88", m64, all, "VGATHERDPS XMM0, DWORD PTR DS:[RAX+XMM1*4], XMM2"}, {"c4 e2 69 92 04 20", m64, all, "VGATHERDPS XMM0, DWORD PTR DS:[RAX+XMM4], XMM2"},
	{"c4 e2 6d 93 04 88", m64, all, "VGATHERQPS XMM0, DWORD PTR DS:[RAX+YMM1*4], XMM2"}, {"c4 e2 ed 92 04 88", m64, all, "VGATHERDPD YMM0, QWORD PTR DS:[RAX+XMM1*4], YMM2"},
	{"c4 e2 79 92 04 88", m64, all, "ud"}, {"c4 e2 69 92 0c 88", m64, all, "ud"}, {"c4 e2 71 92 04 88", m64, all, "ud"}, // a register twice
	{"c4 e2 69 92 00", m64, all, "ud"}, {"c4 e2 69 92 c0", m64, all, "ud"}, {"67 c4 e2 69 92 04 88", m32, all, "ud"}, // no SIB byte
	{"c5 01", m16, all, "LDS AX, DWORD PTR DS:[BX+DI]"}, {"c5 f8 58 c1", m16, all, "VADDPS XMM0, XMM0, XMM1"},
	{"f3 48 ab", m64, all, "REP STOSQ"}, {"f2 ae", m64, all, "REPNE SCASB"}, {"48 6d", m64, all, "INSD"},
}

func TestCorners(t *testing.T) {
	for _, c := range corners {
		code, err := hex.DecodeString(strings.ReplaceAll(c.code, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		in, err := decode.Decode(code, c.mode, c.f)
		got := in.String()
		switch err {
		case decode.ErrUD:
			got = "ud"
		case decode.ErrShort:
			got = "short"
		case decode.ErrTooLong:
			got = "long"
		default:
			if int(in.Len) != len(code) {
				t.Errorf("%s: length %d of %q", c.code, in.Len, got)
			}
		}
		if got != c.want {
			t.Errorf("%s in %d-bit code: %q, want %q", c.code, int(c.mode)*8, got, c.want)
		}
	}
}
