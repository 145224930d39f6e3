package fpu

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

func compiled(t testing.TB, mode decode.Mode, code ...byte) Fn {
	t.Helper()
	in, err := decode.Decode(append(code, make([]byte, 15)...), mode, ^decode.Features(0))
	if err != nil {
		t.Fatalf("% x: %v", code, err)
	}
	fn, err := Compile(&in)
	if err != nil {
		t.Fatal(err)
	}
	return fn
}

// What processors do under unmasked SIMD exceptions, as a signal handler on Zen 5 saw it in MXCSR.
func TestUnmaskedSIMDExceptions(t *testing.T) {
	const (
		max   = 0x7FEFFFFFFFFFFFFF
		min   = 0x0010000000000000
		one   = 0x3FF0000000000000
		half  = 0x3FE0000000000000
		snan  = 0x7FF0000000000001
		mulsd = 0x59
		addsd = 0x58
		divsd = 0x5E
		cvt   = 0x5A // CVTSD2SS
	)
	for _, c := range []struct {
		name         string
		op           byte
		mxcsr        uint32
		a, b         uint64
		raised       bool
		mxcsrAfter   uint32
		resultIfNone uint64
	}{
		{"inexact overflow", mulsd, 0x1B80, max, max, true, 0x1BA8, 0},
		{"exact underflow", mulsd, 0x1780, min, half, true, 0x1790, 0},
		{"inexact underflow", mulsd, 0x1780, min | 1, half | 1, true, 0x17B0, 0},
		{"underflow past the smallest denormal", mulsd, 0x1780, min | 3, min | 5, true, 0x17B0, 0},
		{"precision only", mulsd, 0x0F80, min | 3, min | 5, true, 0x0FB0, 0},
		{"exact denormal sum of denormals", addsd, 0x1780, 3, 5, true, 0x1792, 0},
		{"underflow unmasked turns flush to zero off", mulsd, 0x9780, min, half, true, 0x9790, 0},
		{"flush to zero is inexact", mulsd, 0x8F80, min, half, true, 0x8FB0, 0},
		{"denormal by zero is a division by zero", divsd, 0x1D80, 3, 0, true, 0x1D84, 0},
		{"denormal operand hides precision", addsd, 0x1E80, 3, one, true, 0x1E82, 0},
		{"exact tiny single", cvt, 0x1780, 0, 0x37F0000000000000, true, 0x1790, 0},
		{"signalling NaN", addsd, 0x1F00, snan, one, true, 0x1F01, 0},
		{"nothing to report", addsd, 0x0000, one, one, false, 0x0000, 0x4000000000000000},
		{"masked flags are kept", divsd, 0x0D80, one, 0, true, 0x0D84, 0},
		{"a sticky flag reports nothing by itself", addsd, 0x1F01, one, one, false, 0x1F01, 0x4000000000000000},
	} {
		fn := compiled(t, decode.Mode64, 0xF2, 0x0F, c.op, 0xCA) // xmm1, xmm2
		s := x86.FPU{MXCSR: c.mxcsr}
		s.Vec[1] = x86.YMM{c.a, 7, 8, 9}
		s.Vec[2] = x86.YMM{c.b, 1, 2, 3}
		v := fn(&s, new(Env))
		if got := v == x86.XM; got != c.raised {
			t.Errorf("%s: #XM %v, want %v", c.name, got, c.raised)
		}
		if s.MXCSR != c.mxcsrAfter {
			t.Errorf("%s: MXCSR %04x, want %04x", c.name, s.MXCSR, c.mxcsrAfter)
		}
		want := c.a
		if !c.raised {
			want = c.resultIfNone
		}
		if w := (x86.YMM{want, 7, 8, 9}); s.Vec[1] != w {
			t.Errorf("%s: XMM1 %x, want %x", c.name, s.Vec[1], w)
		}
	}
}

func TestUnmaskedCompareLeavesFlags(t *testing.T) {
	fn := compiled(t, decode.Mode64, 0x66, 0x0F, 0x2F, 0xCA) // COMISD xmm1, xmm2
	s := x86.FPU{MXCSR: 0x1F00}
	s.Vec[1][0] = 0x7FF8000000000000
	e := &Env{RFLAGS: x86.Fixed | x86.SF | x86.CF}
	if v := fn(&s, e); v != x86.XM || e.RFLAGS != x86.Fixed|x86.SF|x86.CF || s.MXCSR != 0x1F01 {
		t.Errorf("raised %d, RFLAGS %#x, MXCSR %#x", v, e.RFLAGS, s.MXCSR)
	}
}

