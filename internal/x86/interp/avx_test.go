package interp

import (
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/model"
)

// needAVX ends a test on a host whose processor has no AVX2, which the engine then does not offer.
func needAVX(t *testing.T) {
	t.Helper()
	if !model.Engine().Has("avx2") {
		t.Skip("this host's processor has no AVX2")
	}
}

// avxOn is what a kernel does before programs may use AVX.
func avxOn(c *CPU) { c.cr4, c.xcr0 = c.cr4|x86.CR4OSXSAVE|x86.CR4OSFXSR, 7 }

func TestAVXFaultsAsTheSDMSays(t *testing.T) {
	needAVX(t)
	for _, g := range []struct {
		name   string
		code   string
		prep   func(c *CPU)
		vector int
		rip    uint64
	}{
		{"enabled", "c5f458c2cd80", avxOn, 0x80, 6},
		{"without CR4.OSXSAVE", "c5f458c2cd80", func(c *CPU) { avxOn(c); c.cr4 &^= x86.CR4OSXSAVE }, 6, 0},
		{"without AVX in XCR0", "c5f458c2cd80", func(c *CPU) { avxOn(c); c.xcr0 = 3 }, 6, 0},
		{"with CR0.TS", "c5f458c2cd80", func(c *CPU) { avxOn(c); c.cr0 |= x86.CR0TS }, 7, 0},
		{"#UD goes before #NM", "c5f458c2cd80", func(c *CPU) { c.cr0 |= x86.CR0TS }, 6, 0},
		{"CR0.EM is nothing to it", "c5f458c2cd80", func(c *CPU) { avxOn(c); c.cr0 |= x86.CR0EM }, 0x80, 6},
		{"CR4.OSFXSR neither", "c5f458c2cd80", func(c *CPU) { avxOn(c); c.cr4 &^= x86.CR4OSFXSR }, 0x80, 6},
		{"BMI needs none of them", "c4e278f2c1cd80", func(c *CPU) { c.cr0 |= x86.CR0TS }, 0x80, 7},
		{"LOCK", "f0c5f45800cd80", avxOn, 6, 0},
		{"VMOVAPS of 32 bytes at 16", "b810004800c5fc2800cd80", avxOn, 13, 5},
		{"VMOVAPS of 16 bytes at 16", "b810004800c5f82800cd80", avxOn, 0x80, 11},
		{"VMOVDQA stores of 32 bytes at 16", "b810004800c5fd7f00cd80", avxOn, 13, 5},
		{"VADDPS anywhere", "b801004800c5fc5800cd80", avxOn, 0x80, 11},
		{"XSETBV of AVX without SSE", "31c931d2b8050000000f01d1", avxOn, 13, 9},
	} {
		t.Run(g.name, func(t *testing.T) {
			user := g.name != "XSETBV of AVX without SSE"
			c := guest(t, user, g.code)
			if g.prep != nil {
				g.prep(c)
				c.refresh()
			}
			start := uint64(flatCode)
			if user {
				start = userCode
			}
			if got := endure(t, c, start); got.vector != g.vector || got.rip != g.rip {
				t.Errorf("vector %d, RIP +%#x; want %d, +%#x", got.vector, got.rip, g.vector, g.rip)
			}
		})
	}
}

func TestUnmaskedAVXExceptionIsXMOrUD(t *testing.T) {
	needAVX(t)
	for _, g := range []struct {
		cr4    uint64
		vector int
	}{{x86.CR4OSXMMEXCPT, 19}, {0, 6}} {
		c := guest(t, true, "c5f35ec2cd80") // VDIVSD XMM0, XMM1, XMM2: 0/0
		avxOn(c)
		c.cr4 = c.cr4&^x86.CR4OSXMMEXCPT | g.cr4
		c.fpu.MXCSR = 0x1F80 &^ 0x80
		before := c.fpu
		c.refresh()
		if got := endure(t, c, userCode); got.vector != g.vector || got.rip != 0 {
			t.Errorf("CR4 %#x: vector %d at +%#x, want %d at 0", g.cr4, got.vector, got.rip, g.vector)
		}
		before.MXCSR |= 1
		if c.fpu != before {
			t.Error("the faulting instruction changed more than MXCSR.IE")
		}
	}
}

