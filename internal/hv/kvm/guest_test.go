package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// The guests here are some instructions of real mode, at 0x1000, with RAM of 64 KiB: integer code, which also a KVM runs that emulates
// privileged code.

const codeAt = 0x1000

// fakeIO is a machine whose ports count.
type fakeIO struct {
	onOut     func(port uint16, p []byte)
	onPending func()

	mu      sync.Mutex // guards what follows
	outs    []uint32
	in      byte
	writes  []mem.Addr
	vectors []uint8
	pending atomic.Bool
	nmi     atomic.Bool
	cr8     uint64
}

func (f *fakeIO) ReadPort(port uint16, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range p {
		f.in++
		p[i] = f.in
	}
}

func (f *fakeIO) WritePort(port uint16, p []byte) {
	f.mu.Lock()
	v := uint32(port) << 16
	for i, b := range p {
		v |= uint32(b) << (8 * i)
	}
	f.outs = append(f.outs, v)
	f.mu.Unlock()
	if f.onOut != nil {
		f.onOut(port, p)
	}
}

func (f *fakeIO) ReadMMIO(a mem.Addr, p []byte) {
	for i := range p {
		p[i] = byte(a) + byte(i)
	}
}

func (f *fakeIO) WriteMMIO(a mem.Addr, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, a)
}
func (f *fakeIO) ReadMSR(msr uint32) (uint64, error) {
	if msr == msrAPICBase {
		return 0xFEE00900, nil
	}
	return 0, errors.New("none")
}
func (f *fakeIO) WriteMSR(msr uint32, v uint64) error { return errors.New("none") }
func (f *fakeIO) Pending() bool {
	if f.onPending != nil {
		f.onPending()
	}
	return f.pending.Load()
}
func (f *fakeIO) TakeNMI() bool { return f.nmi.Swap(false) }
func (f *fakeIO) Acknowledge() (uint8, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.vectors) == 0 {
		f.pending.Store(false)
		return 0, false
	}
	v := f.vectors[0]
	f.vectors = f.vectors[1:]
	f.pending.Store(len(f.vectors) > 0)
	return v, true
}
func (f *fakeIO) CR8() uint64     { return f.cr8 }
func (f *fakeIO) SetCR8(v uint64) { f.cr8 = v }

func (f *fakeIO) raise(vector uint8) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vectors = append(f.vectors, vector)
	f.pending.Store(true)
}

type guest struct {
	*VCPU
	vm  *VM
	io  *fakeIO
	ram *mem.Memory
}

// withChip is newChipGuest's word to newGuest.
var withChip bool

// newGuest makes a CPU that is about to execute code.
func newGuest(t *testing.T, code ...byte) *guest {
	t.Helper()
	b, err := Open()
	if err != nil {
		t.Skip(err)
	}
	ram, err := mem.New(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	vm, err := b.NewVM(ram)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	if withChip {
		if err := vm.(*VM).CreateIRQChip(); err != nil {
			t.Fatal(err)
		}
	}
	io := &fakeIO{}
	cpu, err := vm.NewVCPU(0, io)
	if err != nil {
		t.Fatal(err)
	}
	if err := ram.WriteAt(code, codeAt); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	g := &guest{cpu.(*VCPU), vm.(*VM), io, ram}
	if err := g.SetState(realMode()); err != nil {
		t.Fatal(err)
	}
	return g
}

// realMode is a CPU in real mode at codeAt, with a stack below 0x8000.
func realMode() *x86.State {
	s := &x86.State{}
	s.RIP, s.RFLAGS, s.CR0 = codeAt, x86.Fixed, x86.CR0ET
	s.GPR[x86.RSP] = 0x8000
	data := x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed}
	for i := range s.Seg {
		s.Seg[i] = data
	}
	s.Seg[x86.CS].Access |= x86.SegCode
	s.LDTR = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | 2}
	s.TR = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | 11}
	s.IDTR = x86.Table{Limit: 0x3FF}
	s.GDTR = x86.Table{Limit: 0xFFFF}
	s.FPU.FCW, s.FPU.MXCSR = 0x37F, 0x1F80
	s.DR[6], s.DR[7] = 0xFFFF0FF0, 0x400
	return s
}

func (g *guest) runTo(t *testing.T, want hv.Exit) {
	t.Helper()
	got, err := g.Run()
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("Run gave %d, want %d", got, want)
	}
}

