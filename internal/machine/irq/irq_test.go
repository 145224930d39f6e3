package irq

import (
	"bytes"
	"encoding/gob"
	"math/rand/v2"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/machine/clock"
)

// fakeCPU notes what its local APIC tells it.
type fakeCPU struct {
	wakes, inits int
	sipi         []uint8
}

func (f *fakeCPU) Wake()           { f.wakes++ }
func (f *fakeCPU) Init()           { f.inits++ }
func (f *fakeCPU) Startup(v uint8) { f.sipi = append(f.sipi, v) }

type board struct {
	*Chips
	clk  *clock.Clock
	cpus []*fakeCPU
}

const tscHz = 2_000_000_000

func newBoard(n int) *board {
	b := &board{clk: clock.NewFake()}
	cfg := Config{Clock: b.clk, TSCHz: tscHz, TSC: func(int) uint64 { return uint64(b.clk.Now()) * 2 }}
	for range n {
		f := &fakeCPU{}
		b.cpus = append(b.cpus, f)
		cfg.CPUs = append(cfg.CPUs, f)
	}
	b.Chips = New(cfg)
	return b
}

// enable does what a kernel does first: the APICs on, all flat-logical ids set.
func (b *board) enable() {
	for i, l := range b.LAPIC {
		l.write(regSVR, 0x1FF)
		l.write(regLDR, 1<<(24+i))
	}
}

func (b *board) redirect(pin int, e uint64) {
	b.ioWrite(ioRedir+uint8(2*pin)+1, uint32(e>>32))
	b.ioWrite(ioRedir+uint8(2*pin), uint32(e))
}

