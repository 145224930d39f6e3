package chipset

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
	"vitrine.dev/vitrine/internal/mem"
)

// A wire counts its rising edges.
type wire struct {
	mu    sync.Mutex
	high  bool
	edges int
}

func (w *wire) Set(level bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if level && !w.high {
		w.edges++
	}
	w.high = level
}

func (w *wire) state() (high bool, edges int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.high, w.edges
}

func get(d bus.Device, off uint64) uint8 {
	var p [1]byte
	d.Read(off, p[:])
	return p[0]
}

func put(d bus.Device, off uint64, v ...uint8) {
	for _, b := range v {
		d.Write(off, []byte{b})
	}
}

func get32(d bus.Device, off uint64) uint32 {
	var p [4]byte
	d.Read(off, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

func put32(d bus.Device, off uint64, v uint32) {
	d.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}

func TestPITChannel0TicksAtItsRate(t *testing.T) {
	for _, mode := range []uint8{2, 3} {
		clk, irq := clock.NewFake(), &wire{}
		p := NewPIT(clk, irq)
		put(p, 3, 0x30|mode<<1)
		put(p, 0, 0x9C, 0x2E) // 11932: 100 Hz
		_, before := irq.state()
		clk.Advance(time.Second)
		if _, n := irq.state(); n-before < 99 || n-before > 100 {
			t.Errorf("mode %d: %d interrupts in a second, want 99 or 100", mode, n-before)
		}
	}
}

// A slowCPU takes an interrupt only when it runs.
type slowCPU struct {
	wire
	runs, waits bool
	taken       int
}

func (c *slowCPU) Raise() bool {
	seen := c.runs || !c.waits
	c.Set(true)
	if c.runs {
		c.taken++
	}
	c.waits = !c.runs
	return seen
}

func TestPeriodicTimersMakeUpForACPUThatDidNotRun(t *testing.T) {
	clk := clock.NewFake()
	pitIRQ, hpetIRQ := &slowCPU{}, &slowCPU{}
	p := NewPIT(clk, pitIRQ)
	put(p, 3, 0x34)
	put(p, 0, 0xA5, 0x12) // 4773: 250 Hz
	h := NewHPET(clk, func(int) bus.Line { return &wire{} }, hpetIRQ, &wire{})
	put32(h, 0x10, 3)
	put32(h, 0x100, hpetEnable|hpetPeriodic|hpetSetVal|hpet32)
	put32(h, 0x108, 40_000)
	put32(h, 0x108, 40_000)
	clk.Advance(40*time.Millisecond + time.Microsecond)
	pitIRQ.runs, hpetIRQ.runs = true, true
	clk.Advance(3 * time.Millisecond)
	for name, c := range map[string]*slowCPU{"PIT": pitIRQ, "HPET": hpetIRQ} {
		if c.taken < 8 || c.taken > 10 {
			t.Errorf("%s: %d ticks taken soon after 40 ms without a CPU, want about 9", name, c.taken)
		}
	}
	pitIRQ.runs, hpetIRQ.runs = false, false
	before := pitIRQ.edges
	clk.Advance(time.Minute)
	if n := pitIRQ.edges - before; n > 60*250+3000 { // 2,500 while it is hoped for
		t.Errorf("a guest that takes nothing costs %d edges a minute", n)
	}
}

func TestPeriodicTimersGiveAllTheyOweWhileACPUTakesIt(t *testing.T) {
	clk := clock.NewFake()
	pitIRQ, hpetIRQ := &slowCPU{}, &slowCPU{}
	p := NewPIT(clk, pitIRQ)
	put(p, 3, 0x34)
	put(p, 0, 0xA5, 0x12) // 250 Hz
	h := NewHPET(clk, func(int) bus.Line { return &wire{} }, hpetIRQ, &wire{})
	put32(h, 0x10, 3)
	put32(h, 0x100, hpetEnable|hpetPeriodic|hpetSetVal|hpet32)
	put32(h, 0x108, 40_000)
	put32(h, 0x108, 40_000)
	clk.Advance(40*time.Millisecond + time.Microsecond)
	for name, c := range map[string]struct {
		irq  *slowCPU
		tick interface{ CatchUp() }
	}{"PIT": {pitIRQ, p}, "HPET": {hpetIRQ, h}} {
		// It takes the one that waits, and then all others before the clock moves.
		c.irq.runs, c.irq.taken = true, 1
		for range 100 {
			c.tick.CatchUp()
		}
		if c.irq.taken < 9 || c.irq.taken > 10 {
			t.Errorf("%s: %d ticks taken at once after 40 ms without a CPU, want 9 or 10", name, c.irq.taken)
		}
	}
}

func TestPITOneShotInterruptsOnce(t *testing.T) {
	for _, mode := range []uint8{0, 4} {
		clk, irq := clock.NewFake(), &wire{}
		p := NewPIT(clk, irq)
		put(p, 3, 0x30|mode<<1)
		put(p, 0, 0xFF, 0x0F)
		_, before := irq.state()
		clk.Advance(3 * time.Millisecond)
		if _, n := irq.state(); n != before {
			t.Errorf("mode %d: early", mode)
		}
		clk.Advance(time.Second)
		if _, n := irq.state(); n-before != 1 {
			t.Errorf("mode %d: %d interrupts, want 1", mode, n-before)
		}
	}
}

// Linux's pit_calibrate_tsc: channel 2 in mode 0, its gate opened at port 0x61, its output watched there.
func TestPITChannel2TimesFiftyMilliseconds(t *testing.T) {
	clk := clock.NewFake()
	p := NewPIT(clk, &wire{})
	p61 := p.Port61()
	put(p61, 0, get(p61, 0)&^2|1)
	put(p, 3, 0xB0)
	const latch = pitHz / 20
	put(p, 2, latch&0xFF, latch>>8)
	for _, c := range []struct {
		after time.Duration
		out   bool
	}{{49 * time.Millisecond, false}, {2 * time.Millisecond, true}} {
		clk.Advance(c.after)
		if got := get(p61, 0)&0x20 != 0; got != c.out {
			t.Errorf("after %v more: output %v, want %v", c.after, got, c.out)
		}
	}
	put(p61, 0, 0)
	a := get(p, 2)
	clk.Advance(time.Millisecond)
	get(p, 2)
	if b := get(p, 2); a != b {
		t.Errorf("with its gate shut the counter went from %#x to %#x", a, b)
	}
}

func TestPITReadBackLatchesCountAndStatus(t *testing.T) {
	clk := clock.NewFake()
	p := NewPIT(clk, &wire{})
	put(p, 3, 0x34)
	put(p, 0, 0x00, 0x10)
	clk.Advance(time.Millisecond) // 1193 ticks
	put(p, 3, 0xC2)
	clk.Advance(time.Millisecond)
	status, low, high := get(p, 0), get(p, 0), get(p, 0)
	if got := uint16(high)<<8 | uint16(low); status != 0xB4 || got != 0x1000-1193 {
		t.Errorf("status %#x count %#x, want 0xb4 and %#x", status, got, 0x1000-1193)
	}
}

func TestPMTimerAndSoftOff(t *testing.T) {
	clk, sci, off := clock.NewFake(), &wire{}, 0
	m := NewPM(clk, sci, func() { off++ })
	clk.Advance(time.Second)
	if v := get32(m.Timer(), 0); v != PMTimerHz {
		t.Errorf("PM timer after a second: %d", v)
	}
	m.PressPowerButton()
	if high, _ := sci.state(); high {
		t.Error("SCI without its enable")
	}
	m.Event().Write(2, []byte{0, 1})
	if high, _ := sci.state(); !high {
		t.Error("no SCI of the power button")
	}
	m.Event().Write(0, []byte{0, 1})
	if high, _ := sci.state(); high {
		t.Error("SCI stays after its status was cleared")
	}
	put32(m.Control(), 0, 3<<10|1<<13)
	put32(m.Control(), 0, SleepS5<<10)
	if off != 0 {
		t.Error("off without SLP_EN, or by another sleep type")
	}
	put32(m.Control(), 0, SleepS5<<10|1<<13)
	if off != 1 {
		t.Errorf("soft-off called %d times", off)
	}
}

func TestHPETPeriodicOneShotAndLevel(t *testing.T) {
	clk, irq0, irq8 := clock.NewFake(), &wire{}, &wire{}
	pins := map[int]*wire{}
	h := NewHPET(clk, func(gsi int) bus.Line { pins[gsi] = &wire{}; return pins[gsi] }, irq0, irq8)
	pit := &wire{}
	gated := h.Gate(pit)
	gated.Set(true)
	put32(h, 0x10, 3) // on, legacy
	if high, _ := pit.state(); high {
		t.Error("legacy replacement leaves the PIT's line high")
	}
	put32(h, 0x100, hpetEnable|hpetPeriodic|hpetSetVal|hpet32)
	put32(h, 0x108, 10_000) // 1 ms
	put32(h, 0x108, 10_000)
	clk.Advance(10*time.Millisecond + 500)
	if _, n := irq0.state(); n != 10 {
		t.Errorf("timer 0 came %d times in 10 ms, want 10", n)
	}
	now := get32(h, 0xF0)
	put32(h, 0x120, hpetEnable|hpet32)
	put32(h, 0x128, now+100)
	clk.Advance(time.Second)
	if _, n := irq8.state(); n != 1 {
		t.Errorf("timer 1 came %d times, want 1", n)
	}
	put32(h, 0x140, hpetEnable|hpetLevel|20<<9)
	put32(h, 0x148, get32(h, 0xF0)+1000)
	put32(h, 0x14C, 0)
	clk.Advance(time.Millisecond)
	if high, _ := pins[20].state(); !high || get32(h, 0x20) != 4 {
		t.Errorf("pin 20 high %v, status %#x; want true, 4", high, get32(h, 0x20))
	}
	put32(h, 0x20, 4)
	if high, _ := pins[20].state(); high {
		t.Error("pin 20 stays high")
	}
	put32(h, 0x10, 0)
	if high, _ := pit.state(); !high {
		t.Error("the PIT's line does not come back")
	}
	if a, b := get32(h, 0xF0), get32(h, 0xF0); a != b {
		t.Error("counts while off")
	}
}

func TestRTCTellsAndTakesTheTime(t *testing.T) {
	wall := time.Date(2031, 12, 9, 23, 58, 7, 0, time.UTC)
	r := NewRTC(clock.NewFake(), func() time.Time { return wall }, &wire{}, 64<<20, 1)
	cmos := func(i uint8) uint8 { put(r, 0, i); return get(r, 1) }
	set := func(i, v uint8) { put(r, 0, i); put(r, 1, v) }
	for _, c := range []struct{ at, want uint8 }{
		{rtcSecond, 0x07}, {rtcMinute, 0x58}, {rtcHour, 0x23}, {rtcDay, 0x09}, {rtcMonth, 0x12}, {rtcYear, 0x31}, {rtcCentury, 0x20},
		{rtcWeekday, 3}, {rtcD, 0x80}, {0x30, 0x00}, {0x31, 63 << 10 >> 8},
	} {
		if got := cmos(c.at); got != c.want {
			t.Errorf("register %#x: %#x, want %#x", c.at, got, c.want)
		}
	}
	set(rtcB, rtcBSet) // and 12-hour
	set(rtcHour, 0x92) // noon
	set(rtcYear, 0x32)
	set(rtcB, 0)
	if h := cmos(rtcHour); h != 0x92 {
		t.Errorf("noon of 12 hours is %#x, want 0x92", h)
	}
	set(rtcB, rtcB24)
	wall = wall.Add(3 * time.Second)
	if h, s, y := cmos(rtcHour), cmos(rtcSecond), cmos(rtcYear); h != 0x12 || s != 0x10 || y != 0x32 {
		t.Errorf("after it was set: hour %#x second %#x year %#x, want 0x12 0x10 0x32", h, s, y)
	}
}

func TestRTCInterrupts(t *testing.T) {
	clk, irq := clock.NewFake(), &wire{}
	start := time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC)
	r := NewRTC(clk, func() time.Time { return start.Add(time.Duration(clk.Now())) }, irq, 64<<20, 1)
	set := func(i, v uint8) { put(r, 0, i); put(r, 1, v) }
	flags := func() uint8 { put(r, 0, rtcC); return get(r, 1) }
	for _, c := range []struct {
		name   string
		enable uint8
		after  time.Duration
		want   uint8
	}{
		{"update", rtcUpdated, 1100 * time.Millisecond, rtcUpdated},
		{"periodic", rtcPeriodic, 2 * time.Millisecond, rtcPeriodic},
		{"alarm", rtcAlarmed, 6 * time.Second, rtcAlarmed},
	} {
		set(rtcSecond+rtcAlarm, 0x05)
		set(rtcMinute+rtcAlarm, 0xFF)
		set(rtcHour+rtcAlarm, 0xFF)
		set(rtcB, rtcB24|c.enable)
		flags()
		clk.Advance(c.after)
		high, _ := irq.state()
		if f := flags(); !high || f&(rtcIRQ|c.want) != rtcIRQ|c.want {
			t.Errorf("%s: line %v, register C %#x", c.name, high, f)
		}
		if high, _ := irq.state(); high {
			t.Errorf("%s: reading C does not end it", c.name)
		}
	}
}

func TestI8042AnswersAKernelsProbe(t *testing.T) {
	irq, resets := &wire{}, 0
	k := NewI8042(irq, func() { resets++ })
	for _, c := range []struct {
		name  string
		port  bus.Device
		write []uint8
		want  []uint8
	}{
		{"self test", k.Control(), []uint8{0xAA}, []uint8{0x55}},
		{"port test", k.Control(), []uint8{0xAB}, []uint8{0}},
		{"auxiliary test fails", k.Control(), []uint8{0xA9}, []uint8{2}},
		{"reset", k.Data(), []uint8{0xFF}, []uint8{0xFA, 0xAA}},
		{"identify", k.Data(), []uint8{0xF2}, []uint8{0xFA, 0xAB, 0x83}},
		{"lights", k.Data(), []uint8{0xED, 7}, []uint8{0xFA, 0xFA}},
		{"unknown", k.Data(), []uint8{0x12}, []uint8{0xFE}},
	} {
		put(c.port, 0, c.write...)
		var got []uint8
		for get(k.Control(), 0)&kbdOutFull != 0 {
			got = append(got, get(k.Data(), 0))
		}
		if !bytes.Equal(got, c.want) {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	if _, n := irq.state(); n != 11 {
		t.Errorf("%d interrupts, want one a byte with its interrupt enabled: 11", n)
	}
	put(k.Control(), 0, 0xFE)
	if resets != 1 {
		t.Errorf("reset %d times", resets)
	}
}

func TestUARTLoopbackIdentifiesA16550A(t *testing.T) {
	u := NewUART(&wire{}, nil)
	defer u.Close()
	put(u, 4, 0x1A) // Linux's autoconfig
	if v := get(u, 6) & 0xF0; v != 0x90 {
		t.Errorf("modem status in loopback %#x, want 0x90", v)
	}
	put(u, 2, 1)
	if v := get(u, 2) >> 6; v != 3 {
		t.Errorf("FIFO bits %d, want 3", v)
	}
	for i := range uint8(17) {
		put(u, 0, i)
	}
	if lsr := get(u, 5); lsr&(lsrData|lsrOverrun) != lsrData|lsrOverrun {
		t.Errorf("line status %#x after 17 bytes: no overrun", lsr)
	}
	for i := range uint8(16) {
		if b := get(u, 0); b != i {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

func TestUARTTransmitInterruptEndsWithIIR(t *testing.T) {
	irq := &wire{}
	u := NewUART(irq, nil)
	defer u.Close()
	put(u, 1, ierTX)
	if high, _ := irq.state(); !high {
		t.Fatal("no interrupt of an empty transmitter")
	}
	if v := get(u, 2); v != iirTX {
		t.Errorf("IIR %#x", v)
	}
	if high, _ := irq.state(); high {
		t.Error("reading IIR does not end it")
	}
	put(u, 0, 'x')
	if high, _ := irq.state(); !high {
		t.Error("no interrupt after a byte")
	}
}

func TestUARTNeverBlocksTheGuest(t *testing.T) {
	r, w := io.Pipe() // nobody reads
	u := NewUART(&wire{}, w)
	for range 3 * uartOut {
		put(u, 0, 'x')
	}
	if get(u, 5)&lsrTHRE != 0 || u.Dropped() == 0 {
		t.Errorf("line status %#x, %d dropped: a full transmitter must say so", get(u, 5), u.Dropped())
	}
	go io.Copy(io.Discard, r)
	u.Flush()
	if get(u, 5)&lsrTHRE == 0 {
		t.Error("busy after a flush")
	}
	u.Close()
}

func TestUARTInputWaitsForTheGuest(t *testing.T) {
	irq := &wire{}
	u := NewUART(irq, nil)
	put(u, 2, 1)
	put(u, 1, ierRX)
	want := strings.Repeat("0123456789", 10)
	done := make(chan error)
	go func() { done <- u.Feed(strings.NewReader(want)) }()
	var got []byte
	for len(got) < len(want) {
		if get(u, 5)&lsrData != 0 {
			got = append(got, get(u, 0))
		}
	}
	if err := <-done; err != nil || string(got) != want {
		t.Errorf("%v, %q", err, got)
	}
	if _, n := irq.state(); n == 0 {
		t.Error("no interrupt")
	}
	u.Close()
}

func TestFWCfgGivesFilesByPortAndByDMA(t *testing.T) {
	ram, err := mem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	f, err := NewFWCfg(ram, 2, map[string][]byte{"opt/b": []byte("two"), "opt/a": []byte("one!")})
	if err != nil {
		t.Fatal(err)
	}
	read := func(key uint16, n int) string {
		f.Ports().Write(0, binary.LittleEndian.AppendUint16(nil, key))
		b := make([]byte, n)
		for i := range b {
			b[i] = get(f.Ports(), 1)
		}
		return string(b)
	}
	if s := read(fwSignature, 4); s != "QEMU" {
		t.Errorf("signature %q", s)
	}
	dir := read(fwDirectory, 4+2*64)
	if n := binary.BigEndian.Uint32([]byte(dir)); n != 2 || !strings.HasPrefix(dir[12:], "opt/a\x00") || dir[8:10] != "\x00\x20" {
		t.Errorf("directory of %d: %q", n, dir)
	}
	if s := read(0x21, 5); s != "two\x00\x00" {
		t.Errorf("second file %q", s)
	}
	for _, c := range []struct {
		addr   uint64
		result uint32
	}{{0x2000, 0}, {1 << 40, fwDMAError}} {
		req := binary.BigEndian.AppendUint32(nil, 0x20<<16|fwDMASelect|fwDMARead)
		req = binary.BigEndian.AppendUint32(req, 6)
		req = binary.BigEndian.AppendUint64(req, c.addr)
		ram.WriteAt(req, 0x1000)
		f.DMA().Write(4, []byte{0, 0, 0x10, 0})
		var p [6]byte
		ram.ReadAt(p[:4], 0x1000)
		if got := binary.BigEndian.Uint32(p[:]); got != c.result {
			t.Errorf("DMA to %#x: result %d, want %d", c.addr, got, c.result)
		}
		if ram.ReadAt(p[:], 0x2000); string(p[:]) != "one!\x00\x00" {
			t.Errorf("DMA gave %q", p)
		}
	}
}

// A fixture is each device with state, and all its windows.
type fixture struct {
	clk     *clock.Clock
	state   []bus.Stateful
	windows []window
}

type window struct {
	bus.Device
	size int
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	ram, err := mem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	clk, line := clock.NewFake(), func(int) bus.Line { return &wire{} }
	nothing := func() {}
	h := NewHPET(clk, line, line(0), line(8))
	pit := NewPIT(clk, h.Gate(line(0)))
	rtc := NewRTC(clk, func() time.Time { return time.Unix(1e9+clk.Now()/1e9, clk.Now()%1e9) }, h.Gate(line(8)), 1<<20, 1)
	kbd, u, pm := NewI8042(line(1), nothing), NewUART(line(4), nil), NewPM(clk, line(9), nothing)
	fw, err := NewFWCfg(ram, 1, map[string][]byte{"x": []byte("y")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close(); ram.Close() })
	return &fixture{clk, []bus.Stateful{h, pit, rtc, kbd, u, pm, fw}, []window{
		{h, HPETSize}, {pit, 4}, {pit.Port61(), 1}, {rtc, 2}, {kbd.Data(), 1}, {kbd.Control(), 1}, {u, 8}, {pm.Event(), 4}, {pm.Control(), 2},
		{pm.Timer(), 4}, {fw.Ports(), 2}, {fw.DMA(), 8}, {Port92(nothing), 1}, {ResetRegister(nothing), 1}, {Latch(), 1},
		{DebugExit(func(int) {}), 4}, {DebugConsole(io.Discard, 0xE9), 1},
	}}
}

// Garbage in every register panics nothing, and the state that it leads to survives Save and Load.
func FuzzDevices(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint16(1500))
	}
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		r := rand.New(rand.NewPCG(seed, 3))
		fx := newFixture(t)
		for range n % 4096 {
			w := fx.windows[r.IntN(len(fx.windows))]
			p := make([]byte, 1<<r.IntN(4))
			for i := range p {
				p[i] = byte(r.Uint32() >> r.IntN(24))
			}
			switch off := uint64(r.IntN(w.size)); r.IntN(4) {
			case 0, 1:
				w.Write(off, p)
			case 2:
				w.Read(off, p)
			case 3:
				fx.clk.Advance(time.Duration(r.IntN(5_000_000)))
			}
		}
		fx.state[4].(*UART).Flush()
		other := newFixture(t)
		other.clk.Advance(time.Duration(fx.clk.Now()))
		for i, s := range fx.state {
			var first, second bytes.Buffer
			if err := s.Save(gob.NewEncoder(&first)); err != nil {
				t.Fatal(err)
			}
			if err := other.state[i].Load(gob.NewDecoder(bytes.NewReader(first.Bytes()))); err != nil {
				t.Fatal(err)
			}
			if err := other.state[i].Save(gob.NewEncoder(&second)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first.Bytes(), second.Bytes()) {
				t.Errorf("%T: saved again, the state differs", s)
			}
		}
	})
}