func (g *guest) state(t *testing.T) *x86.State {
	t.Helper()
	var s x86.State
	if err := g.State(&s); err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestPortsAndMemoryOfDevicesReachTheMachine(t *testing.T) {
	g := newGuest(t,
		0xB0, 0x42, // mov $0x42, %al
		0xE6, 0x10, // out %al, $0x10
		0xE4, 0x11, // in $0x11, %al
		0xE6, 0x12, // out %al, $0x12
		0x0F, 0x20, 0xC0, // mov %cr0, %eax
		0x66, 0xB8, 0xEF, 0xBE, 0xAD, 0xDE, // mov $0xDEADBEEF, %eax
		0x66, 0xE7, 0x14, // out %eax, $0x14
		0xB8, 0x00, 0xF0, 0x8E, 0xD8, // mov $0xF000, %ax; mov %ax, %ds
		0xA2, 0x34, 0x12, // mov %al, 0x1234
		0xA0, 0x35, 0x12, // mov 0x1235, %al
		0xE6, 0x13, // out %al, $0x13
		0xF4, // hlt
	)
	g.runTo(t, hv.Halted)
	if want := []uint32{0x10_0042, 0x12_0001, 0x14<<16 | 0xDEADBEEF, 0x13_0035}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
	if want := []mem.Addr{0xF1234}; !slices.Equal(g.io.writes, want) {
		t.Errorf("device memory written at %#x, want %#x", g.io.writes, want)
	}
	if s := g.state(t); s.MP != x86.Halted {
		t.Errorf("state %d after HLT, want %d", s.MP, x86.Halted)
	}
}

func TestStringsOfPortsComeItemByItem(t *testing.T) {
	g := newGuest(t,
		0xBF, 0x00, 0x20, 0xB9, 0x05, 0x00, 0xBA, 0x10, 0x00, // mov $0x2000, %di; mov $5, %cx; mov $0x10, %dx
		0xFC, 0xF3, 0x6C, // cld; rep insb
		0xBE, 0x00, 0x20, 0xB9, 0x05, 0x00, 0xF3, 0x6E, // mov $0x2000, %si; mov $5, %cx; rep outsb
		0xF4,
	)
	g.runTo(t, hv.Halted)
	if want := []uint32{0x10_0001, 0x10_0002, 0x10_0003, 0x10_0004, 0x10_0005}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
}

func TestHaltLastsUntilAnInterruptIsTaken(t *testing.T) {
	g := newGuest(t,
		0xFA, 0xF4, // cli; hlt
		0xB0, 1, 0xE6, 0x10, 0xF4, // not reached
	)
	g.ram.Store32(0x20*4, 0x1100)
	g.ram.WriteAt([]byte{0xB0, 2, 0xE6, 0x10, 0xF4}, 0x1100)
	g.runTo(t, hv.Halted)
	g.runTo(t, hv.Halted)
	g.io.raise(0x20)
	g.runTo(t, hv.Halted) // interrupts are off
	if len(g.io.outs) != 0 {
		t.Fatalf("the guest went on: %#x", g.io.outs)
	}
	s := g.state(t)
	s.RFLAGS |= x86.IF
	if err := g.SetState(s); err != nil {
		t.Fatal(err)
	}
	g.runTo(t, hv.Halted)
	if want := []uint32{0x10_0002}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
}

func TestInterruptsWaitForTheWindow(t *testing.T) {
	g := newGuest(t,
		0xFA, 0xB0, 1, 0xE6, 0x10, // cli; out 1
		0xB0, 2, 0xE6, 0x10, // out 2: nothing is taken yet
		0xFB, 0xEB, 0xFE, // sti; jmp .
	)
	g.ram.Store32(0x30*4, 0x1100)
	g.ram.WriteAt([]byte{0xB0, 9, 0xE6, 0x10, 0xF4}, 0x1100) // out 9; hlt
	g.io.onOut = func(_ uint16, p []byte) {
		if p[0] == 1 {
			g.io.raise(0x30)
		}
	}
	g.runTo(t, hv.Halted)
	if want := []uint32{0x10_0001, 0x10_0002, 0x10_0009}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
}

func TestNMIEndsAHaltWithInterruptsOff(t *testing.T) {
	g := newGuest(t, 0xFA, 0xF4, 0xB0, 1, 0xE6, 0x10, 0xF4)
	g.ram.Store32(2*4, 0x1100)
	g.ram.WriteAt([]byte{0xB0, 2, 0xE6, 0x10, 0xCF}, 0x1100)
	g.runTo(t, hv.Halted)
	g.io.nmi.Store(true)
	g.io.pending.Store(true)
	g.runTo(t, hv.Halted)
	if want := []uint32{0x10_0002, 0x10_0001}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
}

func TestAfterAKickNoAccessIsPending(t *testing.T) {
	g := newGuest(t,
		0xE4, 0x10, // in $0x10, %al
		0xE6, 0x11, // out %al, $0x11
		0xF4,
	)
	g.io.onOut = func(uint16, []byte) { g.Kick() }
	g.runTo(t, hv.Kicked)
	s := g.state(t)
	if s.RIP != codeAt+4 || s.GPR[x86.RAX]&0xFF != 1 {
		t.Errorf("RIP %#x AL %#x, want %#x and 1", s.RIP, s.GPR[x86.RAX]&0xFF, codeAt+4)
	}
	g.io.onOut = nil
	g.runTo(t, hv.Halted)
	if len(g.io.outs) != 1 {
		t.Errorf("out: %#x, want one", g.io.outs)
	}
}

func TestKickBeforeRunIsKept(t *testing.T) {
	g := newGuest(t, 0xEB, 0xFE) // jmp .
	g.Kick()
	g.runTo(t, hv.Kicked)
}

// TestNoKickIsLost kicks a CPU at all points of its way into the guest and out: in each round the kicker waits a little longer or shorter, up to what
// an exit takes. A kick that is lost hangs the test: nothing else gets the CPU out.
func TestNoKickIsLost(t *testing.T) {
	const kicks = 1500
	for _, c := range []struct {
		name string
		chip bool
		code []byte
	}{
		{"at accesses", false, []byte{0xE4, 0x10, 0xEB, 0xFC}}, // in $0x10, %al; jmp
		{"in a loop", false, []byte{0xEB, 0xFE}},               // jmp .
		{"asleep", true, []byte{0xFA, 0xF4, 0xEB, 0xFD}},       // cli; hlt; jmp
	} {
		t.Run(c.name, func(t *testing.T) {
			withChip = c.chip
			defer func() { withChip = false }()
			g := newGuest(t, c.code...)
			var round atomic.Int64
			go func() {
				for i := range int64(kicks) {
					for n := 1; round.Load() != i+1; n++ {
						if n%4096 == 0 {
							unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // there may be one processor only
						}
					}
					for range i * 37 % 1024 { // about a nanosecond each
						round.Load()
					}
					g.Kick()
				}
			}()
			for range kicks {
				round.Add(1)
				g.runTo(t, hv.Kicked)
			}
		})
	}
}

// TestAKickBetweenTheLookAndTheEntryIsNotLost kicks where the signal comes too early and the look was too late: what is left is immediate_exit.
func TestAKickBetweenTheLookAndTheEntryIsNotLost(t *testing.T) {
	g := newGuest(t, 0xEB, 0xFE) // jmp .
	for range 100 {
		g.io.onPending = func() { g.io.onPending = nil; g.Kick() } // Run asks it behind its look at kicks
		g.runTo(t, hv.Kicked)
	}
}

func TestKickAfterCloseDoesNothing(t *testing.T) {
	g := newGuest(t, 0xF4)
	g.runTo(t, hv.Halted)
	done := make(chan bool)
	go func() {
		for range 10000 {
			g.Kick()
		}
		close(done)
	}()
	g.vm.Close()
	<-done
	g.Kick()
}

func TestStateGoesToANewVM(t *testing.T) {
	code := []byte{0xE6, 0x10, 0x40, 0xE6, 0x10, 0xF4} // out %al; inc %ax; out %al; hlt
	g := newGuest(t, code...)
	s := g.state(t)
	for i := range s.GPR {
		s.GPR[i] += uint64(i) * 0x1111
	}
	s.GPR[x86.RAX], s.GPR[x86.RSP] = 7, 0x7000
	s.KernelGSBase, s.LSTAR = 0xFFFF8000_00001000, 0xFFFF8000_00002000
	s.MSR[0xC0000081] = 0x23<<48 | 0x10<<32 // STAR
	s.FPU.FCW, s.FPU.FSW, s.FPU.FTW = 0x27F, 3<<11, 0x18
	s.FPU.R[3] = x86.F80{Mant: 1 << 63, SE: 0x3FFF}
	s.FPU.R[4] = x86.F80{Mant: 3 << 62, SE: 0xC000}
	for i := range s.FPU.Vec {
		s.FPU.Vec[i] = x86.YMM{uint64(i), 2, 3, 4}
		if g.xcr0&4 == 0 {
			s.FPU.Vec[i][2], s.FPU.Vec[i][3] = 0, 0
		}
	}
	s.DR[0], s.DR[7] = 0x1234, 0x400
	s.NMIMasked = true
	s.TSC += 1e12
	if err := g.SetState(s); err != nil {
		t.Fatal(err)
	}
	g.io.onOut = func(uint16, []byte) { g.Kick() }
	g.runTo(t, hv.Kicked)
	first := g.state(t)
	h := newGuest(t, code...)
	if err := h.SetState(first); err != nil {
		t.Fatal(err)
	}
	second := h.state(t)
	if second.TSC < first.TSC || second.TSC > first.TSC+10*g.vm.b.tscHz {
		t.Errorf("TSC %d became %d", first.TSC, second.TSC)
	}
	if second.MSR[Clock] < first.MSR[Clock] {
		t.Errorf("kvm-clock %d became %d", first.MSR[Clock], second.MSR[Clock])
	}
	if tsc := h.TSC(); tsc < second.TSC || tsc > second.TSC+10*g.vm.b.tscHz {
		t.Errorf("TSC() = %d after a state with %d", tsc, second.TSC)
	}
	second.TSC = first.TSC
	for _, s := range []*x86.State{first, second} {
		delete(s.MSR, Clock)
		delete(s.MSR, 0x3B) // TSC_ADJUST follows the TSC
	}
	a, b := reflect.ValueOf(*first), reflect.ValueOf(*second)
	for i := range a.NumField() {
		if x, y := a.Field(i).Interface(), b.Field(i).Interface(); !reflect.DeepEqual(x, y) {
			t.Errorf("%s: %+v became %+v", a.Type().Field(i).Name, x, y)
		}
	}
	h.runTo(t, hv.Halted)
	if want := []uint32{0x10_0008}; !slices.Equal(h.io.outs, want) {
		t.Errorf("out: %#x, want %#x", h.io.outs, want)
	}
}

func TestSampleLeavesTheGuestRunning(t *testing.T) {
	g := newGuest(t, 0xEB, 0xFE) // jmp .
	var r x86.Regs
	if g.Sample(&r) {
		t.Error("a sample of a CPU that does not run")
	}
	go func() {
		defer g.Kick()
		for n := 0; n < 100; {
			var r x86.Regs
			if !g.Sample(&r) {
				runtime.Gosched()
				continue
			}
			if n++; r.RIP != codeAt || r.GPR[x86.RSP] != 0x8000 {
				t.Errorf("RIP %#x RSP %#x", r.RIP, r.GPR[x86.RSP])
				return
			}
		}
	}()
	g.runTo(t, hv.Kicked)
}

func TestDirtyLogFindsEveryPageTheGuestWrote(t *testing.T) {
	g := newGuest(t,
		0xA2, 0x00, 0x30, // mov %al, 0x3000
		0xF4,
		0xA2, 0x05, 0x50, 0xA2, 0x05, 0x70, // mov %al, 0x5005; mov %al, 0x7005
		0xF4,
	)
	g.runTo(t, hv.Halted)
	if err := g.vm.TakeDirtyLog(func(mem.Addr) {}); err == nil {
		t.Error("a log that was not started can be taken")
	}
	if err := g.vm.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	take := func() (pages []mem.Addr) {
		t.Helper()
		if err := g.vm.TakeDirtyLog(func(a mem.Addr) { pages = append(pages, a) }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(pages)
		return pages
	}
	if got := take(); len(got) != 0 {
		t.Errorf("pages %#x before anything was written", got)
	}
	s := g.state(t)
	s.MP, s.RIP = x86.Runnable, codeAt+4
	if err := g.SetState(s); err != nil {
		t.Fatal(err)
	}
	g.runTo(t, hv.Halted)
	g.ram.Store64(0x7000, 1) // a device, in the same page
	g.ram.Store64(0x9000, 1)
	if got, want := take(), []mem.Addr{0x5000, 0x7000, 0x9000}; !slices.Equal(got, want) {
		t.Errorf("pages %#x, want %#x", got, want)
	}
	if got := take(); len(got) != 0 {
		t.Errorf("pages %#x again", got)
	}
	if err := g.vm.StopDirtyLog(); err != nil {
		t.Fatal(err)
	}
}

func TestTripleFaultIsAShutdown(t *testing.T) {
	g := newGuest(t, 0x0F, 0x0B) // ud2
	if err := g.vm.b.Stock(); err != nil {
		t.Skip(err, "; such a one may not look at the IDT's limit")
	}
	s := realMode()
	s.IDTR.Limit = 0
	if err := g.SetState(s); err != nil {
		t.Fatal(err)
	}
	g.runTo(t, hv.Shutdown)
}

func TestFailuresTellRegistersAndCode(t *testing.T) {
	stock := newGuest(t).vm.b.Stock() == nil
	for _, c := range []struct {
		name   string
		stock  bool // the KVM on which it fails
		code   []byte
		change func(s *x86.State)
		fault  hv.Fault
		rip    uint64
		at     []byte // the code in the report
	}{
		{"an instruction that is not known", false, guestCode, nil, hv.Emulation, codeAt, guestCode},
		{"code where there is no memory", true, []byte{0xEA, 0, 0, 0, 0xF0}, nil, hv.Emulation, 0, nil}, // ljmp $0xF000, $0
		{"a state that no processor has", true, []byte{0xF4}, func(s *x86.State) {
			s.CR0 |= x86.CR0PE | x86.CR0PG
			s.CR4 |= x86.CR4PAE
			s.EFER |= x86.EFERLME | x86.EFERLMA
			s.Seg[x86.CS].Access |= x86.SegLong | x86.SegBig // AMD APM vol. 2 15.5.1: illegal
		}, hv.Entry, codeAt, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.stock != stock {
				t.Skip("this KVM does otherwise")
			}
			g := newGuest(t, c.code...)
			if c.fault == hv.Entry && g.vm.b.vendor() != "AuthenticAMD" {
				t.Skip("the state is one that AMD's processors refuse")
			}
			if c.change != nil {
				s := realMode()
				c.change(s)
				if err := g.SetState(s); err != nil {
					t.Fatal(err)
				}
			}
			_, err := g.Run()
			var f *hv.Failure
			if !errors.As(err, &f) {
				t.Fatalf("Run: %v", err)
			}
			if f.Fault == hv.Entry {
				// QEMU, whose emulated processor refuses it in the nested runs, leaves another RIP.
				c.rip, c.at = f.Regs.RIP, nil
			}
			if f.Fault != c.fault || f.Regs.RIP != c.rip || !bytes.HasPrefix(f.Code, c.at) {
				t.Errorf("fault %d at %#x, code % x: want %d, %#x, % x", f.Fault, f.Regs.RIP, f.Code, c.fault, c.rip, c.at)
			}
			if strings.Contains(f.Error(), "\n") {
				t.Errorf("an error of several lines: %v", f)
			}
			t.Logf("%v\n%s", f, f.Report())
		})
	}
}

func TestCountersCountExits(t *testing.T) {
	g := newGuest(t, 0xE6, 0x10, 0xE6, 0x10, 0xF4)
	g.runTo(t, hv.Halted)
	got := map[string]uint64{}
	g.Counters(func(name string, v uint64) { got[name] = v })
	if got["exits_port"] != 2 || got["exits_hlt"] != 1 || got["exits_port_ns"] == 0 {
		t.Errorf("counters %v", got)
	}
	if n, ok := got["kvm_exits"]; ok && n == 0 {
		t.Errorf("KVM counts no exit: %v", got)
	} else if !ok {
		t.Log("this KVM has no statistics")
	}
}

func TestCPUIDPlacesEachCPU(t *testing.T) {
	b := &Backend{tscHz: 2_345_000_000, ownMSRs: true, cpuid: []cpuidEntry{
		{leaf: 0, a: 0x16, b: 0x756E6547, d: 0x49656E69, c: 0x6C65746E},
		{leaf: 1, b: 8 << 8, c: 1 << 5, d: 1 << 28}, {leaf: 4, sub: 3, a: 3 | 3<<5}, {leaf: 0xA, a: 0x0702}, {leaf: leafFeatures, a: ^uint32(0)},
	}}
	find := func(list []cpuidEntry, leaf, sub uint32) cpuidEntry {
		for _, e := range list {
			if e.leaf == leaf && e.sub == sub {
				return e
			}
		}
		t.Errorf("no leaf %#x.%d", leaf, sub)
		return cpuidEntry{}
	}
	l := b.guestCPUID(2, 3, b.tscHz, false)
	if e := find(l, 1, 0); e.b != 2<<24|4<<16|8<<8 || e.c != 1<<31|1<<21|1<<24 || e.d != 1<<28 {
		t.Errorf("leaf 1: %#x", e)
	}
	if e := find(l, 0xB, 1); e.a != 2 || e.b != 3 || e.d != 2 {
		t.Errorf("leaf 0xB: %#x", e)
	}
	if e := find(l, 4, 3); e.a != 3|3<<5|3<<14|3<<26 {
		t.Errorf("leaf 4: %#x", e)
	}
	if e := find(l, 0xA, 0); e.a != 0 {
		t.Errorf("leaf 0xA: %#x", e)
	}
	if e := find(l, 0x15, 0); uint64(e.c)*uint64(e.b)/uint64(e.a) != b.tscHz {
		t.Errorf("leaf 0x15: %#x", e)
	}
	if e := find(l, leafFeatures, 0); e.a != kvmFeatures {
		t.Errorf("features %#x", e.a)
	}
	if e := find(b.guestCPUID(0, 1, b.tscHz, false), 1, 0); e.d != 0 {
		t.Errorf("HTT with one CPU: %#x", e)
	}
}

func FuzzStatsDescriptions(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, p []byte) {
		describe(func(q []byte, at int64) error {
			if at > int64(len(p)) || int64(len(q)) > int64(len(p))-at {
				return errors.New("short")
			}
			copy(q, p[at:])
			return nil
		})
	})
}

