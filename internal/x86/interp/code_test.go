package interp

import (
	"math/rand"
	"testing"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// start makes c begin again at flatCode.
func start(c *CPU) {
	c.rip, c.halted, c.stop = flatCode, false, stopNone
	c.poll.And(^uint32(pollHalt))
}

func TestCodeThatRewritesItsNextInstructionRunsTheNewOne(t *testing.T) {
	c := flat(t, []byte{
		0xC6, 0x05, 1, 0, 0, 0, 2, // mov byte [rip+1], 2
		0xB0, 1, // mov al, 1
		0xF4, // hlt
	})
	untilHalt(t, c)
	if al := c.gpr[x86.RAX] & 0xFF; al != 2 {
		t.Errorf("AL = %d, want 2: the store came before the instruction it changed", al)
	}
}

func TestCodeWrittenByADeviceIsDecodedAgain(t *testing.T) {
	c := flat(t, []byte{0xB0, 1, 0xF4}) // mov al, 1; hlt
	for want := uint64(1); want < 4; want++ {
		if err := c.ram.WriteAt([]byte{byte(want)}, flatCode+1); err != nil {
			t.Fatal(err)
		}
		start(c)
		untilHalt(t, c)
		if al := c.gpr[x86.RAX] & 0xFF; al != want {
			t.Errorf("AL = %d, want %d", al, want)
		}
	}
}

func TestAPageWithoutCodeLeftIsNotTracked(t *testing.T) {
	c := flat(t, []byte{0xE9, 0xFB, 0x0F, 0, 0}) // jmp to the next page
	if err := c.ram.WriteAt([]byte{0xF4}, flatCode+0x1000); err != nil {
		t.Fatal(err)
	}
	untilHalt(t, c)
	if !c.ram.Tracked(flatCode) {
		t.Fatal("the page is not tracked while it holds decoded code")
	}
	if err := c.ram.WriteAt(make([]byte, 64), flatCode); err != nil {
		t.Fatal(err)
	}
	c.rip = flatCode + 0x1000
	c.halted = false
	c.poll.And(^uint32(pollHalt))
	untilHalt(t, c)
	if c.ram.Tracked(flatCode) {
		t.Error("the page is tracked although its code is gone: every store to it is slow for ever")
	}
}

func TestAnInstructionAcrossPagesSeesItsSecondPageMoved(t *testing.T) {
	const at = flatCode + 0xFFD
	c := flat(t, nil)
	write := func(a mem.Addr, p ...byte) {
		if err := c.ram.WriteAt(p, a); err != nil {
			t.Fatal(err)
		}
	}
	write(at, 0x48, 0xB8, 1, 2, 0, 0, 0, 0, 0, 0, 0xF4) // mov rax, 0x0201; hlt
	write(0x500000, 7, 0, 0, 0, 0, 0, 0, 0xF4)          // the other second page
	for _, p := range []struct{ page, want uint64 }{{0x201000, 0x0201}, {0x500000, 0x0701}, {0x201000, 0x0201}} {
		c.ram.Store64(0x10000+0x1000+8, p.page|3) // the entry of 0x201000
		c.tlbs.flushAll()
		c.selectTLB()
		c.rip, c.halted = at, false
		c.poll.And(^uint32(pollHalt))
		untilHalt(t, c)
		if got := c.gpr[x86.RAX]; got != p.want {
			t.Errorf("second page at %#x: RAX = %#x, want %#x", p.page, got, p.want)
		}
	}
}

func TestREPSTOSFaultsWhereItStops(t *testing.T) {
	c := flat(t, []byte{0xF3, 0xAB, 0xF4}) // rep stosd; hlt
	const gone = 0x400000
	c.ram.Store64(0x10000+(gone>>21)<<12, 0) // not present
	c.tlbs.flushAll()
	c.selectTLB()
	c.gpr[x86.RDI], c.gpr[x86.RCX], c.gpr[x86.RAX] = gone-40, 100, 0x11223344
	start(c)
	for c.stop != stopFault { // it may also stop for what c.poll says
		c.stop = stopNone
		c.runBlocks(c.lookup(c.key()))
	}
	if c.fault.vec != x86.PFV || c.fault.code != x86.PFWrite || c.cr2 != gone {
		t.Fatalf("stop %d, vector %d, code %#x, CR2 %#x; want a page fault for writing at %#x", c.stop, c.fault.vec, c.fault.code, c.cr2, uint64(gone))
	}
	if c.rip != flatCode || c.gpr[x86.RDI] != gone || c.gpr[x86.RCX] != 90 {
		t.Errorf("RIP %#x, RDI %#x, RCX %d; want %#x, %#x, 90: as if 10 elements were done and the rest not begun",
			c.rip, c.gpr[x86.RDI], c.gpr[x86.RCX], flatCode, uint64(gone))
	}
	if v := c.ram.Load32(gone - 4); v != 0x11223344 {
		t.Errorf("the last element before the fault is %#x", v)
	}
}

func TestREPMOVSOverItsOwnSourceRepeatsIt(t *testing.T) {
	c := flat(t, []byte{0xF3, 0xA4, 0xF4}) // rep movsb; hlt
	if err := c.ram.WriteAt([]byte("abc"), 0x300000); err != nil {
		t.Fatal(err)
	}
	c.gpr[x86.RSI], c.gpr[x86.RDI], c.gpr[x86.RCX] = 0x300000, 0x300003, 9
	untilHalt(t, c)
	got := make([]byte, 12)
	if err := c.ram.ReadAt(got, 0x300000); err != nil {
		t.Fatal(err)
	}
	if string(got) != "abcabcabcabc" {
		t.Errorf("memory is %q, want abcabcabcabc: each element is read after the one before was written", got)
	}
}

// Fused comparisons and flags that are not computed because nobody looks must not be visible: the same program, one
// instruction at a time, is neither fused nor has anything left out.
func TestBlocksComputeWhatSingleInstructionsCompute(t *testing.T) {
	c := flat(t, nil)
	r := rand.New(rand.NewSource(1))
	for round := range 3000 {
		code := program(r, c.features)
		if err := c.ram.WriteAt(code, flatCode); err != nil {
			t.Fatal(err)
		}
		c.ownMail()
		var gpr [16]uint64
		for i := range gpr {
			gpr[i] = r.Uint64() >> (r.Intn(8) * 8)
		}
		flags := r.Uint64()&x86.Status | x86.Fixed
		var got [2][18]uint64
		for i := range got {
			copy(c.gpr[:16], gpr[:])
			c.setRflags(flags)
			start(c)
			for !c.halted && c.stop != stopFault {
				c.stop = stopNone
				if i == 0 {
					c.runBlocks(c.lookup(c.key()))
				} else {
					c.single(c.lookup(c.key() | keySingle))
				}
			}
			copy(got[i][:], c.gpr[:16])
			got[i][16], got[i][17] = c.rip, c.rflags()
		}
		if got[0] != got[1] {
			t.Fatalf("round %d, code % x:\nblocks %x\nsingle %x", round, code, got[0], got[1])
		}
	}
}

// program is random integer instructions on registers, with short jumps among them, and HLT at the end.
func program(r *rand.Rand, f decode.Features) []byte {
	var p []byte
	for range 30 {
		if r.Intn(4) == 0 { // a conditional jump over one byte of CLC or STC
			p = append(p, 0x70|byte(r.Intn(16)), 1, 0xF8|byte(r.Intn(2)))
			continue
		}
		for {
			var b [15]byte
			r.Read(b[:])
			if r.Intn(2) == 0 {
				b[0] = byte(r.Intn(8)<<3 | r.Intn(6)) // the ALU's
			} else if r.Intn(2) == 0 {
				b[0], b[1] = 0x48, byte(r.Intn(8)<<3|r.Intn(6))
			}
			in, err := decode.Decode(b[:], decode.Mode64, f)
			if err != nil || binders[in.Op] == nil || in.Flags&(decode.Jump|decode.EndBlock|decode.MemRead|decode.MemWrite|decode.String) != 0 ||
				in.Op == decode.PUSH || in.Op == decode.POP || in.Op == decode.ENTER || in.Op == decode.LEAVE || in.Op == decode.RDRAND || in.Op == decode.RDSEED ||
				in.Op == decode.XLAT {
				continue
			}
			p = append(p, b[:in.Len]...)
			break
		}
	}
	return append(p, 0xF4)
}

func TestSixteenBitCodeBranchesAndUsesItsStack(t *testing.T) {
	c := flat(t, nil)
	code := []byte{
		0x31, 0xC0, // xor ax, ax
		0xB9, 5, 0, // mov cx, 5
		0x01, 0xC8, // 1: add ax, cx
		0xE2, 0xFC, // loop 1b
		0xE8, 2, 0, // call 2f
		0xF4,       // hlt
		0x90,       // nop
		0x50, 0x5B, // 2: push ax; pop bx
		0x43, // inc bx
		0xC3, // ret
	}
	const at = 0x7C00
	if err := c.ram.WriteAt(code, at); err != nil {
		t.Fatal(err)
	}
	c.Reset()
	c.seg[x86.CS].Selector, c.seg[x86.CS].Base = 0, 0
	c.modeChanged()
	c.gpr[x86.RAX], c.gpr[x86.RBX], c.gpr[x86.RSP] = 0xAAAA0000, 0xBBBB0000, 0xCCCC7000
	c.rip = at
	untilHalt(t, c)
	for r, want := range map[int]uint64{x86.RAX: 0xAAAA000F, x86.RBX: 0xBBBB0010, x86.RCX: 0, x86.RSP: 0xCCCC7000} {
		if c.gpr[r] != want {
			t.Errorf("register %d = %#x, want %#x: 16-bit code leaves the upper halves", r, c.gpr[r], want)
		}
	}
	if c.rip != at+13 {
		t.Errorf("IP = %#x, want %#x", c.rip, at+13)
	}
}