// TestVEXIsUndefinedInRealMode: AVX and BMI alike (SDM vol. 2A 2.3.2).
func TestVEXIsUndefinedInRealMode(t *testing.T) {
	needAVX(t)
	for name, code := range map[string][]byte{"VADDPS": {0xC5, 0xF4, 0x58, 0xC2}, "ANDN": {0xC4, 0xE2, 0x78, 0xF2, 0xC1}} {
		ram, err := mem.New(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer ram.Close()
		c := NewVM(ram).NewCPU(0, &noIO{})
		c.seg[x86.CS].Selector, c.seg[x86.CS].Base = 0, 0
		c.rip, c.gpr[x86.RSP] = 0x7000, 0x7000
		avxOn(c)
		c.refresh()
		ram.WriteAt(append(code, 0xF4), 0x7000)
		ram.WriteAt([]byte{0x00, 0x60, 0, 0}, 6*4)
		ram.WriteAt([]byte{0xF4}, 0x6000)
		if exit := c.Run(); exit != hv.Halted || c.rip != 0x6001 {
			t.Errorf("%s: exit %v at %#x, want #UD's handler to halt at 0x6001", name, exit, c.rip)
		}
	}
}

// TestUpperHalves: what legacy SSE keeps, VEX clears.
func TestUpperHalves(t *testing.T) {
	needAVX(t)
	all := func() (v [16]x86.YMM) {
		for i := range v {
			v[i] = x86.YMM{uint64(i), 2, 3, 4}
		}
		return v
	}
	for _, g := range []struct {
		name, code string
		reg        int
		want       x86.YMM
	}{
		{"MOVAPS XMM0, XMM1", "0f28c1", 0, x86.YMM{1, 2, 3, 4}},
		{"VMOVAPS XMM0, XMM1", "c5f828c1", 0, x86.YMM{1, 2, 0, 0}},
		{"VMOVAPS YMM0, YMM1", "c5fc28c1", 0, x86.YMM{1, 2, 3, 4}},
		{"MOVUPS XMM0, [userStack]", "0f10042500004800", 0, x86.YMM{0, 0, 3, 4}},
		{"VMOVUPS XMM0, [userStack]", "c5f810042500004800", 0, x86.YMM{}},
		{"PXOR XMM1, XMM1", "660fefc9", 1, x86.YMM{0, 0, 3, 4}},
		{"VPXOR XMM1, XMM1, XMM2", "c5f1efca", 1, x86.YMM{3, 0, 0, 0}},
		{"VPXOR YMM1, YMM1, YMM2", "c5f5efca", 1, x86.YMM{3, 0, 0, 0}},
		{"VMOVQ XMM0, XMM1", "c5fa7ec1", 0, x86.YMM{1, 0, 0, 0}},
		{"VMOVSD XMM0, XMM2, XMM1", "c5eb10c1", 0, x86.YMM{1, 2, 0, 0}},
		{"VZEROUPPER", "c5f877", 15, x86.YMM{15, 2, 0, 0}},
		{"VZEROALL", "c5fc77", 15, x86.YMM{}},
		{"VMASKMOVPS XMM0, XMM1, [0]", "c4e2712c042500000000", 0, x86.YMM{}}, // no element chosen: no access
	} {
		c := guest(t, true, g.code+"cd80")
		avxOn(c)
		c.fpu.Vec = all()
		c.refresh()
		if got := endure(t, c, userCode); got.vector != 0x80 || c.fpu.Vec[g.reg] != g.want {
			t.Errorf("%s: vector %d, register %d is %x, want %x", g.name, got.vector, g.reg, c.fpu.Vec[g.reg], g.want)
		}
	}
}

// TestGatherGoesOnWhereItFaulted: elements before the fault are done and their masks clear; when the page is there, the rest follows.
func TestGatherGoesOnWhereItFaulted(t *testing.T) {
	needAVX(t)
	c := guest(t, true, "c4e26d900c85fc0f4800cd80") // VPGATHERDD YMM1, [YMM0*4+userStack+0xFFC], YMM2
	avxOn(c)
	c.ram.Store64(userStack+0xFF8, 0x2222222211111111)
	c.ram.Store64(userStack+0x1000, 0x4444444433333333)
	c.fpu.Vec[0] = x86.YMM{0xFFFFFFFF_00000000, 0x00000001_00000002, 0, 0} // indices 0, -1, 2, 1, 0 …
	c.fpu.Vec[1] = x86.YMM{9, 9, 9, 9}
	c.fpu.Vec[2] = x86.YMM{^uint64(0), ^uint64(0), ^uint64(0), 0}
	pte := mem.Addr(0x10000 + userStack>>21<<12 + (userStack>>12+1)&511*8)
	was := c.ram.Load64(pte)
	c.ram.Store64(pte, 0)
	c.refresh()
	if got := endure(t, c, userCode); got.vector != 14 || got.rip != 0 || c.cr2 != userStack+0x1004 {
		t.Fatalf("vector %d at +%#x, CR2 %#x; want a page fault at %#x", got.vector, got.rip, c.cr2, userStack+0x1004)
	}
	if d, m := c.fpu.Vec[1], c.fpu.Vec[2]; d != (x86.YMM{0x11111111_22222222, 9, 9, 9}) || m != (x86.YMM{0, ^uint64(0), ^uint64(0), 0}) {
		t.Errorf("after the fault: destination %x, mask %x", d, m)
	}
	c.ram.Store64(pte, was)
	fpu := c.fpu
	c = guest(t, true, "c4e26d900c85fc0f4800cd80")
	avxOn(c)
	c.ram.Store64(userStack+0xFF8, 0x2222222211111111)
	c.ram.Store64(userStack+0x1000, 0x4444444433333333)
	c.fpu = fpu
	c.refresh()
	if got := endure(t, c, userCode); got.vector != 0x80 {
		t.Fatalf("vector %d, want the end", got.vector)
	}
	want := x86.YMM{0x11111111_22222222, 0x33333333_44444444, 0x22222222_22222222, 9}
	if c.fpu.Vec[1] != want || c.fpu.Vec[2] != (x86.YMM{}) {
		t.Errorf("destination %x, mask %x; want %x and zero", c.fpu.Vec[1], c.fpu.Vec[2], want)
	}
}

// TestCPUIDIsTheModels: leaves without parts ignore ECX, AVX's place in the XSAVE area is there only with AVX, and CR4 and XCR0 follow.
func TestCPUIDIsTheModels(t *testing.T) {
	ram, err := mem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	for _, spec := range []string{"max", "x86-64-v2", "x86-64-v2,+xsave"} {
		vm := NewVM(ram)
		s, err := model.Parse(spec, model.Engine(), "the engine")
		if err != nil {
			t.Fatal(err)
		}
		vm.SetModel(s)
		c := vm.NewCPU(0, &noIO{})
		for _, leaf := range []uint32{1, 0x80000001} {
			a0, b0, c0, d0 := c.cpuid(leaf, 0)
			if a, b, cx, d := c.cpuid(leaf, 7); a != a0 || b != b0 || cx != c0 || d != d0 {
				t.Errorf("%s: leaf %#x with ECX 7 is %x %x %x %x, with 0 %x %x %x %x", spec, leaf, a, b, cx, d, a0, b0, c0, d0)
			}
		}
		bits, _, size, _ := c.cpuid(0xD, 0)
		ymm, at, _, _ := c.cpuid(0xD, 2)
		switch {
		case !s.Has("xsave"):
			if bits != 0 || size != 0 {
				t.Errorf("%s: XCR0 %#x, %d bytes without XSAVE", spec, bits, size)
			}
			if st := stateWith(t, c, x86.CR4OSXSAVE, 1); st == nil {
				t.Errorf("%s: CR4.OSXSAVE was taken", spec)
			}
		case s.Has("avx"):
			if bits != 7 || size != 832 || ymm != 256 || at != 576 {
				t.Errorf("%s: XCR0 %#x, %d bytes, AVX %d bytes at %d; want 0x7, 832, 256, 576", spec, bits, size, ymm, at)
			}
		default:
			if bits != 3 || size != 576 || ymm != 0 {
				t.Errorf("%s: XCR0 %#x, %d bytes, AVX %d; want 0x3, 576, 0", spec, bits, size, ymm)
			}
			if st := stateWith(t, c, x86.CR4OSXSAVE, 7); st == nil {
				t.Errorf("%s: XCR0 with AVX was taken", spec)
			}
		}
	}
}

// stateWith tries to give c a state with more in CR4, and that XCR0.
func stateWith(t *testing.T, c *CPU, cr4, xcr0 uint64) error {
	t.Helper()
	var s x86.State
	if err := c.State(&s); err != nil {
		t.Fatal(err)
	}
	s.CR4 |= cr4
	s.XCR0 = xcr0
	return c.SetState(&s)
}