func FuzzFPUArea(f *testing.F) {
	f.Add(make([]byte, 832))
	f.Fuzz(func(t *testing.T, p []byte) {
		area := make([]byte, 4096)
		copy(area, p)
		binary.LittleEndian.PutUint64(area[xstateBV:], 7)
		var first, second x86.FPU
		fpuFromArea(area, &first)
		clear(area)
		fpuToArea(&first, area, 7)
		fpuFromArea(area, &second)
		if first != second {
			t.Fatalf("%+v became %+v", first, second)
		}
	})
}

func TestGuestsXCR0IsSeen(t *testing.T) {
	g := newGuest(t,
		0x0F, 0x20, 0xE0, 0x66, 0x0D, 0, 0, 4, 0, 0x0F, 0x22, 0xE0, // mov %cr4, %eax; or $OSXSAVE, %eax; mov %eax, %cr4
		0x66, 0x31, 0xC9, 0x66, 0x31, 0xD2, 0x66, 0xB8, 3, 0, 0, 0, // xor %ecx, %ecx; xor %edx, %edx; mov $3, %eax
		0x0F, 0x01, 0xD1, // xsetbv
		0x0F, 0x01, 0xD0, 0xE6, 0x10, // xgetbv; out %al, $0x10
		0x0F, 0x01, 0xD0, 0xE6, 0x10, // again
		0xF4,
	)
	if err := g.vm.b.Stock(); err != nil {
		t.Skip(err, "; such a one does not emulate XSETBV")
	}
	if g.xcr0&2 == 0 {
		t.Skip("this host has no XSAVE")
	}
	g.runTo(t, hv.Halted)
	if want := []uint32{0x10_0003, 0x10_0003}; !slices.Equal(g.io.outs, want) {
		t.Errorf("XGETBV gave %#x, want %#x", g.io.outs, want)
	}
	if s := g.state(t); s.XCR0 != 3 {
		t.Errorf("XCR0 = %d in the state, want 3", s.XCR0)
	}
}

