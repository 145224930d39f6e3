package interp

import (
	"encoding/hex"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Where guest puts its tables.
const (
	testGDT   = 0x8000
	testIDT   = 0x9000
	testTSS   = 0xA000
	testStubs = 0x180000 // a HLT for each vector, 16 bytes apart
	testRSP0  = 0x1E0000
	testIST1  = 0x1D0000
	userCode  = 0x400000 // pages that CPL 3 may use, up to userEnd
	userStack = 0x480000
	userEnd   = 0x500000
	testData  = 0x300000
)

// Selectors of guest's GDT.
const (
	selCode    = 0x08
	selData    = 0x10
	selCode32  = 0x18
	selUser32  = 0x20
	selUserSS  = 0x28
	selUser    = 0x30
	selTSS     = 0x38
	selAbsent  = 0x48 // a data segment that is not present
	selConform = 0x50 // conforming code of CPL 0
	selGate    = 0x60 // a call gate for all to selCode:testStubs
	gdtLimit   = 0x6F
)

// guest makes a CPU in 64-bit mode with descriptor tables, handlers that halt, and pages for CPL 3; code begins at CPL 0, or at CPL 3 if user is true.
func guest(t *testing.T, user bool, code string) *CPU {
	t.Helper()
	b, err := hex.DecodeString(code)
	if err != nil {
		t.Fatal(err)
	}
	c := flat(t, b)
	r := c.ram
	for i, d := range [...]uint64{
		0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF,
		testTSS<<16 | 0x00008B0000000000 | 0x88, 0, 0x00CF13000000FFFF, 0x00AF9F000000FFFF, 0,
		testStubs&0xFFFF | selCode<<16 | 0xEC<<40 | testStubs>>16<<48, 0,
	} {
		r.Store64(mem.Addr(testGDT+8*i), d)
	}
	for v := range uint64(256) {
		h := uint64(testStubs + 16*v)
		dpl := uint64(0)
		if v == 3 || v == 4 || v == 0x80 {
			dpl = 3
		}
		r.Store64(mem.Addr(testIDT+16*v), h&0xFFFF|selCode<<16|(0x8E|dpl<<5)<<40|h>>16<<48)
		r.WriteAt([]byte{0xF4}, mem.Addr(h))
	}
	put := func(off int, v uint64) {
		var b [8]byte
		for i := range b {
			b[i] = byte(v >> (8 * i))
		}
		r.WriteAt(b[:], mem.Addr(testTSS+off))
	}
	put(4, testRSP0)
	put(36, testIST1)
	put(100, 0x68<<16)  // I/O bitmap at 68H
	put(0x68+0x60/8, 1) // port 60H is not for CPL 3
	put(0x68+0x70/8, 0xFF)
	for _, a := range []mem.Addr{0x1000, 0x2000, 0x3000 + 8*(userCode>>21)} {
		r.Store64(a, r.Load64(a)|4)
	}
	for a := uint64(userCode); a < userEnd; a += 0x1000 {
		pte := mem.Addr(0x10000 + a>>12*8)
		r.Store64(pte, r.Load64(pte)|4)
	}
	var s x86.State
	c.State(&s)
	s.GDTR = x86.Table{Base: testGDT, Limit: gdtLimit}
	s.IDTR = x86.Table{Base: testIDT, Limit: 0xFFF}
	s.TR = x86.Segment{Selector: selTSS, Base: testTSS, Limit: 0x88, Access: 0x8B}
	if user {
		r.WriteAt(b, userCode)
		s.RIP, s.GPR[x86.RSP] = userCode, userStack
		s.Seg[x86.CS] = x86.Segment{Selector: selUser | 3, Limit: 0xFFFFFFFF, Access: 0xA0FB}
		for i := range s.Seg {
			if i != x86.CS {
				s.Seg[i] = x86.Segment{Selector: selUserSS | 3, Limit: 0xFFFFFFFF, Access: 0xC0F3}
			}
		}
	}
	if err := c.SetState(&s); err != nil {
		t.Fatal(err)
	}
	return c
}

// A trap is how a guest's run ended: in the handler of vector, with this frame; vector is -1 where the code's own HLT ended it.
type trap struct {
	vector int
	code   uint64
	rip    uint64 // from the code's start
	flags  uint64
	cs     uint64
	rsp    uint64
}

func hasCode(v int) bool { return v == 8 || v >= 10 && v <= 14 || v == 17 }

// endure runs c to its HLT.
func endure(t *testing.T, c *CPU, start uint64) trap {
	t.Helper()
	if exit := c.Run(); exit != hv.Halted {
		t.Fatalf("Run: %v at RIP %#x", exit, c.rip)
	}
	if c.rip < testStubs || c.rip >= testStubs+256*16 {
		return trap{vector: -1, rip: c.rip - start}
	}
	tr := trap{vector: int(c.rip-1-testStubs) / 16}
	sp := mem.Addr(c.gpr[x86.RSP])
	if hasCode(tr.vector) {
		tr.code = c.ram.Load64(sp)
		sp += 8
	}
	tr.rip = c.ram.Load64(sp) - start
	tr.cs, tr.flags, tr.rsp = c.ram.Load64(sp+8), c.ram.Load64(sp+16), c.ram.Load64(sp+24)
	return tr
}

func TestFaultsOfSystemInstructions(t *testing.T) {
	for _, g := range []struct {
		name   string
		user   bool
		code   string
		prep   func(c *CPU)
		vector int
		err    uint64
		rip    uint64 // of the frame, from the code's start
	}{
		{"a segment that is not present", false, "b8480000008ed8f4", nil, 11, 0x48, 5},
		{"a selector beyond the GDT", false, "b8001000008ed8f4", nil, 13, 0x1000, 5},
		{"a selector of an LDT that is not there", false, "b80c0000008ec0f4", nil, 13, 0xC, 5},
		{"a kernel segment for the user", true, "b8100000008ed8f4", nil, 13, 0x10, 5},
		{"null SS for the user", true, "31c08ed0f4", nil, 13, 0, 2},
		{"null SS for the kernel", false, "31c08ed0f4", nil, -1, 0, 5},
		{"null SS of another RPL", false, "b8030000008ed0f4", nil, 13, 0, 5},
		{"code in DS is readable code", false, "b8180000008ed8f4", nil, -1, 0, 8},
		{"code in SS", false, "b8180000008ed0f4", nil, 13, 0x18, 5},
		{"a load from no canonical address", false, "48bb0000000000800000488b03f4", nil, 13, 0, 10},
		{"a load by RBP from none", true, "48bd0000000000800000488b4500f4", nil, 12, 0, 10},
		{"a push to none", true, "48bc080000000080000050f4", nil, 12, 0, 10},
		{"a jump to none", true, "48b80000000000800000ffe0f4", nil, 13, 0, 10},
		{"a call to none", true, "48b80000000000800000ffd0f4", nil, 13, 0, 10},
		{"LSTAR is canonical", false, "b9820000c031c0ba000000800f30f4", nil, 13, 0, 12},
		{"LSTAR may be what only 57 bits name", false, "b9820000c031c0ba008000000f30f4", nil, -1, 0, 15},
		{"GS base is canonical", false, "b9010100c031c0ba000000800f30f4", nil, 13, 0, 12},
		{"an MSR that is not there", false, "b9452301000f32f4", nil, 13, 0, 5},
		{"EFER's reserved bits", false, "b9800000c00f3283c8020f30f4", nil, 13, 0, 10},
		{"EFER.LME is fixed while paging", false, "b9800000c00f3225fffeffff0f30f4", nil, 13, 0, 12},
		{"RDMSR for the user", true, "b9800000c00f32f4", nil, 13, 0, 5},
		{"PG without PE", false, "0f20c024fe0f22c0f4", nil, 13, 0, 5},
		{"NW without CD", false, "0f20c00d000000200f22c0f4", nil, 13, 0, 8},
		{"paging off in 64-bit mode", false, "0f20c025ffffff7f0f22c0f4", nil, 13, 0, 8},
		{"CR0 above 32 bits", false, "0f20c0480fbae8280f22c0f4", nil, 13, 0, 8},
		{"CR4's reserved bits", false, "0f20e0480fbae80f0f22e0f4", nil, 13, 0, 8},
		{"PAE off in IA-32e mode", false, "0f20e0480fbaf0050f22e0f4", nil, 13, 0, 8},
		{"LA57 changed in IA-32e mode", false, "0f20e0480fbae80c0f22e0f4", nil, 13, 0, 8},
		{"PCIDE with a PCID in CR3", false, "0f20d80c010f22d80f20e0480fbae8110f22e0f4", nil, 13, 0, 16},
		{"CR3 above MAXPHYADDR", false, "0f20d8480fbae8320f22d8f4", nil, 13, 0, 8},
		{"CR8 above 15", false, "b810000000440f22c0f4", nil, 13, 0, 5},
		{"CR1", false, "0f20c8f4", nil, 6, 0, 0},
		{"MOV from CR0 for the user", true, "0f20c0f4", nil, 13, 0, 0},
		{"DR4 with CR4.DE", false, "0f21e0f4", func(c *CPU) { c.cr4 |= x86.CR4DE }, 6, 0, 0},
		{"DR4 is DR6 without", false, "0f21e0f4", nil, -1, 0, 4},
		{"DR7 above 32 bits", false, "48b800000000010000000f23f8f4", nil, 13, 0, 10},
		{"DR7.GD guards the debug registers", false, "0f21f0f4", func(c *CPU) { c.dr[7] |= dr7GD }, 1, 0, 0},
		{"LGDT with a base that is not canonical", false, "48b80000000000000080488904250200300048c7c3000030000f0113f4", nil, 13, 0, 0x19},
		{"INT n through a kernel's gate", true, "cd81f4", nil, 13, 0x81*8 + 2, 0},
		{"INT n", true, "cd80f4", nil, 0x80, 0, 2},
		{"INT3", true, "ccf4", nil, 3, 0, 1},
		{"INT1 asks no gate's DPL", true, "f1f4", nil, 1, 0, 1},
		{"HLT for the user", true, "f4", nil, 13, 0, 0},
		{"CLI for the user", true, "faf4", nil, 13, 0, 0},
		{"CLI with IOPL", true, "facd80", func(c *CPU) { c.flags |= x86.IOPL }, 0x80, 0, 3},
		{"a port that the bitmap forbids", true, "e460f4", nil, 13, 0, 0},
		{"a port that it allows", true, "e461cd80", nil, 0x80, 0, 4},
		{"two ports of which it forbids one", true, "66e55ff4", nil, 13, 0, 0},
		{"a port beyond the TSS", true, "ba00040000ecf4", nil, 13, 0, 5},
		{"SWAPGS for the user", true, "0f01f8f4", nil, 13, 0, 0},
		{"RDFSBASE without CR4.FSGSBASE", true, "f3480faec0f4", nil, 6, 0, 0},
		{"WRGSBASE is canonical", true, "48b80000000000000080f3480faed8f4", func(c *CPU) { c.cr4 |= x86.CR4FSGSBASE }, 13, 0, 10},
		{"SYSRET to an address that is not canonical", false, "48b90000000000800000480f07f4", nil, 13, 0, 10},
		{"SYSRET for the user", true, "480f07f4", nil, 13, 0, 0},
		{"SYSCALL without EFER.SCE", true, "0f05f4", func(c *CPU) { c.efer &^= x86.EFERSCE }, 6, 0, 0},
		{"STAC for the user", true, "0f01cbf4", nil, 6, 0, 0},
		{"SGDT for the user under UMIP", true, "b8000840000f0100f4", func(c *CPU) { c.cr4 |= x86.CR4UMIP }, 13, 0, 5},
		{"RDTSC for the user under TSD", true, "0f31f4", func(c *CPU) { c.cr4 |= x86.CR4TSD }, 13, 0, 0},
		{"RDPMC", false, "0f33f4", nil, 13, 0, 0},
		{"XGETBV without OSXSAVE", false, "0f01d0f4", nil, 6, 0, 0},
		{"XSETBV without x87", false, "31c931d2b8020000000f01d1f4", func(c *CPU) { c.cr4 |= x86.CR4OSXSAVE }, 13, 0, 9},
		{"VMCALL", false, "0f01c1f4", nil, 6, 0, 0},
		{"LTR of a busy TSS", false, "b8380000000f00d8f4", nil, 13, 0x38, 5},
		{"LLDT of a TSS", false, "b8380000000f00d0f4", nil, 13, 0x38, 5},
		{"IRET to an address that is not canonical", false, "48b800000000008000006a10549c6a085048cff4", nil, 13, 0, 0x11},
		{"IRET to a null CS", false, "6a10549c6a006a0048cff4", nil, 13, 0, 8},
		{"IRET to data", false, "6a10549c6a106a0048cff4", nil, 13, 0x10, 8},
		{"IRET with NT", false, "9c480fba2c240e9d48cff4", nil, 13, 0, 8},
		{"a misaligned load under alignment checks", true, "b801084000488b00f4", func(c *CPU) { c.cr0 |= x86.CR0AM; c.flags |= x86.AC }, 17, 0, 5},
		{"an aligned one", true, "b800084000488b00cd80", func(c *CPU) { c.cr0 |= x86.CR0AM; c.flags |= x86.AC }, 0x80, 0, 10},
		{"the user writes a kernel page", true, "b8000030008900f4", nil, 14, 7, 5},
		{"the user reads a kernel page", true, "b8000030008b00f4", nil, 14, 5, 5},
		{"the user runs a kernel page", true, "b800003000ffe0", nil, 14, 0x15, 1<<64 - (userCode - testData)},
		{"the kernel reads a user page under SMAP", false, "b8000040008b00f4", func(c *CPU) { c.cr4 |= x86.CR4SMAP }, 14, 1, 5},
		{"with STAC it may", false, "0f01cbb8000040008b000f01caf4", func(c *CPU) { c.cr4 |= x86.CR4SMAP }, -1, 0, 14},
		{"the kernel runs a user page under SMEP", false, "b800004000ffe0", func(c *CPU) { c.cr4 |= x86.CR4SMEP }, 14, 0x11, userCode - flatCode},
		{"INVPCID of an unknown kind", false, "b804000000bb00003000660f388203f4", nil, 13, 0, 10},
		{"INVPCID of a PCID without PCIDE", false, "b80100000048c704250000300005000000bb00003000660f388203f4", nil, 13, 0, 0x16},
	} {
		t.Run(g.name, func(t *testing.T) {
			c := guest(t, g.user, g.code)
			if g.prep != nil {
				g.prep(c)
				c.refresh()
			}
			start := uint64(flatCode)
			if g.user {
				start = userCode
			}
			got := endure(t, c, start)
			if got.vector != g.vector || got.code != g.err || got.rip != g.rip {
				t.Errorf("vector %d, code %#x, RIP +%#x (CR2 %#x); want %d, %#x, +%#x", got.vector, got.code, got.rip, c.cr2, g.vector, g.err, g.rip)
			}
			if fault := g.vector >= 0 && g.vector < 32 && g.vector != 3 && !(g.vector == 1 && g.rip == 1); fault && got.flags&x86.RF == 0 {
				t.Errorf("a fault pushed RFLAGS %#x without RF", got.flags)
			}
		})
	}
}

func TestDoubleAndTripleFaults(t *testing.T) {
	absent := func(vec ...int) func(*CPU) {
		return func(c *CPU) {
			for _, v := range vec {
				a := mem.Addr(testIDT + 16*v)
				c.ram.Store64(a, c.ram.Load64(a)&^(1<<47))
			}
		}
	}
	for _, g := range []struct {
		name   string
		code   string
		prep   func(c *CPU)
		vector int // -1: shutdown
		err    uint64
	}{
		{"#GP whose gate is absent: #NP follows, both contribute", "0f20e0480fbae80f0f22e0", absent(13), 8, 0},
		{"#PF whose gate is absent", "8b042500000010", absent(14), 8, 0},
		{"#UD is benign: #NP for its absent gate", "0f0b", absent(6), 11, 6*8 + 3},
		{"INT n is benign, and its error code not external", "cd90", absent(0x90), 11, 0x90*8 + 2},
		{"INT n beyond the IDT", "cd90", func(c *CPU) { c.idtr.Limit = 0x8FF }, 13, 0x90*8 + 2},
		{"#DF whose gate is absent", "8b042500000010", absent(14, 8), -1, 0},
		{"no IDT", "0f0b", func(c *CPU) { c.idtr.Limit = 0 }, -1, 0},
		{"no stack", "48bc000000000080000050", nil, -1, 0},
		{"no stack, and an IST for #DF", "48bc000000000080000050", func(c *CPU) {
			c.ram.Store64(testIDT+16*8, c.ram.Load64(testIDT+16*8)|1<<32)
		}, 8, 0},
	} {
		t.Run(g.name, func(t *testing.T) {
			c := guest(t, false, g.code)
			if g.prep != nil {
				g.prep(c)
			}
			if g.vector < 0 {
				if exit := c.Run(); exit != hv.Shutdown {
					t.Errorf("Run: %v, want Shutdown", exit)
				}
				return
			}
			if got := endure(t, c, flatCode); got.vector != g.vector || got.code != g.err {
				t.Errorf("vector %d, code %#x; want %d, %#x", got.vector, got.code, g.vector, g.err)
			}
		})
	}
}

func TestDebugTraps(t *testing.T) {
	for _, g := range []struct {
		name string
		code string
		dr   [8]uint64
		rip  uint64
		dr6  uint64 // its low 16 bits
		rf   bool
	}{
		{"TF traps behind the instruction after POPF", "9c480fba2c24089d90f4", [8]uint64{}, 9, dr6BS, false},
		{"not behind a load of SS", "8cd09c480fba2c24089d8ed090f4", [8]uint64{}, 13, dr6BS, false},
		{"behind the POPF that clears it", "9c9c480fba2c24089d9df4", [8]uint64{}, 10, dr6BS, false},
		{"in a REP, after each element", "b905000000bf000030009c480fba2c24089df3aaf4", [8]uint64{}, 18, dr6BS, false},
		{"a breakpoint for execution", "9090f4", [8]uint64{0: flatCode + 1, 7: 1}, 1, 1, true},
		{"a breakpoint for writes", "908804250800300090f4", [8]uint64{1: testData + 8, 7: 1<<2 | 1<<20}, 8, 2, false},
		{"it does not see reads", "8a042508003000f490", [8]uint64{1: testData + 8, 7: 1<<2 | 1<<20}, 0, 0, false},
		{"one for reads and writes, of four bytes", "8a0425070030008a04250a003000f4", [8]uint64{2: testData + 8, 7: 1<<4 | 0xF<<24}, 14, 4, false},
		{"one that a load of SS hits, behind the next instruction", "8e1425080030009090f4", [8]uint64{2: testData + 8, 7: 1<<4 | 0xF<<24}, 8, 4, false},
		{"and where that is INT3, in its handler", "8e142508003000ccf4", [8]uint64{2: testData + 8, 7: 1<<4 | 0xF<<24}, 1<<64 + testStubs + 3*16 - flatCode, 4, false},
	} {
		t.Run(g.name, func(t *testing.T) {
			c := guest(t, false, g.code)
			c.dr = g.dr
			c.dr[6], c.dr[7] = dr6Ones, c.dr[7]|dr7Ones
			c.refresh()
			got := endure(t, c, flatCode)
			if g.dr6 == 0 {
				if got.vector != -1 {
					t.Errorf("vector %d, DR6 %#x; want none", got.vector, c.dr[6])
				}
				return
			}
			if got.vector != 1 || got.rip != g.rip || c.dr[6]&0xFFFF&^0xFF0 != g.dr6 || got.flags&x86.RF != 0 != g.rf {
				t.Errorf("vector %d, RIP +%#x, DR6 %#x, RFLAGS %#x; want 1, +%#x, %#x, RF %v", got.vector, got.rip, c.dr[6], got.flags, g.rip, g.dr6, g.rf)
			}
		})
	}
}

func TestSyscallAndSysret(t *testing.T) {
	c := guest(t, true, "f90f05f4")
	c.msr.star, c.msr.lstar, c.msr.fmask = 0x0023000800000000, flatCode+0x100, x86.CF|x86.IF
	c.flags |= x86.IF
	// The kernel puts what it got into R8 to R10, and returns; the user's HLT then faults.
	code, _ := hex.DecodeString("4989c84d89d99c415a8cc84989c4480f07")
	c.ram.WriteAt(code, flatCode+0x100)
	c.gpr[x86.RSP] = userStack
	got := endure(t, c, userCode)
	if got.vector != 13 || got.rip != 3 || got.cs != 0x33 {
		t.Errorf("back in user mode: vector %d at +%#x, CS %#x; want 13 at +3, CS 0x33", got.vector, got.rip, got.cs)
	}
	if c.gpr[x86.R8] != userCode+3 || c.gpr[x86.R9]&(x86.CF|x86.IF) != x86.CF|x86.IF || c.gpr[x86.R10]&(x86.CF|x86.IF) != 0 || c.gpr[x86.R12] != 8 {
		t.Errorf("in the kernel: RCX %#x, R11 %#x, RFLAGS %#x, CS %#x", c.gpr[x86.R8], c.gpr[x86.R9], c.gpr[x86.R10], c.gpr[x86.R12])
	}
}

func TestCallGateSwitchesStacks(t *testing.T) {
	c := guest(t, true, "6a636a0048ff1c24f4")
	c.ram.WriteAt([]byte{0xF4}, testStubs)
	if exit := c.Run(); exit != hv.Halted || c.rip != testStubs+1 || c.cpl != 0 {
		t.Fatalf("%v at %#x, CPL %d, vector %d code %#x", exit, c.rip, c.cpl, c.fault.vec, c.fault.code)
	}
	want := [4]uint64{userCode + 8, selUser | 3, userStack - 16, selUserSS | 3}
	for i, w := range want {
		if got := c.ram.Load64(testRSP0 - 32 + mem.Addr(8*i)); got != w {
			t.Errorf("word %d of the inner stack: %#x, want %#x", i, got, w)
		}
	}
}

func TestCompatibilityModeRunsThirtyTwoBitCode(t *testing.T) {
	c := guest(t, true, "6a23680001400048cb")
	code, _ := hex.DecodeString("b8ffffff7f40509c5bcd80")
	c.ram.WriteAt(code, userCode+0x100)
	got := endure(t, c, userCode+0x100)
	if got.vector != 0x80 || got.cs != selUser32|3 || c.gpr[x86.RAX] != 0x80000000 || c.gpr[x86.RBX]&x86.OF == 0 || got.rsp != userStack-4 {
		t.Errorf("vector %d, CS %#x, EAX %#x, EFLAGS %#x, ESP %#x", got.vector, got.cs, c.gpr[x86.RAX], c.gpr[x86.RBX], got.rsp)
	}
}

func TestLookingAtDescriptors(t *testing.T) {
	for _, g := range []struct {
		name string
		code string
		rax  uint64
		zf   bool
	}{
		{"LAR of data", "b9100000000f02c1f4", 0xC09300, true},
		{"LSL of data", "b9100000000f03c1f4", 0xFFFFFFFF, true},
		{"LAR of a TSS", "b9380000000f02c1f4", 0x8B00, true},
		{"LSL of a TSS", "b9380000000f03c1f4", 0x88, true},
		{"LSL of a call gate", "b9600000000f03c1f4", 0, false},
		{"LAR of null", "31c90f02c1f4", 0, false},
		{"LAR beyond the GDT", "b9001000000f02c1f4", 0, false},
		{"LAR with too high an RPL", "b9130000000f02c1f4", 0, false},
		{"VERW of data", "b9100000000f00e9f4", 0, true},
		{"VERW of code", "b9080000000f00e9f4", 0, false},
		{"VERR of code", "b9080000000f00e1f4", 0, true},
	} {
		c := guest(t, false, g.code)
		if got := endure(t, c, flatCode); got.vector != -1 || c.gpr[x86.RAX] != g.rax || c.zf() != g.zf {
			t.Errorf("%s: vector %d, EAX %#x, ZF %v; want %#x, %v", g.name, got.vector, c.gpr[x86.RAX], c.zf(), g.rax, g.zf)
		}
	}
}

// irqIO is a machine with one interrupt waiting.
type irqIO struct {
	noIO
	vector  uint8
	waiting bool
	nmi     bool
}

func (n *irqIO) Pending() bool { return n.waiting || n.nmi }
func (n *irqIO) TakeNMI() bool { v := n.nmi; n.nmi = false; return v }
func (n *irqIO) Acknowledge() (uint8, bool) {
	v := n.waiting
	n.waiting = false
	return n.vector, v
}

func TestInterruptShadows(t *testing.T) {
	for _, g := range []struct {
		name string
		code string
		rip  uint64
	}{
		{"STI keeps them off for one instruction", "fb9090f4", 2},
		{"a second STI gives no second shadow", "fbfb90f4", 2},
		{"POPF has no shadow", "9c480fba2c24099d90f4", 8},
		{"IF set for HLT", "fbf490", 2},
		{"MOV to SS has one", "8cd09c480fba2c2409ba000200009d90", 15},
	} {
		c := guest(t, false, g.code)
		c.io = &irqIO{vector: 0x40, waiting: true}
		if got := endure(t, c, flatCode); got.vector != 0x40 || got.rip != g.rip || got.flags&x86.RF != 0 {
			t.Errorf("%s: vector %#x at +%#x; want 0x40 at +%#x", g.name, got.vector, got.rip, g.rip)
		}
	}
}

func TestNMIIsMaskedUntilIRET(t *testing.T) {
	c := guest(t, false, "9090f4")
	io := &irqIO{nmi: true}
	c.io = io
	if got := endure(t, c, flatCode); got.vector != 2 {
		t.Fatalf("vector %d, want NMI", got.vector)
	}
	io.nmi = true
	if exit := c.Run(); exit != hv.Halted || !io.nmi {
		t.Errorf("%v, and the second NMI was taken in the handler of the first", exit)
	}
	// The handler's HLT is followed by IRET.
	c.ram.WriteAt([]byte{0x48, 0xCF}, mem.Addr(c.rip))
	c.halted = false
	c.poll.And(^uint32(pollHalt))
	c.Run()
	if io.nmi {
		t.Error("the second NMI was not taken behind IRET")
	}
	if rip := c.ram.Load64(mem.Addr(c.gpr[x86.RSP])); rip != flatCode {
		t.Errorf("the second NMI came at +%#x, want it at once, at +0", rip-flatCode)
	}
}

func TestTranslationsGoWhenTheyMust(t *testing.T) {
	pte := func(va uint64) mem.Addr { return mem.Addr(0x10000 + va>>12*8) }
	const va = 0x300000
	for _, g := range []struct {
		name string
		code string
		want uint64 // RAX
	}{
		{"INVLPG drops a page's", "488b04250000300048c704250018010003103000bb000030000f013b488b042500003000f4", 2},
		{"MOV to CR3 drops all", "488b04250000300048c7042500180100031030000f20d80f22d8488b042500003000f4", 2},
		{"but the global ones", "0f20e0480fbae8070f22e00fba2c250018010008488b04250000300048c7042500180100031030000f20d80f22d8488b042500003000f4", 1},
		{"which a change of CR4.PGE drops", "0f20e0480fbae8070f22e00fba2c250018010008488b04250000300048c7042500180100031030000f20e0480fbaf0070f22e0488b042500003000f4", 2},
		{"INVPCID of all", "488b04250000300048c704250018010003103000b802000000bb00203000660f388203488b042500003000f4", 2},
		{"a PCID keeps its own", "0f20e0480fbae8110f22e0488b04250000300048c7042500180100031030000f20d84883c8010f22d8488b0c2500003000480fbaf000480fbae83f0f22d8488b042500003000f4", 1},
		{"and another PCID does not see it", "0f20e0480fbae8110f22e0488b04250000300048c7042500180100031030000f20d84883c8010f22d8488b042500003000f4", 2},
	} {
		c := guest(t, false, g.code)
		c.ram.Store64(va, 1)
		c.ram.Store64(va+0x1000, 2)
		if pte(va) != 0x11800 {
			t.Fatalf("the PTE is at %#x", pte(va))
		}
		if got := endure(t, c, flatCode); got.vector != -1 || c.gpr[x86.RAX] != g.want {
			t.Errorf("%s: vector %d code %#x at +%#x, read %d, want %d", g.name, got.vector, got.code, got.rip, c.gpr[x86.RAX], g.want)
		}
	}
}

// TestBootFromRealMode goes from real mode through protected mode to 64-bit mode, as firmware and SMP trampolines do.
func TestBootFromRealMode(t *testing.T) {
	c := guest(t, false, "")
	var s x86.State
	c.Reset()
	c.State(&s)
	s.RIP = 0x7000
	s.Seg[x86.CS] = x86.Segment{Limit: 0xFFFF, Access: 0x93}
	s.GPR[x86.RSP] = 0x6000
	if err := c.SetState(&s); err != nil {
		t.Fatal(err)
	}
	put := func(at mem.Addr, code string) {
		b, err := hex.DecodeString(code)
		if err != nil {
			t.Fatal(err)
		}
		c.ram.WriteAt(b, at)
	}
	// INT 21H by the interrupt vector table, a far call and return, then protected mode.
	put(0x7000, "b850068ed8a11000cd219a0075000031d28edabb00760f01170f20c280ca010f22c2ea00771800")
	put(0x6510, "3412")                 // what DS:10H reads
	put(0x21*4, "00747000"[0:4]+"0000") // IVT: 0000:7400
	put(0x7400, "b97856cf")
	put(0x7500, "bebc9acb")
	put(0x7600, "6f0000800000")
	put(0x7700, "ba100000008eda8ed2ba200000000f22e2ba001000000f22da5051b9800000c031d2b8000100000f300f20c281ca000000800f22c2ea007800000800")
	put(0x7800, "410f20c0b9800000c00f324989c1f4")
	if exit := c.Run(); exit != hv.Halted {
		t.Fatalf("%v at RIP %#x, CR0 %#x, fault %+v", exit, c.rip, c.cr0, c.fault)
	}
	if c.mode != 8 || c.gpr[x86.R9] != x86.EFERLME|x86.EFERLMA || c.gpr[x86.RSI] != 0x9ABC {
		t.Errorf("mode %d, EFER %#x, SI %#x", c.mode, c.gpr[x86.R9], c.gpr[x86.RSI])
	}
	if ax, cx := c.ram.Load32(0x5FFC), c.ram.Load32(0x5FF8); ax&0xFFFF != 0x1234 || cx&0xFFFF != 0x5678 {
		t.Errorf("AX %#x, CX %#x; want 0x1234, 0x5678", ax, cx)
	}
}

// baseIO is a machine whose LAPIC is where APIC base says.
type baseIO struct {
	noIO
	base uint64
}

func (b *baseIO) ReadMSR(uint32) (uint64, error) { return b.base, nil }

func TestCPUIDHidesADisabledLAPIC(t *testing.T) {
	const enabled = 1 << 11
	for _, base := range []uint64{0xFEE00000, 0xFEE00000 | enabled} {
		c := flat(t, nil)
		c.io = &baseIO{base: base}
		if _, _, _, d := c.cpuid(1, 0); d>>9&1 != uint32(base/enabled&1) {
			t.Errorf("APIC base %#x: leaf 1 EDX %#x", base, d)
		}
	}
}
