package fpu

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// What a guest writes into the stub page is bounded: every encoding with every immediate fits, with room to spare.
func TestAllEncodingsFitTheCodePage(t *testing.T) {
	if err := Ready(); err != nil {
		t.Fatal(err)
	}
	forms(t, func(code []byte, in *decode.Inst) {
		n := 1
		if hasImmediate(in) {
			n = 256
		}
		for i := range n {
			one := *in
			if n > 1 {
				one.Imm = int64(i)
			}
			if _, err := Compile(&one); err != nil && !errors.Is(err, ErrUnknown) {
				t.Fatalf("%v: %v", in.Op, err)
			}
		}
	})
	code.Lock()
	defer code.Unlock()
	t.Logf("%d stubs, %d bytes of %d", len(code.stubs), code.used, codeSize)
	if code.used > codeSize*3/4 {
		t.Errorf("%d bytes of stubs: the page has %d", code.used, codeSize)
	}
}

func TestCodeIsNeverWritableAndExecutable(t *testing.T) {
	if err := Ready(); err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var modes []string
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "vitrine-fpu") {
			modes = append(modes, strings.Fields(line)[1])
		}
	}
	if got := strings.Join(modes, " "); got != "rw-s r-xs" && got != "r-xs rw-s" {
		t.Errorf("code is mapped %q", got)
	}
}

// Without a feature of the host its instructions are unknown.
func TestMissingHostFeature(t *testing.T) {
	was := host
	defer func() { host = was }()
	host = 0
	in, err := decode.Decode([]byte{0x66, 0x0F, 0x38, 0xDC, 0xCA}, decode.Mode64, ^decode.Features(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(&in); !errors.Is(err, ErrUnknown) {
		t.Errorf("AESENC: %v, want ErrUnknown", err)
	}
}

// Processors in parallel, with the collector stopping them all the time, each under control words of its own.
func TestProcessorsInParallel(t *testing.T) {
	add := compiled(t, decode.Mode64, 0xF2, 0x0F, 0x58, 0xCA)   // ADDSD xmm1, xmm2
	fadd := compiled(t, decode.Mode64, 0xD8, 0xC1)              // FADD ST, ST1
	paddb := compiled(t, decode.Mode64, 0x66, 0x0F, 0xFC, 0xD9) // PADDB xmm3, xmm1
	run := func(seed uint64, n int) x86.FPU {
		var s x86.FPU
		r := rand.New(rand.NewPCG(seed, 1))
		state(r, &s)
		s.FTW, s.MXCSR, s.FCW = 0xFF, mxcsrInit|uint32(seed&3)<<13, fcwInit|uint16(seed&3)<<10
		s.Vec[1][0], s.Vec[2][0] = 0x3FF0000000000000, 0x3CB0000000000001+seed
		s.R = [8]x86.F80{}
		s.R[top(&s)], s.R[(top(&s)+1)&7] = x86.F80{Mant: 1 << 63, SE: 0x3FFF}, x86.F80{Mant: 1<<63 | 1, SE: 0x3FC1}
		e := new(Env)
		for range n {
			add(&s, e)
			fadd(&s, e)
			paddb(&s, e)
		}
		return s
	}
	const n = 20000
	var want, got [8]x86.FPU
	for i := range want {
		want[i] = run(uint64(i), n)
	}
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = run(uint64(i), n) })
	}
	wg.Go(func() {
		for range 20 {
			runtime.GC()
		}
	})
	wg.Wait()
	if got != want {
		t.Error("results differ from those of one processor at a time")
	}
}

// vexFeatures are those for whose instructions Compile relies on the decoder.
const vexFeatures = decode.FeatureAVX | decode.FeatureAVX2 | decode.FeatureFMA | decode.FeatureF16C | decode.FeatureVAES | decode.FeatureVPCLMUL

// FuzzCompile: whatever bytes a guest executes, in any mode and any state, the host neither faults nor panics.
func FuzzCompile(f *testing.F) {
	f.Add([]byte{0xF2, 0x0F, 0x58, 0xCA}, uint8(8), uint64(1))
	f.Add([]byte{0xD8, 0xC1}, uint8(4), uint64(2))
	f.Add([]byte{0x66, 0x0F, 0x3A, 0x60, 0xCA, 0x0C}, uint8(2), uint64(3))
	f.Add([]byte{0x0F, 0xAE, 0x2E}, uint8(8), uint64(4))
	f.Add([]byte{0xC4, 0xE2, 0x6D, 0xB6, 0xCA}, uint8(2), uint64(5))
	f.Add([]byte{0xC4, 0xE3, 0x7D, 0x1D, 0x0E, 0x04}, uint8(2), uint64(6))
	f.Fuzz(func(t *testing.T, b []byte, mode uint8, seed uint64) {
		m := []decode.Mode{decode.Mode16, decode.Mode32, decode.Mode64}[mode%3]
		in, err := decode.Decode(b, m, host|^vexFeatures)
		if err != nil || in.Flags&decode.Vec == 0 || Masked(&in) {
			return
		}
		fn, err := Compile(&in)
		if err != nil {
			t.Fatalf("%v (% x): %v", in.Op, b[:in.Len], err)
		}
		r := rand.New(rand.NewPCG(seed, seed))
		var s x86.FPU
		e := &Env{XCR0: r.Uint64(), RAX: r.Uint64(), RDX: r.Uint64(), RFLAGS: r.Uint64(), GPR: r.Uint64()}
		for range 8 {
			state(r, &s)
			s.MXCSR, s.FSW, s.FCW = r.Uint32()&MXCSRMask, uint16(r.Uint32()), uint16(r.Uint32())
			for i := range e.Mem {
				e.Mem[i] = byte(r.Uint32())
			}
			if v := fn(&s, e); v != x86.NoVector && v != x86.MF && v != x86.XM && v != x86.GP {
				t.Fatalf("%v raised %d", in.Op, v)
			}
		}
	})
}