// newChipGuest is newGuest with interrupt controllers in the kernel.
func newChipGuest(t *testing.T, code ...byte) *guest {
	t.Helper()
	withChip = true
	defer func() { withChip = false }()
	return newGuest(t, code...)
}

// awaitSleep returns when the CPU, which is about to run, has halted: then there is no sample.
func (g *guest) awaitSleep() {
	for {
		g.mu.Lock()
		running := g.running
		g.mu.Unlock()
		var r x86.Regs
		if running && !g.Sample(&r) {
			return
		}
		time.Sleep(time.Millisecond) // samples without a pause would not let the guest get on
	}
}

func TestKernelsLAPICEndsAHalt(t *testing.T) {
	g := newChipGuest(t, 0xFA, 0xF4, 0xB0, 1, 0xE6, 0x10, 0xF4) // cli; hlt; out 1; hlt
	g.ram.Store32(2*4, 0x1100)
	g.ram.WriteAt([]byte{0xB0, 2, 0xE6, 0x10, 0xCF}, 0x1100) // out 2; iret
	g.io.onOut = func(_ uint16, p []byte) {
		if p[0] == 1 {
			g.Kick()
		}
	}
	go func() {
		g.awaitSleep()
		g.vm.SignalMSI(0xFEE00000, 4<<8) // an NMI to CPU 0
	}()
	g.runTo(t, hv.Kicked)
	if want := []uint32{0x10_0002, 0x10_0001}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
}

