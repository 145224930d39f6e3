package fpu

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/model"
)

// Any image that FXRSTOR accepts leaves the registers that the processor has after it.
func TestFXRSTORAsTheProcessor(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	load, save := compiled(t, decode.Mode64, 0x48, 0x0F, 0xAE, 0x0E), compiled(t, decode.Mode64, 0x48, 0x0F, 0xAE, 0x06)
	var o oracle
	e := new(Env)
	var s x86.FPU
	for range 2000 {
		p := o.area()
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		le.PutUint32(p[24:], r.Uint32()&0xFFFF)
		copy(e.Mem[:], p[:])
		in := *p
		if v := load(&s, e); v != x86.NoVector {
			t.Fatalf("FXRSTOR raised %d", v)
		}
		clear(e.Mem[:])
		save(&s, e)
		for i := range o.ymm() {
			o.ymm()[i] = x86.YMM{le.Uint64(in[160+16*i:]), le.Uint64(in[168+16*i:])}
		}
		o.run(t, nil, &regs{}, 0)
		want := *o.area()
		for _, m := range [][]byte{e.Mem[:512], want[:]} {
			clear(m[6:24])
			clear(m[28:32])
			clear(m[416:])
		}
		if !bytes.Equal(e.Mem[:512], want[:]) {
			t.Fatalf("loaded % x\nstored % x\nthe processor's % x", in[:64], e.Mem[:64], want[:64])
		}
	}
}

// hostXSAVE says whether the oracle can run XSAVE, and an extension by its flag.
func hostXSAVE(t *testing.T, flag string) {
	t.Helper()
	if !model.Host().Has(flag) {
		t.Skip("the host has no " + flag)
	}
}

// components is how many states the oracle has: x87, SSE and, where the host has it, AVX.
func components() int {
	if model.Host().Has("avx") {
		return 3
	}
	return 2
}

func initYMM(s *x86.FPU) {
	for i := range s.Vec {
		s.Vec[i][2], s.Vec[i][3] = 0, 0
	}
}

// XSAVE, XSAVEC and XRSTOR of x87, SSE and AVX, bit for bit beside the host's.
func TestXSAVEAsTheProcessor(t *testing.T) {
	for _, c := range []struct {
		name string
		code []byte
		need string
	}{
		{"XSAVE", []byte{0x0F, 0xAE, 0x26}, "xsave"},
		{"XSAVEC", []byte{0x0F, 0xC7, 0x26}, "xsavec"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hostXSAVE(t, c.need)
			r := rand.New(rand.NewPCG(5, 6))
			fn := compiled(t, decode.Mode64, c.code...)
			var o oracle
			e := &Env{XCR0: 7}
			var s x86.FPU
			for range 2000 {
				state(r, &s)
				s.FCW |= flagsX87
				initial := r.IntN(16)
				if initial&1 != 0 {
					initX87(&s)
				}
				if initial&2 != 0 {
					initXMM(&s, 16)
				}
				if initial&4 != 0 || components() < 3 {
					initYMM(&s)
				}
				o.load(&s)
				for i := range e.Mem {
					e.Mem[i] = byte(r.Uint32())
				}
				copy(o.operand()[:], e.Mem[:])
				mask := uint64(r.IntN(1 << components()))
				e.RAX, e.RDX = mask, 0
				fn(&s, e)
				o.run(t, c.code, &regs{ax: mask}, 0)
				got, want := e.Mem, *o.operand()
				for _, m := range [][]byte{got[:], want[:]} {
					clear(m[6:24])
					clear(m[28:32])
				}
				// A processor may call a component in use that is in its initial state; then it also writes it.
				bv, theirs := le.Uint64(got[512:])&mask, le.Uint64(want[512:])&mask
				if bv&^theirs != 0 {
					t.Fatalf("mask %d: XSTATE_BV %#x, the processor's %#x", mask, bv, theirs)
				}
				if bv == theirs && got != want {
					for i := range got {
						if got[i] != want[i] {
							t.Fatalf("mask %d: byte %d: %02x, the processor's %02x", mask, i, got[i], want[i])
						}
					}
				}
			}
		})
	}
}