func (b *board) ioWrite(reg uint8, v uint32) {
	b.IOAPIC.Write(ioRegSel, []byte{reg, 0, 0, 0})
	b.IOAPIC.Write(ioWin, []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

func wantVector(t *testing.T, l *LAPIC, want int) {
	t.Helper()
	v, ok := l.Acknowledge()
	if !ok {
		v = 0
	}
	if int(v) != want {
		t.Errorf("CPU %d acknowledged %#x, want %#x (0: none)", l.id, v, want)
	}
}

func TestPICReachesTheBootCPUBeforeItsLAPICIsEnabled(t *testing.T) {
	b := newBoard(2)
	initPIC(b.PIC)
	b.PIC.Ports(0).Write(1, []byte{0xFA}) // inputs 0 and 2
	line := b.ISA(0)
	line.Set(true)
	if !b.LAPIC[0].Pending() || b.LAPIC[1].Pending() {
		t.Fatalf("pending %v %v, want CPU 0 alone", b.LAPIC[0].Pending(), b.LAPIC[1].Pending())
	}
	wantVector(t, b.LAPIC[0], 0x30)
	line.Set(false)
	line.Set(true)
	wantVector(t, b.LAPIC[0], 0) // in service
	b.PIC.Ports(0).Write(0, []byte{0x20})
	wantVector(t, b.LAPIC[0], 0x30)
}

// initPIC is Linux's init_8259A: vectors 0x30 and 0x38, everything masked.
func initPIC(p *PIC) {
	for i, w := range [][]byte{{0x11, 0x30, 4, 1}, {0x11, 0x38, 2, 1}} {
		p.Ports(i).Write(0, w[:1])
		for _, v := range w[1:] {
			p.Ports(i).Write(1, []byte{v})
		}
		p.Ports(i).Write(1, []byte{0xFF})
	}
}

func TestSlaveInterruptNeedsTwoEOIs(t *testing.T) {
	b := newBoard(1)
	initPIC(b.PIC)
	b.PIC.Ports(0).Write(1, []byte{0x00})
	b.PIC.Ports(1).Write(1, []byte{0x00})
	rtc, mouse := b.ISA(8), b.ISA(12)
	mouse.Set(true)
	wantVector(t, b.LAPIC[0], 0x3C)
	rtc.Set(true)
	wantVector(t, b.LAPIC[0], 0) // more urgent, but the master holds the slave's input in service
	b.PIC.Ports(1).Write(0, []byte{0x64})
	b.PIC.Ports(0).Write(0, []byte{0x62})
	wantVector(t, b.LAPIC[0], 0x38)
}

func TestPICPollRotationAndSpecialMask(t *testing.T) {
	b := newBoard(1)
	initPIC(b.PIC)
	m := b.PIC.Ports(0)
	m.Write(1, []byte{0})
	l3, l4 := b.ISA(3), b.ISA(4)
	l3.Set(true)
	l4.Set(true)
	m.Write(0, []byte{0xC3}) // lowest priority is 3, so 4 comes first
	wantVector(t, b.LAPIC[0], 0x34)
	m.Write(0, []byte{0x68}) // special mask mode
	m.Write(1, []byte{0x10})
	m.Write(0, []byte{0x0C}) // poll
	var p [1]byte
	m.Read(0, p[:])
	if p[0] != 0x83 {
		t.Errorf("poll gave %#x, want 0x83", p[0])
	}
	m.Write(0, []byte{0x0B})
	if m.Read(0, p[:]); p[0] != 0x18 {
		t.Errorf("ISR %#x, want 0x18", p[0])
	}
}

func TestLevelLineInterruptsAgainAfterEOI(t *testing.T) {
	b := newBoard(1)
	b.enable()
	b.redirect(16, redirLevel|0x41)
	a, c := b.GSI(16), b.GSI(16)
	a.Set(true)
	c.Set(true)
	l := b.LAPIC[0]
	wantVector(t, l, 0x41)
	wantVector(t, l, 0)
	a.Set(false) // the wire is still high by c
	l.write(regEOI, 0)
	wantVector(t, l, 0x41)
	c.Set(false)
	l.write(regEOI, 0)
	wantVector(t, l, 0)
	if b.IOAPIC.redir[16]&redirRemoteIRR != 0 {
		t.Error("remote IRR stayed")
	}
	a.Set(true)
	b.IOAPIC.Write(ioEOI, []byte{0x41, 0, 0, 0}) // directed: delivers anew into the IRR
	wantVector(t, l, 0x41)
}

func TestEdgeAtAMaskedPinIsLost(t *testing.T) {
	b := newBoard(1)
	b.enable()
	b.redirect(4, redirMasked|0x44)
	l := b.ISA(4)
	l.Set(true)
	b.redirect(4, 0x44)
	wantVector(t, b.LAPIC[0], 0)
	l.Set(false)
	l.Set(true)
	wantVector(t, b.LAPIC[0], 0x44)
}

func TestRaiseTellsWhetherAnEdgeWasSeen(t *testing.T) {
	b := newBoard(1)
	b.enable()
	b.redirect(2, 0x30)
	pulse := func() bool {
		l := b.ISA(0).(*input)
		defer l.Set(false)
		return l.Raise()
	}
	for i, want := range []bool{true, false, false} {
		if got := pulse(); got != want {
			t.Errorf("edge %d before it is taken: seen %v, want %v", i, got, want)
		}
	}
	wantVector(t, b.LAPIC[0], 0x30)
	if !pulse() {
		t.Error("an edge while one is in service waits in the IRR: it is seen")
	}
	b.redirect(2, redirMasked)
	if !pulse() {
		t.Error("a masked edge is not owed")
	}
	initPIC(b.PIC)
	b.PIC.Ports(0).Write(1, []byte{0xFE})
	if !pulse() || pulse() {
		t.Error("the PIC: the first edge is seen, the second is not")
	}
}

func TestHigherClassInterruptsLowerAndTPRHoldsBack(t *testing.T) {
	b := newBoard(1)
	b.enable()
	l := b.LAPIC[0]
	send := func(v uint32) { b.SignalMSI(0xFEE00000, v) }
	send(0x51)
	wantVector(t, l, 0x51)
	send(0x5F) // the same class
	if wantVector(t, l, 0); l.Pending() {
		t.Error("pending with the same class in service")
	}
	send(0x61)
	wantVector(t, l, 0x61)
	l.write(regEOI, 0)
	l.SetCR8(5)
	l.write(regEOI, 0)
	wantVector(t, l, 0)
	l.SetCR8(4)
	if !l.Pending() || l.CR8() != 4 {
		t.Errorf("pending %v CR8 %d after lowering it", l.Pending(), l.CR8())
	}
	wantVector(t, l, 0x5F)
}

func TestDestinations(t *testing.T) {
	for _, c := range []struct {
		name string
		x2   bool
		dfr  uint32
		ldr  [4]uint32
		m    message
		want uint // a bit a CPU
	}{
		{name: "physical", m: message{dest: 2}, want: 1 << 2},
		{name: "physical broadcast", m: message{dest: 0xFF}, want: 0xF},
		{name: "nobody", m: message{dest: 9}, want: 0},
		{name: "flat", dfr: 0xFFFFFFFF, ldr: [4]uint32{1, 2, 4, 8}, m: message{logical: true, dest: 6}, want: 6},
		{name: "cluster", ldr: [4]uint32{0x11, 0x12, 0x21, 0x22}, m: message{logical: true, dest: 0x23}, want: 0xC},
		{name: "x2APIC logical", x2: true, m: message{logical: true, x2: true, dest: 0b1010}, want: 0b1010},
		{name: "x2APIC other cluster", x2: true, m: message{logical: true, x2: true, dest: 1<<16 | 3}, want: 0},
		{name: "x2APIC by MSI", x2: true, m: message{logical: true, dest: 3}, want: 3},
		{name: "x2APIC 0xFF is a CPU", x2: true, m: message{x2: true, dest: 0xFF}, want: 0},
		{name: "x2APIC broadcast", x2: true, m: message{x2: true, dest: 0xFFFFFFFF}, want: 0xF},
		{name: "self", m: message{shorthand: shorthandSelf}, want: 2},
		{name: "all", m: message{shorthand: shorthandAll}, want: 0xF},
		{name: "others", m: message{shorthand: shorthandOthers}, want: 0xD},
		{name: "lowest priority", dfr: 0xFFFFFFFF, ldr: [4]uint32{1, 2, 4, 8}, m: message{logical: true, mode: lowestPriority, dest: 0xF}, want: 1 << 3},
	} {
		b := newBoard(4)
		b.enable()
		for i, l := range b.LAPIC {
			l.write(regLDR, c.ldr[i]<<24)
			l.write(regDFR, c.dfr)
			l.SetCR8(uint64(3 - i))
			if c.x2 {
				l.WriteMSR(msrAPICBase, l.base.Load()|baseX2APIC)
			}
		}
		c.m.vector = 0x80
		b.deliver(c.m, b.LAPIC[1])
		var got uint
		for i, l := range b.LAPIC {
			if l.Pending() {
				got |= 1 << i
			}
		}
		if got != c.want {
			t.Errorf("%s: CPUs %#b, want %#b", c.name, got, c.want)
		}
	}
}

func TestINITAndSIPIReachTheirCPU(t *testing.T) {
	b := newBoard(3)
	b.enable()
	l := b.LAPIC[0]
	l.write(regICRHigh, 1<<24)
	l.write(regICR, 0xC500) // INIT, assert
	l.write(regICR, 0x8500) // de-assert
	l.write(regICR, 0x4600|0x9A)
	if c := b.cpus[1]; c.inits != 1 || len(c.sipi) != 1 || c.sipi[0] != 0x9A {
		t.Errorf("CPU 1: %+v", *c)
	}
	if c := b.cpus[2]; c.inits != 0 || len(c.sipi) != 0 {
		t.Errorf("CPU 2: %+v", *c)
	}
}

func TestNMIWakesACPUThatHasSomethingPending(t *testing.T) {
	b := newBoard(1)
	b.enable()
	b.SignalMSI(0xFEE00000, 0x50)
	n := b.cpus[0].wakes
	b.SignalMSI(0xFEE00000, nmi<<8)
	if b.cpus[0].wakes != n+1 || !b.LAPIC[0].TakeNMI() || b.LAPIC[0].TakeNMI() {
		t.Errorf("woken %d times more, want 1, and one NMI", b.cpus[0].wakes-n)
	}
}

func TestTimerModes(t *testing.T) {
	b := newBoard(1)
	b.enable()
	l := b.LAPIC[0]
	l.write(regDivide, 3) // by 16
	l.write(regLVTTimer, 0xEC)
	l.write(regInitial, 100)
	b.clk.Advance(800)
	if c := l.read(regCurrent); c != 50 {
		t.Errorf("current count %d after half the time, want 50", c)
	}
	wantVector(t, l, 0)
	b.clk.Advance(800)
	wantVector(t, l, 0xEC)
	l.write(regEOI, 0)
	b.clk.Advance(10_000)
	wantVector(t, l, 0)

	l.write(regDivide, 0xB) // by 1
	l.write(regLVTTimer, timerPeriodic<<17|0xED)
	l.write(regInitial, 1_000_000)
	for range 3 {
		b.clk.Advance(time.Millisecond)
		wantVector(t, l, 0xED)
		l.write(regEOI, 0)
	}

	l.write(regLVTTimer, timerDeadline<<17|0xEE)
	b.clk.Advance(5000)
	wantVector(t, l, 0)
	l.WriteMSR(msrTSCDeadline, uint64(b.clk.Now()+500)*2+1)
	b.clk.Advance(500)
	wantVector(t, l, 0)
	b.clk.Advance(1)
	wantVector(t, l, 0xEE)
	if d, _ := l.ReadMSR(msrTSCDeadline); d != 0 {
		t.Errorf("deadline reads %d after it passed, want 0", d)
	}

	l.write(regEOI, 0)
	l.WriteMSR(msrTSCDeadline, 1)
	wantVector(t, l, 0xEE) // at once: the clock has not moved
	if d, _ := l.ReadMSR(msrTSCDeadline); d != 0 {
		t.Errorf("deadline reads %d, which had passed when it was written; want 0", d)
	}
}

func TestPeriodicTimerDoesNotMakeUpForAStoppedHost(t *testing.T) {
	b := newBoard(1)
	b.enable()
	l := b.LAPIC[0]
	l.write(regDivide, 0xB)
	l.write(regLVTTimer, timerPeriodic<<17|0xED)
	l.write(regInitial, 1_000_000)
	b.clk.Pause()
	b.clk.Restore(int64(30 * time.Second)) // as if SIGSTOP had kept the clock's goroutine away
	b.clk.Resume()
	b.clk.Advance(0)
	if next := l.timer.expires - b.clk.Now(); next <= 0 || next > 1_000_000 {
		t.Errorf("next expiry in %d ns, want within the period of 1000000", next)
	}
}

func TestX2APICRefusesWhatTheManualSays(t *testing.T) {
	b := newBoard(1)
	l := b.LAPIC[0]
	if _, err := l.ReadMSR(0x802); err == nil {
		t.Error("x2APIC registers can be read in xAPIC mode")
	}
	base := l.base.Load()
	if err := l.WriteMSR(msrAPICBase, base|baseX2APIC); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		msr uint32
		v   uint64
		ok  bool
	}{
		{0x80B, 0, true}, {0x80B, 1, false},
		{0x808, 0xFF, true}, {0x808, 0x100, false},
		{0x80F, 0x1FF, true}, {0x80F, 1 << 12, false},
		{0x828, 0, true}, {0x828, 1, false},
		{0x802, 0, false}, {0x80D, 0, false}, {0x80E, 0, false}, {0x831, 0, false},
		{0x83F, 0x50, true}, {0x830, 1 << 13, false}, {0x832, 1 << 32, false},
		{msrAPICBase, base, false},             // back to xAPIC
		{msrAPICBase, base | 1, false},         // reserved
		{msrAPICBase, base &^ 0xC00, true},     // off
		{msrAPICBase, base | 1<<10, false},     // off to x2APIC
		{msrAPICBase, base, true},              // on
		{msrAPICBase, base | baseX2APIC, true}, // and x2APIC
	} {
		if err := l.WriteMSR(c.msr, c.v); (err == nil) != c.ok {
			t.Errorf("WRMSR %#x, %#x: %v, want ok %v", c.msr, c.v, err, c.ok)
		}
	}
}

func TestErrorsAreCollectedUntilESRIsWritten(t *testing.T) {
	b := newBoard(1)
	b.enable()
	l := b.LAPIC[0]
	l.write(regLVTError, 0xFE)
	l.write(regICR, 0x4005) // vector 5
	if l.read(regESR) != 0 {
		t.Error("ESR changed before a write")
	}
	wantVector(t, l, 0xFE)
	l.write(regESR, 0)
	if e := l.read(regESR); e != esrSendVector {
		t.Errorf("ESR %#x, want %#x", e, esrSendVector)
	}
}

func TestSaveAndLoadKeepEverything(t *testing.T) {
	b := newBoard(2)
	b.enable()
	initPIC(b.PIC)
	b.PIC.Ports(0).Write(1, []byte{0})
	b.redirect(17, redirLevel|0x61)
	b.GSI(17).Set(true)
	b.ISA(4).Set(true)
	l := b.LAPIC[0]
	l.write(regDivide, 0xB)
	l.write(regLVTTimer, timerPeriodic<<17|0xED)
	l.write(regInitial, 1_000_000)
	b.clk.Advance(1500 * time.Microsecond)
	var first, second bytes.Buffer
	if err := b.Save(gob.NewEncoder(&first)); err != nil {
		t.Fatal(err)
	}
	n := newBoard(2)
	n.clk.Advance(1500 * time.Microsecond)
	if err := n.Load(gob.NewDecoder(bytes.NewReader(first.Bytes()))); err != nil {
		t.Fatal(err)
	}
	if err := n.Save(gob.NewEncoder(&second)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("saved again, the state differs")
	}
	wantVector(t, n.LAPIC[0], 0x34)
	wantVector(t, n.LAPIC[0], 0xED)
	n.clk.Advance(600 * time.Microsecond)
	wantVector(t, n.LAPIC[0], 0)
	n.LAPIC[0].write(regEOI, 0)
	wantVector(t, n.LAPIC[0], 0xED)
}

func TestHotPathsAllocateNothing(t *testing.T) {
	b := newBoard(2)
	b.enable()
	b.redirect(16, redirLevel|0x41)
	line, l := b.GSI(16), b.LAPIC[0]
	if n := testing.AllocsPerRun(100, func() {
		line.Set(true)
		l.Acknowledge()
		line.Set(false)
		l.write(regEOI, 0)
		b.SignalMSI(0xFEE01000, 0x55)
		b.LAPIC[1].Acknowledge()
		b.LAPIC[1].write(regEOI, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzRegisters(f *testing.F) {
	f.Add(uint64(1), uint16(500))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		r := rand.New(rand.NewPCG(seed, 0))
		b := newBoard(3)
		var lines []interface{ Set(bool) }
		for i := range Pins {
			lines = append(lines, b.GSI(i))
		}
		for range n % 4096 {
			p := make([]byte, 1<<r.IntN(4))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			l := b.LAPIC[r.IntN(3)]
			off := uint64(r.IntN(0x400))
			switch r.IntN(12) {
			case 0:
				b.PIC.Ports(r.IntN(3)).Write(off&1, p)
			case 1:
				b.PIC.Ports(r.IntN(3)).Read(off&1, p)
			case 2:
				b.IOAPIC.Write(off&0x7F, p)
			case 3:
				b.ioWrite(byte(off), r.Uint32())
			case 4:
				b.IOAPIC.Read(off&0x7F, p)
			case 5:
				l.WriteMMIO(off&^0xF, []byte{byte(off), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
			case 6:
				l.ReadMMIO(off, p)
			case 7:
				l.WriteMSR(msrX2APIC+uint32(off&0xFF), uint64(r.Uint32()>>r.IntN(32)))
				l.WriteMSR(msrAPICBase, uint64(0xFEE00000|r.IntN(4)<<10))
			case 8:
				l.WriteMSR(msrTSCDeadline, r.Uint64()>>r.IntN(64))
				l.ReadMSR(msrX2APIC + uint32(off&0xFF))
			case 9:
				lines[r.IntN(Pins)].Set(r.IntN(2) == 0)
			case 10:
				l.Acknowledge()
				l.SetCR8(r.Uint64())
				l.TakeNMI()
			case 11:
				b.clk.Advance(time.Duration(r.IntN(10000)))
				b.SignalMSI(uint64(0xFEE00000|r.IntN(1<<20)), r.Uint32())
			}
		}
		for _, l := range b.LAPIC {
			for range 300 {
				if _, ok := l.Acknowledge(); !ok {
					break
				}
			}
		}
	})
}

func BenchmarkInterruptAndEOI(b *testing.B) {
	bd := newBoard(2)
	bd.enable()
	for b.Loop() {
		bd.SignalMSI(0xFEE01000, 0x55)
		bd.LAPIC[1].Acknowledge()
		bd.LAPIC[1].write(regEOI, 0)
	}
}