func TestKernelsPICInterruptsByTheBoardsWires(t *testing.T) {
	g := newChipGuest(t,
		0xB0, 0x11, 0xE6, 0x20, 0xB0, 0x30, 0xE6, 0x21, // ICW1; ICW2: vectors from 0x30
		0xB0, 0x04, 0xE6, 0x21, 0xB0, 0x01, 0xE6, 0x21, // ICW3, ICW4
		0xB0, 0xEE, 0xE6, 0x21, // all masked but 0 and 4
		0xB0, 7, 0xE6, 0x10, // out 7
		0xFB, 0xF4, 0xEB, 0xFD, // sti; hlt; jmp
	)
	for i, vector := range []uint32{0x30, 0x34} {
		at := 0x1100 + uint32(i)*0x20
		g.ram.Store32(mem.Addr(vector*4), at)
		g.ram.WriteAt([]byte{0xB0, 0x20, 0xE6, 0x20, 0xB0, byte(vector), 0xE6, 0x10, 0xCF}, mem.Addr(at)) // EOI; out vector; iret
	}
	g.io.onOut = func(_ uint16, p []byte) {
		switch p[0] {
		case 7:
			if !g.vm.SetLine(2, true) { // the timer's wire: PIC input 0, I/O APIC pin 2
				t.Error("an edge was not seen")
			}
			g.vm.SetLine(2, false)
		case 0x30:
			g.vm.SetLine(4, true)
		case 0x34:
			g.Kick()
		}
	}
	g.runTo(t, hv.Kicked)
	if want := []uint32{0x10_0007, 0x10_0030, 0x10_0034}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
}

