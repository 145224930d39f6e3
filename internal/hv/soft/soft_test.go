package soft

import (
	"errors"
	"reflect"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

var (
	_ hv.Backend     = Backend{}
	_ hv.DirtyLogger = (*VM)(nil)
	_ hv.Sampler     = (*VCPU)(nil)
	_ hv.Counter     = (*VCPU)(nil)
)

// board is a machine that notes what is written to its ports.
type board struct{ out []byte }

func (*board) ReadPort(_ uint16, p []byte)    { clear(p) }
func (b *board) WritePort(_ uint16, p []byte) { b.out = append(b.out, p...) }
func (*board) ReadMMIO(_ mem.Addr, p []byte)  { clear(p) }
func (*board) WriteMMIO(mem.Addr, []byte)     {}
func (*board) ReadMSR(uint32) (uint64, error) { return 0, errors.New("none") }
func (*board) WriteMSR(uint32, uint64) error  { return errors.New("none") }
func (*board) Pending() bool                  { return false }
func (*board) TakeNMI() bool                  { return false }
func (*board) Acknowledge() (uint8, bool)     { return 0, false }
func (*board) CR8() uint64                    { return 0 }
func (*board) SetCR8(uint64)                  {}

func newVCPU(t *testing.T, io hv.IO) (*mem.Memory, hv.VCPU) {
	t.Helper()
	ram, err := mem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	vm, err := Backend{}.NewVM(ram)
	if err != nil {
		t.Fatal(err)
	}
	c, err := vm.NewVCPU(0, io)
	if err != nil {
		t.Fatal(err)
	}
	return ram, c
}

// realMode is the state after INIT and a SIPI to 0700:0000.
func realMode(t *testing.T, c hv.VCPU) *x86.State {
	t.Helper()
	var s x86.State
	if err := c.State(&s); err != nil {
		t.Fatal(err)
	}
	s.RIP, s.Seg[x86.CS].Selector, s.Seg[x86.CS].Base = 0, 0x700, 0x7000
	s.MP = x86.Runnable
	return &s
}

func TestRealModeCodeReachesThePorts(t *testing.T) {
	b := &board{}
	ram, c := newVCPU(t, b)
	ram.WriteAt([]byte{0xB0, 'H', 0xE6, 0xE9, 0xB0, 'i', 0xE6, 0xE9, 0xF4}, 0x7000) // mov al, 'H'; out 0xE9, al; …; hlt
	if err := c.SetState(realMode(t, c)); err != nil {
		t.Fatal(err)
	}
	if exit, err := c.Run(); exit != hv.Halted || err != nil || string(b.out) != "Hi" {
		t.Errorf("%v, %v, wrote %q; want Halted, \"Hi\"", exit, err, b.out)
	}
	var s x86.State
	if err := c.State(&s); err != nil || s.MP != x86.Halted || s.RIP != 9 {
		t.Errorf("afterwards: MP %v, RIP %#x, %v; want Halted at 9", s.MP, s.RIP, err)
	}
}

func TestStateGoesRoundWhole(t *testing.T) {
	_, c := newVCPU(t, &board{})
	want := realMode(t, c)
	for i := range want.GPR {
		want.GPR[i] = uint64(i) * 0x0101010101010101
	}
	for i := range want.FPU.Vec {
		want.FPU.Vec[i][0] = uint64(i) + 1
	}
	want.RFLAGS = x86.Fixed | x86.CF | x86.OF | x86.IF
	want.MSR[0xC0000081] = 0x0023001000000000 // STAR
	want.MSR[0xC0000103] = 7                  // TSC_AUX
	want.KernelGSBase, want.LSTAR = 0xFFFF888000000000, 0xFFFFFFFF81000000
	want.DR[0] = 0x1234
	want.NMIMasked, want.Shadow = true, true
	if err := c.SetState(want); err != nil {
		t.Fatal(err)
	}
	var got x86.State
	if err := c.State(&got); err != nil {
		t.Fatal(err)
	}
	got.TSC = want.TSC
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", &got, want)
	}
}

func TestWaitForSIPIDoesNotRun(t *testing.T) {
	_, c := newVCPU(t, &board{})
	s := realMode(t, c)
	s.MP = x86.WaitForSIPI
	if err := c.SetState(s); err != nil {
		t.Fatal(err)
	}
	if exit, err := c.Run(); exit != hv.Halted || err != nil {
		t.Errorf("%v, %v; want Halted", exit, err)
	}
}

func TestStatesThatDoNotFitAreRefused(t *testing.T) {
	_, c := newVCPU(t, &board{})
	for name, change := range map[string]func(*x86.State){
		"CR4 with PKE":       func(s *x86.State) { s.CR4 |= x86.CR4PKE },
		"XCR0 with AVX-512":  func(s *x86.State) { s.XCR0 |= 7 << 5 },
		"an MSR of AMD's":    func(s *x86.State) { s.MSR[0xC0010015] = 1 },
		"an event under way": func(s *x86.State) { s.Pending.Valid = true },
	} {
		s := realMode(t, c)
		change(s)
		if err := c.SetState(s); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestCountersCount(t *testing.T) {
	ram, c := newVCPU(t, &board{})
	ram.WriteAt([]byte{0x40, 0x40, 0xE6, 0x80, 0xF4}, 0x7000) // inc ax; inc ax; out 0x80, al; hlt
	c.SetState(realMode(t, c))
	c.Run()
	got := map[string]uint64{}
	c.(hv.Counter).Counters(func(n string, v uint64) { got[n] = v })
	if got["instructions"] != 4 || got["ports"] != 1 {
		t.Errorf("%v; want 4 instructions, 1 port access", got)
	}
}