// An unmasked x87 exception is reported by the next waiting instruction, and by no other.
func TestX87ExceptionWaits(t *testing.T) {
	var s x86.FPU
	Reset(&s)
	s.FCW &^= 4 // division by zero
	e := &Env{RIP: 0x1234, MemAddr: 0x5678}
	run := func(code ...byte) x86.Vector { return compiled(t, decode.Mode64, code...)(&s, e) }
	run(0xD9, 0xE8)                              // FLD1
	clear(e.Mem[:])                              // +0
	if v := run(0xD8, 0x36); v != x86.NoVector { // FDIV m32
		t.Fatalf("FDIV raised %d", v)
	}
	if !Pending(&s) || s.FSW&(fswES|fswB|4) != fswES|fswB|4 {
		t.Fatalf("FSW %04x: nothing pends", s.FSW)
	}
	if s.FIP != 0x1234 || s.FDP != 0x5678 || s.FOP != 0x036&0x7FF {
		t.Errorf("FIP %#x FDP %#x FOP %#x", s.FIP, s.FDP, s.FOP)
	}
	if st0 := s.R[top(&s)]; st0 != (x86.F80{Mant: 1 << 63, SE: 0x3FFF}) {
		t.Errorf("ST0 %x changed", st0)
	}
	before := s
	for _, w := range [][]byte{{0x9B}, {0xD9, 0xE8}, {0xD9, 0xD0}, {0x0F, 0x77}, {0x0F, 0xFC, 0xC1}, {0x0F, 0x2A, 0xC1}, {0xD9, 0x2E}, {0x0F, 0x6E, 0xC0}} {
		if v := run(w...); v != x86.MF {
			t.Errorf("% x raised %d, want #MF", w, v)
		}
	}
	for _, n := range [][]byte{{0xD9, 0x3E}, {0xDF, 0xE0}, {0xDD, 0x3E}, {0x0F, 0x2A, 0x06}, {0x0F, 0xAE, 0x06}, {0x0F, 0x58, 0xC1}} {
		if v := run(n...); v != x86.NoVector {
			t.Errorf("% x raised %d, want nothing", n, v)
		}
	}
	s.Vec, before.Vec = [16]x86.YMM{}, [16]x86.YMM{}
	if s.MXCSR = before.MXCSR; s != before {
		t.Errorf("state changed: %x, was %x", s, before)
	}
	run(0xDB, 0xE2) // FNCLEX
	if v := run(0x9B); v != x86.NoVector {
		t.Errorf("FWAIT after FNCLEX raised %d", v)
	}
}

// A store that an unmasked exception prevents must not reach memory; one that is merely inexact must.
func TestUnmaskedStore(t *testing.T) {
	for _, c := range []struct {
		name    string
		fcw     uint16
		value   x86.F80
		noStore bool
	}{
		{"overflow", fcwInit &^ 8, x86.F80{Mant: 1 << 63, SE: 0x7000}, true},
		{"underflow", fcwInit &^ 16, x86.F80{Mant: 1 << 63, SE: 0x1000}, true},
		{"signalling NaN", fcwInit &^ 1, x86.F80{Mant: 1<<63 | 1, SE: 0x7FFF}, true},
		{"inexact", fcwInit &^ 32, x86.F80{Mant: 1<<63 | 1, SE: 0x3FFF}, false},
		{"masked", fcwInit, x86.F80{Mant: 1 << 63, SE: 0x7000}, false},
	} {
		var s x86.FPU
		Reset(&s)
		s.FCW, s.FTW, s.R[0] = c.fcw, 1, c.value
		e := new(Env)
		compiled(t, decode.Mode64, 0xDD, 0x1E)(&s, e) // FSTP m64
		if e.NoStore != c.noStore {
			t.Errorf("%s: NoStore %v, want %v", c.name, e.NoStore, c.noStore)
		}
		if popped := s.FTW == 0; popped == c.noStore {
			t.Errorf("%s: popped %v", c.name, popped)
		}
	}
}

func TestFWAITAndEMMS(t *testing.T) {
	var s x86.FPU
	Reset(&s)
	s.FTW, s.FSW = 0xFF, 3<<11
	compiled(t, decode.Mode32, 0x0F, 0x77)(&s, new(Env))
	if s.FTW != 0 || top(&s) != 0 {
		t.Errorf("EMMS: FTW %02x, TOP %d", s.FTW, top(&s))
	}
	if v := compiled(t, decode.Mode32, 0x9B)(&s, new(Env)); v != x86.NoVector {
		t.Errorf("FWAIT raised %d", v)
	}
}

func TestMaskedMoveMerges(t *testing.T) {
	s := x86.FPU{}
	s.Vec[1] = x86.YMM{0x1111111111111111, 0x2222222222222222}
	s.Vec[2] = x86.YMM{0x80007F00000000FF, 0x00000000000000F0}
	e := new(Env)
	for i := range 16 {
		e.Mem[i] = 0xEE
	}
	compiled(t, decode.Mode64, 0x66, 0x0F, 0xF7, 0xCA)(&s, e)
	if a, b := le.Uint64(e.Mem[:]), le.Uint64(e.Mem[8:]); a != 0x11EEEEEEEEEEEE11 || b != 0xEEEEEEEEEEEEEE22 {
		t.Errorf("stored %x %x", a, b)
	}
}