func TestStateWithLAPICGoesToANewVM(t *testing.T) {
	g := newChipGuest(t, 0xFA, 0xF4) // cli; hlt
	go func() {
		g.awaitSleep()
		g.Kick()
	}()
	g.runTo(t, hv.Kicked)
	first := g.state(t)
	if len(first.LAPIC) == 0 || first.MP != x86.Halted {
		t.Fatalf("%d bytes of LAPIC, state %d", len(first.LAPIC), first.MP)
	}
	chip, err := g.vm.ChipState()
	if err != nil {
		t.Fatal(err)
	}
	h := newChipGuest(t)
	if err := h.vm.SetChipState(chip); err != nil {
		t.Fatal(err)
	}
	if err := h.SetState(first); err != nil {
		t.Fatal(err)
	}
	second := h.state(t)
	if !slices.Equal(first.LAPIC, second.LAPIC) || second.MP != first.MP || second.MSR[msrAPICBase] != first.MSR[msrAPICBase] {
		t.Errorf("LAPIC % x, state %d became % x, %d", first.LAPIC, first.MP, second.LAPIC, second.MP)
	}
	if again, err := h.vm.ChipState(); err != nil || !slices.Equal(chip, again) {
		t.Errorf("chips % x became % x, %v", chip, again, err)
	}
	if err := h.vm.SetChipState(chip[1:]); err == nil {
		t.Error("a state that is too short is taken")
	}
}

