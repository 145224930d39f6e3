package difftest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// fxRanges are the parts of an FXSAVE image that are compared: all but FOP, FIP and FDP, which AMD's processors save only while an exception is
// pending, the mask of MXCSR and what is reserved.
var fxRanges = []struct {
	name     string
	from, to int
}{
	{"fcw", 0, 2}, {"fsw", 2, 4}, {"ftw", 4, 5}, {"mxcsr", 24, 28},
	{"st0", 32, 42}, {"st1", 48, 58}, {"st2", 64, 74}, {"st3", 80, 90}, {"st4", 96, 106}, {"st5", 112, 122}, {"st6", 128, 138}, {"st7", 144, 154},
	{"xmm0", 160, 176}, {"xmm1", 176, 192}, {"xmm2", 192, 208}, {"xmm3", 208, 224}, {"xmm4", 224, 240}, {"xmm5", 240, 256}, {"xmm6", 256, 272}, {"xmm7", 272, 288},
	{"xmm8", 288, 304}, {"xmm9", 304, 320}, {"xmm10", 320, 336}, {"xmm11", 336, 352}, {"xmm12", 352, 368}, {"xmm13", 368, 384}, {"xmm14", 384, 400}, {"xmm15", 400, 416},
}

// Differences lists where want (the processor's) and got (interp's) differ, a line each; nothing if they agree.
func Differences(c *Case, want, got *Outcome) []string {
	if want.Regs == got.Regs && want.FX == got.FX && want.YMM == got.YMM && want.Vector == got.Vector && want.Addr == got.Addr && want.Data == got.Data {
		return nil
	}
	t := tolerated(c, want, got)
	if t.all {
		return nil
	}
	var d []string
	say := func(format string, a ...any) { d = append(d, fmt.Sprintf(format, a...)) }
	if v := uint8(x86.XM); want.Vector != got.Vector && !(want.Vector == uint8(x86.MF) && got.Vector == v) && !(want.Vector == uint8(x86.GP) && (got.Vector == uint8(x86.OFV) || got.Vector == uint8(x86.BR))) { // a signal does not tell them apart
		say("vector: processor %d, interp %d", want.Vector, got.Vector)
	}
	if want.Addr != got.Addr && !t.addr {
		say("cr2: processor %#x, interp %#x", want.Addr, got.Addr)
	}
	for i := range want.Regs {
		a, b := want.Regs[i], got.Regs[i]
		if i == regFlags {
			mask := ^undefinedAt(c, want.Regs[regRIP])
			a, b = a&mask, b&mask
		}
		if a != b {
			say("%s: processor %#x, interp %#x", regNames[i], a, b)
		}
	}
	for _, r := range fxRanges {
		if t.vectors && r.from >= 160 || t.x87 && r.to <= 5 || t.x87 && r.from >= 32 && r.to <= 154 {
			continue
		}
		if a, b := want.FX[r.from:r.to], got.FX[r.from:r.to]; !bytes.Equal(a, b) {
			say("%s: processor %x, interp %x", r.name, reverse(a), reverse(b))
		}
	}
	for i := 0; i < len(want.YMM) && !t.vectors; i += 16 {
		if a, b := want.YMM[i:i+16], got.YMM[i:i+16]; !bytes.Equal(a, b) {
			say("ymm%d upper: processor %x, interp %x", i/16, reverse(a), reverse(b))
		}
	}
	for i := 0; i < dataLen; i += 8 {
		a, b := binary.LittleEndian.Uint64(want.Data[i:]), binary.LittleEndian.Uint64(got.Data[i:])
		if a != b {
			say("memory at %#x: processor %#x, interp %#x", dataVA+i, a, b)
		}
	}
	return d
}

func reverse(p []byte) []byte {
	q := make([]byte, len(p))
	for i := range p {
		q[len(p)-1-i] = p[i]
	}
	return q
}

// Listing is the code of c, an instruction a line; NOPs are left out.
func Listing(c *Case) string {
	var b strings.Builder
	for at := 0; at < len(c.Code); {
		in, err := decode.Decode(c.Code[at:], c.mode(), features)
		if err != nil {
			fmt.Fprintf(&b, "%#x: % x: %v\n", c.Regs[regRIP]+uint64(at), c.Code[at:], err)
			break
		}
		if in.Op != decode.NOP || in.Len > 1 {
			fmt.Fprintf(&b, "%#x: % x: %s\n", c.Regs[regRIP]+uint64(at), c.Code[at:at+int(in.Len)], in.String())
		}
		at += int(in.Len)
	}
	return b.String()
}
