package decode_test

import (
	"testing"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// FuzzDecode holds what any bytes must keep: no panic, a length of 1 to 15 inside the bytes, the same answer twice and with
// other bytes behind, ErrShort for every part of an instruction, a text that can be printed.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x48, 0x8B, 0x44, 0x24, 0x10}, uint8(2), uint64(0))
	f.Add([]byte{0xF2, 0x66, 0x0F, 0x38, 0xF1, 0xC0}, uint8(1), ^uint64(0))
	f.Add([]byte{0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}, uint8(0), uint64(0))
	f.Fuzz(func(t *testing.T, code []byte, m uint8, features uint64) {
		mode := []decode.Mode{decode.Mode16, decode.Mode32, decode.Mode64}[m%3]
		fs := decode.Features(features)
		in, err := decode.Decode(code, mode, fs)
		if err != nil {
			if err == decode.ErrShort && len(code) >= decode.MaxLen {
				t.Fatalf("% x: ErrShort for %d bytes", code, len(code))
			}
			return
		}
		if in.Len == 0 || int(in.Len) > min(len(code), decode.MaxLen) || int(in.NArgs) > len(in.Args) || in.Op == 0 || in.Op >= decode.NumOps {
			t.Fatalf("% x: %+v", code, in)
		}
		own := code[:in.Len:in.Len]
		if again, err := decode.Decode(own, mode, fs); err != nil || again != in {
			t.Fatalf("% x: %+v, alone %+v, %v", code, in, again, err)
		}
		for i := range own {
			if _, err := decode.Decode(own[:i], mode, fs); err != decode.ErrShort {
				t.Fatalf("% x of % x: %v, want ErrShort", own[:i], own, err)
			}
		}
		if in.String() == "" {
			t.Fatal("no text")
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct {
		name string
		code []byte
	}{
		{"ALU", []byte{0x48, 0x01, 0xD8}},
		{"SIB", []byte{0x48, 0x8B, 0x44, 0x24, 0x10}},
		{"SSE", []byte{0x66, 0x0F, 0xEF, 0xC1}},
		{"JCC", []byte{0x0F, 0x84, 0, 1, 0, 0}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode.Decode(c.code, decode.Mode64, decode.AllFeatures); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