func TestDoorbellsRingWithoutTheMachine(t *testing.T) {
	g := newGuest(t,
		0xB8, 0x00, 0xF0, 0x8E, 0xD8, // mov $0xF000, %ax; mov %ax, %ds
		0xA2, 0x34, 0x12, 0xA3, 0x34, 0x12, // mov %al, 0x1234; mov %ax, 0x1234
		0xA2, 0x38, 0x12, // mov %al, 0x1238
		0xE6, 0x10, // out %al, $0x10
		0xA2, 0x34, 0x12, // mov %al, 0x1234
		0xF4,
	)
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if !g.vm.b.bells {
		t.Skip("this KVM has none")
	}
	if err := g.vm.AddDoorbell(0xF1234, fd); err != nil {
		t.Fatal(err)
	}
	if g.vm.AddDoorbell(0xF1234, fd) == nil {
		t.Error("two doorbells at one address")
	}
	g.io.onOut = func(uint16, []byte) {
		if err := g.vm.RemoveDoorbell(0xF1234, fd); err != nil {
			t.Error(err)
		}
	}
	g.runTo(t, hv.Halted)
	var n [8]byte
	unix.Read(fd, n[:])
	if n[0] != 2 {
		t.Errorf("rung %d times, want twice", n[0])
	}
	if want := []mem.Addr{0xF1238, 0xF1234}; !slices.Equal(g.io.writes, want) {
		t.Errorf("the machine saw writes at %#x, want %#x", g.io.writes, want)
	}
}

