package fpu

import (
	"math/rand/v2"
	"testing"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

func BenchmarkFn(b *testing.B) {
	for _, c := range []struct {
		name string
		code []byte
	}{
		{"MOVAPS", []byte{0x0F, 0x28, 0xCA}},
		{"MOVDQUload", []byte{0xF3, 0x0F, 0x6F, 0x0E}},
		{"PXOR", []byte{0x66, 0x0F, 0xEF, 0xCA}},
		{"PXORmem", []byte{0x66, 0x0F, 0xEF, 0x0E}},
		{"PADDD", []byte{0x66, 0x0F, 0xFE, 0xCA}},
		{"PCMPEQB", []byte{0x66, 0x0F, 0x74, 0xCA}},
		{"PMOVMSKB", []byte{0x66, 0x0F, 0xD7, 0xC1}},
		{"UCOMISD", []byte{0x66, 0x0F, 0x2E, 0xCA}},
		{"ADDSD", []byte{0xF2, 0x0F, 0x58, 0xCA}},
		{"CVTSI2SD", []byte{0xF2, 0x0F, 0x2A, 0xC8}},
		{"PADDBmmx", []byte{0x0F, 0xFC, 0xCA}},
		{"FADD", []byte{0xD8, 0xC1}},
		{"FLD80", []byte{0xDB, 0x2E}},
	} {
		b.Run(c.name, func(b *testing.B) {
			fn := compiled(b, decode.Mode64, c.code...)
			var s x86.FPU
			state(rand.New(rand.NewPCG(1, 1)), &s)
			s.FCW, s.MXCSR, s.FTW = fcwInit, mxcsrInit, 0xFF
			s.Vec[1][0], s.Vec[2][0] = 0x3FF0000000000000, 0x4000000000000000
			e := new(Env)
			b.ReportAllocs()
			for b.Loop() {
				fn(&s, e)
			}
		})
	}
}

func TestHotPathsAllocateNothing(t *testing.T) {
	var s x86.FPU
	Reset(&s)
	e := new(Env)
	for _, c := range [][]byte{{0x66, 0x0F, 0xFE, 0xCA}, {0xF2, 0x0F, 0x58, 0xCA}, {0x0F, 0xFC, 0xCA}, {0xD8, 0xC1}, {0x66, 0x0F, 0xEF, 0x0E},
		{0x66, 0x0F, 0x3A, 0x60, 0xCA, 0x0C}} {
		fn := compiled(t, decode.Mode64, c...)
		if n := testing.AllocsPerRun(100, func() { fn(&s, e) }); n != 0 {
			t.Errorf("% x allocates %v times", c, n)
		}
		s.MXCSR = 0
		if n := testing.AllocsPerRun(100, func() { fn(&s, e) }); n != 0 {
			t.Errorf("% x under unmasked exceptions allocates %v times", c, n)
		}
		s.MXCSR = mxcsrInit
	}
}