func TestLDMXCSRRefusesReservedBits(t *testing.T) {
	s, e := x86.FPU{MXCSR: mxcsrInit}, new(Env)
	fn := compiled(t, decode.Mode64, 0x0F, 0xAE, 0x16)
	le.PutUint32(e.Mem[:], 0x11F80)
	if v := fn(&s, e); v != x86.GP || s.MXCSR != mxcsrInit {
		t.Errorf("raised %d, MXCSR %#x", v, s.MXCSR)
	}
	le.PutUint32(e.Mem[:], 0xFFFF)
	if v := fn(&s, e); v != x86.NoVector || s.MXCSR != 0xFFFF {
		t.Errorf("raised %d, MXCSR %#x", v, s.MXCSR)
	}
}

// The four layouts of the environment (SDM vol. 1 figures 8-9 to 8-12), each as the bytes that the figure shows.
func TestEnvironmentLayouts(t *testing.T) {
	for _, c := range []struct {
		name string
		code []byte // FNSTENV, FLDENV
		real bool
		want []byte
	}{
		{"32-bit protected", []byte{0xD9, 0x36}, false, []byte{
			0x7F, 3, 0xFF, 0xFF, 0, 0x38, 0xFF, 0xFF, 0xFF, 0x3F, 0xFF, 0xFF, 0x78, 0x56, 0x34, 0x12, 0, 0, 0xAB, 0x05, 0x21, 0x43, 0x65, 0x87, 0, 0, 0xFF, 0xFF}},
		{"16-bit protected", []byte{0x66, 0xD9, 0x36}, false, []byte{0x7F, 3, 0, 0x38, 0xFF, 0x3F, 0x78, 0x56, 0, 0, 0x21, 0x43, 0, 0}},
		{"32-bit real", []byte{0xD9, 0x36}, true, []byte{
			0x7F, 3, 0xFF, 0xFF, 0, 0x38, 0xFF, 0xFF, 0xFF, 0x3F, 0xFF, 0xFF, 0x78, 0x56, 0xFF, 0xFF, 0xAB, 0x45, 0x23, 0x01, 0x21, 0x43, 0xFF, 0xFF, 0, 0x50, 0x76, 0x08}},
		{"16-bit real", []byte{0x66, 0xD9, 0x36}, true, []byte{0x7F, 3, 0, 0x38, 0xFF, 0x3F, 0x78, 0x56, 0xAB, 0x45, 0x21, 0x43, 0, 0x50}},
	} {
		var s x86.FPU
		Reset(&s)
		s.FSW, s.FTW, s.R[7] = 7<<11, 0x80, x86.F80{Mant: 1 << 63, SE: 0x3FFF}
		s.FIP, s.FDP, s.FOP = 0x12345678, 0x87654321, 0x5AB
		was := s
		e := &Env{Real: c.real}
		if compiled(t, decode.Mode32, append(append([]byte(nil), c.code[:len(c.code)-1]...), 0x36)...)(&s, e); string(e.Mem[:len(c.want)]) != string(c.want) {
			t.Errorf("%s: stored\n% x, want\n% x", c.name, e.Mem[:len(c.want)], c.want)
		}
		load := append(append([]byte(nil), c.code[:len(c.code)-1]...), 0x26)
		s.FSW, s.FTW, s.FIP = 0, 0, 0
		compiled(t, decode.Mode32, load...)(&s, e)
		if s.FSW != was.FSW || s.FTW != was.FTW || s.FCW != was.FCW || uint16(s.FIP) != uint16(was.FIP) {
			t.Errorf("%s: loaded %x, want %x", c.name, s, was)
		}
	}
}

// testdata/simdexc.txt is what a processor (Zen 5) does under random masks, as its signal handler saw it; testdata/simdexc.c says how it was recorded.
func TestSIMDExceptionsAsRecorded(t *testing.T) {
	b, err := os.ReadFile("testdata/simdexc.txt")
	if err != nil {
		t.Fatal(err)
	}
	n, failed := 0, 0
	for line := range strings.Lines(string(b)) {
		var code []byte
		var mxcsr, after uint32
		var a, c, want [2]uint64
		var raised int
		if _, err := fmt.Sscanf(line, "%x %x %x %x %x %x %d %x %x %x", &code, &mxcsr, &a[1], &a[0], &c[1], &c[0], &raised, &after, &want[1], &want[0]); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		s := x86.FPU{MXCSR: mxcsr}
		s.Vec[1], s.Vec[2] = x86.YMM{a[0], a[1]}, x86.YMM{c[0], c[1]}
		v := compiled(t, decode.Mode64, code...)(&s, new(Env))
		if n++; v == x86.XM != (raised == 1) || s.MXCSR != after || [2]uint64(s.Vec[1][:2]) != want {
			if failed++; failed < 10 {
				t.Errorf("%s  raised %d, MXCSR %04x, XMM1 %x", line, v, s.MXCSR, s.Vec[1])
			}
		}
	}
	if n < 1000 || failed > 0 {
		t.Errorf("%d of %d lines fail", failed, n)
	}
}