func TestMessagesAreSentByEventCounters(t *testing.T) {
	g := newChipGuest(t, 0xFA, 0xF4, 0xB0, 1, 0xE6, 0x10, 0xF4) // cli; hlt; out 1; hlt
	g.ram.Store32(2*4, 0x1100)
	g.ram.WriteAt([]byte{0xB0, 2, 0xE6, 0x10, 0xCF}, 0x1100) // out 2; iret
	first, err := g.vm.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m, err := g.vm.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	first.Send() // goes nowhere
	if err := errors.Join(first.Set(0xFEE00000, 0x40), m.Set(0xFEE00000, 0x41), m.Set(0xFEE00000, 4<<8)); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil { // the route of the other one moves in the table
		t.Fatal(err)
	}
	g.io.onOut = func(_ uint16, p []byte) {
		if p[0] == 1 {
			g.Kick()
		}
	}
	go func() {
		g.awaitSleep()
		m.Send() // an NMI to CPU 0
	}()
	g.runTo(t, hv.Kicked)
	if want := []uint32{0x10_0002, 0x10_0001}; !slices.Equal(g.io.outs, want) {
		t.Errorf("out: %#x, want %#x", g.io.outs, want)
	}
	again, err := g.vm.NewMessage()
	if err != nil || again.(*message).gsi != first.(*message).gsi {
		t.Errorf("the number of a closed message is not used again: %v", err)
	}
	if err := errors.Join(again.Close(), m.Close()); err != nil {
		t.Error(err)
	}
}

func TestThereAreNoMoreMessagesThanRoutes(t *testing.T) {
	g := newChipGuest(t)
	g.vm.routes.next = ioPins + maxMessages
	if _, err := g.vm.NewMessage(); err == nil {
		t.Error("a message beyond the last number")
	}
}

func TestCPUIDOffersWhatTheChipsAddOnlyWithThem(t *testing.T) {
	b := &Backend{cpuid: []cpuidEntry{{leaf: 0, a: 1}, {leaf: leafFeatures, a: ^uint32(0)}}}
	for _, chip := range []bool{false, true} {
		for _, e := range b.guestCPUID(0, 1, 1e9, chip) {
			want := uint32(kvmFeatures)
			if chip {
				want |= chipFeatures
			}
			if e.leaf == leafFeatures && e.a != want {
				t.Errorf("with chips %v: features %#x, want %#x", chip, e.a, want)
			}
		}
	}
}

func TestWhatCPUIDHidesIsNoMSR(t *testing.T) {
	for _, chip := range []bool{false, true} {
		make := newGuest
		if chip {
			make = newChipGuest
		}
		g := make(t,
			0x66, 0xB9, 0x17, 0x01, 0x01, 0xC0, // mov $0xC0010117, %ecx: VM_HSAVE_PA
			0x0F, 0x32, // rdmsr
			0xB0, 1, 0xE6, 0x10, 0xF4, // out 1; hlt
		)
		if g.vm.b.has(capMSRFilter) == 0 || g.vm.b.vendor() != "AuthenticAMD" {
			t.Skip("this KVM has no MSR filter, or none of the MSR")
		}
		g.ram.Store32(13*4, 0x1100)
		g.ram.WriteAt([]byte{0xB0, 13, 0xE6, 0x10, 0xF4}, 0x1100) // out 13; hlt
		g.io.onOut = func(uint16, []byte) { g.Kick() }
		g.runTo(t, hv.Kicked)
		if want := []uint32{0x10_000D}; !slices.Equal(g.io.outs, want) {
			t.Errorf("with chips %v: out %#x, want #GP", chip, g.io.outs)
		}
	}
}

func TestTSCOfAnotherRateIsScaledOrRefused(t *testing.T) {
	g := newChipGuest(t, 0xF4)
	s := g.state(t)
	if s.TSCHz != g.vm.b.tscHz {
		t.Errorf("the state's rate is %d, want %d", s.TSCHz, g.vm.b.tscHz)
	}
	s.TSCHz += s.TSCHz / 100_000 // 10 ppm: the same
	if err := g.SetState(s); err != nil || g.tscHz != g.vm.b.tscHz {
		t.Errorf("a rate that is nearly the same: %v, %d", err, g.tscHz)
	}
	h := newChipGuest(t, 0xF4)
	s.TSCHz = g.vm.b.tscHz / 2
	err := h.SetState(s)
	switch scales := g.vm.b.has(capTSCControl) != 0; {
	case scales && (err != nil || h.tscHz != s.TSCHz):
		t.Errorf("this host scales, and says %v, %d", err, h.tscHz)
	case !scales && (err == nil || !strings.Contains(err.Error(), "MHz")):
		t.Errorf("this host does not scale, and says %v", err)
	}
}