func TestXRSTORAsTheProcessor(t *testing.T) {
	hostXSAVE(t, "xsavec")
	r := rand.New(rand.NewPCG(7, 8))
	code := []byte{0x0F, 0xAE, 0x2E}
	fn := compiled(t, decode.Mode64, code...)
	var o oracle
	e := &Env{XCR0: 7}
	var s, from x86.FPU
	all := 1 << components()
	for i := range 4000 {
		state(r, &s)
		s.FCW |= flagsX87
		state(r, &from)
		from.FCW |= flagsX87
		o.load(&s)
		img := (*[512]byte)(e.Mem[:])
		put(img, &from)
		clear(e.Mem[512:576])
		for i := range from.Vec {
			le.PutUint64(e.Mem[576+16*i:], from.Vec[i][2])
			le.PutUint64(e.Mem[584+16*i:], from.Vec[i][3])
		}
		bv, mask := uint64(r.IntN(all)), uint64(r.IntN(all))
		le.PutUint64(e.Mem[512:], bv)
		if i&1 == 1 {
			le.PutUint64(e.Mem[520:], bv|uint64(r.IntN(all))|compact)
		}
		copy(o.operand()[:], e.Mem[:])
		e.RAX = mask
		header := le.Uint64(e.Mem[520:])
		if v := fn(&s, e); v != x86.NoVector {
			t.Fatalf("XSTATE_BV %#x XCOMP_BV %#x raised %d", bv, header, v)
		}
		o.run(t, code, &regs{ax: mask}, 0)
		var got [512]byte
		put(&got, &s)
		want := *o.area()
		clear(want[6:24])
		clear(want[28:32])
		clear(want[416:])
		if got != want {
			t.Fatalf("XSTATE_BV %#x XCOMP_BV %#x mask %d:\n% x, the processor's\n% x", bv, header, mask, got[:176], want[:176])
		}
		if all == 8 && s.Vec != *o.ymm() {
			t.Fatalf("XSTATE_BV %#x XCOMP_BV %#x mask %d:\n%x, the processor's\n%x", bv, header, mask, s.Vec, *o.ymm())
		}
	}
}

func TestXRSTORRefuses(t *testing.T) {
	fn := compiled(t, decode.Mode64, 0x0F, 0xAE, 0x2E)
	for _, c := range []struct {
		name          string
		xstate, xcomp uint64
		at            int // a byte of the header set to one
		mxcsr         uint32
	}{
		{"a component beyond XCR0", 4, 0, 0, mxcsrInit},
		{"XCOMP_BV in standard format", 1, 1, 0, mxcsrInit},
		{"reserved bytes in standard format", 1, 0, 528, mxcsrInit},
		{"a component that XCOMP_BV lacks", 3, 1 | compact, 0, mxcsrInit},
		{"XCOMP_BV beyond XCR0", 1, 9 | compact, 0, mxcsrInit},
		{"reserved bytes in compacted format", 1, 3 | compact, 575, mxcsrInit},
		{"reserved bits of MXCSR", 2, 0, 0, 1 << 16},
	} {
		e := &Env{XCR0: 3, RAX: 7}
		le.PutUint64(e.Mem[512:], c.xstate)
		le.PutUint64(e.Mem[520:], c.xcomp)
		if c.at != 0 {
			e.Mem[c.at] = 1
		}
		le.PutUint32(e.Mem[24:], c.mxcsr)
		var s x86.FPU
		Reset(&s)
		before := s
		if v := fn(&s, e); v != x86.GP || s != before {
			t.Errorf("%s: raised %d, changed %v", c.name, v, s != before)
		}
	}
}

// Outside of 64-bit mode XMM8 to XMM15 are neither saved nor restored.
func TestFXSAVEOutsideOf64BitMode(t *testing.T) {
	var s x86.FPU
	Reset(&s)
	for i := range s.Vec {
		s.Vec[i] = x86.YMM{uint64(i), uint64(i)}
	}
	e := new(Env)
	for i := range e.Mem {
		e.Mem[i] = 0xAA
	}
	compiled(t, decode.Mode32, 0x0F, 0xAE, 0x06)(&s, e)
	if le.Uint64(e.Mem[160+16*7:]) != 7 || e.Mem[160+16*8] != 0xAA || e.Mem[511] != 0xAA {
		t.Errorf("FXSAVE stored % x", e.Mem[160:512])
	}
	for i := range s.Vec {
		s.Vec[i][0] = 99
	}
	compiled(t, decode.Mode32, 0x0F, 0xAE, 0x0E)(&s, e)
	if s.Vec[7][0] != 7 || s.Vec[8][0] != 99 {
		t.Errorf("FXRSTOR: XMM7 %d, XMM8 %d", s.Vec[7][0], s.Vec[8][0])
	}
}

func TestImageRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 100 {
		var s, back x86.FPU
		state(r, &s)
		s.FIP, s.FDP, s.FOP = r.Uint64(), r.Uint64(), 0x123
		for i := range s.Vec {
			s.Vec[i][2], s.Vec[i][3] = r.Uint64(), r.Uint64()
		}
		img := AppendImage(nil, &s, SupportedXCR0)
		if len(img) != 832 {
			t.Fatalf("image of %d bytes, want 832", len(img))
		}
		if err := LoadImage(&back, img); err != nil || back != s {
			t.Fatalf("%v: loaded %x, want %x", err, back, s)
		}
	}
}

// FuzzImages: whatever a guest or a snapshot has for an image, loading it neither panics nor makes the host fault afterwards.
func FuzzImages(f *testing.F) {
	f.Add(make([]byte, MemSize), uint64(7), uint64(3))
	f.Add(bytes.Repeat([]byte{0xFF}, MemSize), uint64(3), uint64(7))
	var loads, uses []Fn
	for _, c := range [][]byte{{0x0F, 0xAE, 0x0E}, {0x0F, 0xAE, 0x2E}, {0x0F, 0xC7, 0x1E}, {0xDD, 0x26}, {0x66, 0xDD, 0x26}, {0xD9, 0x26}, {0xD9, 0x2E}} {
		loads = append(loads, compiled(f, decode.Mode64, c...))
	}
	for _, c := range [][]byte{{0xD8, 0xC1}, {0xDE, 0xC9}, {0xDF, 0x36}, {0xD9, 0xFE}, {0x0F, 0xFC, 0xCA}, {0xF2, 0x0F, 0x5E, 0xCA}, {0x0F, 0x2D, 0xC1},
		{0x0F, 0xAE, 0x06}, {0x0F, 0xAE, 0x26}, {0x0F, 0xC7, 0x26}, {0xDD, 0x36}} {
		uses = append(uses, compiled(f, decode.Mode64, c...))
	}
	f.Fuzz(func(t *testing.T, img []byte, xcr0, mask uint64) {
		for _, load := range loads {
			var s x86.FPU
			Reset(&s)
			e := &Env{XCR0: xcr0, RAX: mask}
			copy(e.Mem[:], img)
			load(&s, e)
			if es := s.FSW&fswES != 0; es != Pending(&s) || s.MXCSR&^MXCSRMask != 0 {
				t.Fatalf("FCW %04x FSW %04x MXCSR %x", s.FCW, s.FSW, s.MXCSR)
			}
			for _, use := range uses {
				use(&s, e)
			}
		}
		var s x86.FPU
		if LoadImage(&s, img) == nil {
			var again x86.FPU
			if err := LoadImage(&again, AppendImage(nil, &s, SupportedXCR0)); err != nil || again != s {
				t.Fatalf("%v: %x, want %x", err, again, s)
			}
		}
	})
}
