package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/gob"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine/clock"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A fakeCPU runs a Go function for a guest: each call of run is what happens until the next exit.
type fakeCPU struct {
	hv.IO
	run   func(c *fakeCPU) hv.Exit
	state x86.State
	kick  atomic.Bool
	runs  atomic.Int64
}

func (c *fakeCPU) Run() (hv.Exit, error) {
	c.runs.Add(1)
	if c.kick.Swap(false) {
		return hv.Kicked, nil
	}
	return c.run(c), nil
}
func (c *fakeCPU) Kick()                       { c.kick.Store(true) }
func (c *fakeCPU) State(s *x86.State) error    { *s = c.state; return nil }
func (c *fakeCPU) SetState(s *x86.State) error { c.state = *s; return nil }
func (c *fakeCPU) out(port uint16, p ...byte)  { c.WritePort(port, p) }
func (c *fakeCPU) mmio(a mem.Addr, v uint32) {
	c.WriteMMIO(a, binary.LittleEndian.AppendUint32(nil, v))
}
func (c *fakeCPU) powerOff()                    { c.out(layout.PM1aControl, 0, 5<<2|1<<5) }
func (c *fakeCPU) icr(dest, low uint32)         { c.mmio(0xFEE00310, dest<<24); c.mmio(0xFEE00300, low) }
func (c *fakeCPU) enableLAPIC()                 { c.mmio(0xFEE000F0, 0x1FF) }
func (c *fakeCPU) endOfInterrupt()              { c.mmio(0xFEE000B0, 0) }
func (c *fakeCPU) halt(*fakeCPU) (exit hv.Exit) { return hv.Halted }

// fakeBackend gives CPU i the function programs[i]; CPUs without one halt.
type fakeBackend struct {
	programs []func(c *fakeCPU) hv.Exit
	cpus     []*fakeCPU
}

func (b *fakeBackend) Name() string                     { return "fake" }
func (b *fakeBackend) NewVM(*mem.Memory) (hv.VM, error) { return b, nil }
func (b *fakeBackend) Close() error                     { return nil }
func (b *fakeBackend) NewVCPU(id int, io hv.IO) (hv.VCPU, error) {
	c := &fakeCPU{IO: io}
	if c.run = c.halt; id < len(b.programs) {
		c.run = b.programs[id]
	}
	b.cpus = append(b.cpus, c)
	return c, nil
}

// build makes a machine of 2 MiB around the programs; change may change its Config.
func build(t testing.TB, cpus int, change func(*Config), programs ...func(*fakeCPU) hv.Exit) (*Machine, *fakeBackend) {
	t.Helper()
	ram, err := mem.New(2 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBackend{programs: programs}
	cfg := Config{RAM: ram, CPUs: cpus, Backend: b, TSCHz: 1e9}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		ram.Close()
	})
	return m, b
}

func run(t *testing.T, m *Machine) Exit {
	t.Helper()
	e, err := m.Run(t.Context(), &x86.State{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEveryWayToEndIsTold(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*fakeCPU)
		exit hv.Exit
		want Exit
	}{
		{"ACPI soft-off", (*fakeCPU).powerOff, hv.Kicked, Exit{Reason: PowerOff}},
		{"keyboard controller", func(c *fakeCPU) { c.out(0x64, 0xFE) }, hv.Kicked, Exit{Reason: Reset}},
		{"reset register", func(c *fakeCPU) { c.out(0xCF9, 6) }, hv.Kicked, Exit{Reason: Reset}},
		{"port 92", func(c *fakeCPU) { c.out(0x92, 1) }, hv.Kicked, Exit{Reason: Reset}},
		{"debug exit", func(c *fakeCPU) { c.out(0xF4, 0x10, 0, 0, 0) }, hv.Kicked, Exit{Reason: DebugExit, Status: 33}},
		{"triple fault", func(c *fakeCPU) {}, hv.Shutdown, Exit{Reason: TripleFault}},
	} {
		m, _ := build(t, 2, func(c *Config) { c.DebugExit = true }, func(cpu *fakeCPU) hv.Exit {
			c.do(cpu)
			return c.exit
		})
		if got := run(t, m); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestPlainPortWriteDoesNotExitWhereItWasNotAsked(t *testing.T) {
	m, _ := build(t, 1, nil, func(c *fakeCPU) hv.Exit {
		c.out(0xF4, 1)
		c.powerOff()
		return hv.Kicked
	})
	if e := run(t, m); e.Reason != PowerOff {
		t.Errorf("ended by %v", e.Reason)
	}
}

func TestCancelledContextStopsHaltedCPUs(t *testing.T) {
	m, b := build(t, 3, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for b.cpus[0].runs.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if e, err := m.Run(ctx, &x86.State{}); err != nil || e.Reason != Stopped {
		t.Errorf("ended by %v, %v", e.Reason, err)
	}
	if n := b.cpus[1].runs.Load(); n != 0 {
		t.Errorf("CPU 1 ran %d times without a SIPI", n)
	}
}

func TestINITAndSIPIStartACPUAtItsVector(t *testing.T) {
	started := make(chan x86.State, 1)
	m, _ := build(t, 2, nil,
		func(c *fakeCPU) hv.Exit {
			c.icr(1, 0x4699) // a SIPI without INIT is taken too: the CPU waits for one since power-on
			return hv.Halted
		},
		func(c *fakeCPU) hv.Exit {
			started <- c.state
			c.powerOff()
			return hv.Kicked
		})
	run(t, m)
	s := <-started
	if cs := s.Seg[x86.CS]; cs.Selector != 0x9900 || cs.Base != 0x99000 || s.RIP != 0 || s.CR0 != x86.CR0ET || s.MP != x86.Runnable {
		t.Errorf("began at %#x:%#x (base %#x), CR0 %#x, MP %d", cs.Selector, s.RIP, cs.Base, s.CR0, s.MP)
	}
}

func TestINITStopsARunningCPU(t *testing.T) {
	var starts atomic.Int64
	m, _ := build(t, 2, nil,
		func(c *fakeCPU) hv.Exit {
			switch {
			case c.state.GPR[0] == 0:
				c.icr(1, 0x4610)
			case starts.Load() == 1:
				c.icr(1, 0xC500)
				c.icr(1, 0x8500)
				c.icr(1, 0x4620)
			}
			c.state.GPR[0]++
			return hv.Kicked
		},
		func(c *fakeCPU) hv.Exit {
			switch c.state.Seg[x86.CS].Base {
			case 0x10000:
				starts.CompareAndSwap(0, 1)
			case 0x20000:
				c.powerOff()
			}
			return hv.Halted
		})
	if e := run(t, m); e.Reason != PowerOff {
		t.Errorf("ended by %v", e.Reason)
	}
}

// Two CPUs send each other an IPI and halt, again and again: a wake-up that is lost hangs the test.
func TestNoWakeUpIsLost(t *testing.T) {
	const rounds = 20_000
	var turns atomic.Int64
	player := func(first bool) func(*fakeCPU) hv.Exit {
		ready := false
		return func(c *fakeCPU) hv.Exit {
			other := uint32(1)
			if !first {
				other = 0
			}
			if !ready {
				ready = true
				c.enableLAPIC()
				if !first {
					c.icr(0, 0x4050) // serves
				}
			}
			if _, ok := c.Acknowledge(); !ok {
				return hv.Halted
			}
			c.endOfInterrupt()
			if turns.Add(1) >= rounds {
				c.powerOff()
				return hv.Kicked
			}
			c.icr(other, 0x4050)
			return hv.Halted
		}
	}
	first := player(true)
	started := false
	m, b := build(t, 2, nil, func(c *fakeCPU) hv.Exit {
		if !started {
			started = true
			e := first(c)
			c.icr(1, 0x4608)
			return e
		}
		return first(c)
	}, player(false))
	if e := run(t, m); e.Reason != PowerOff {
		t.Fatalf("ended by %v", e.Reason)
	}
	if n := b.cpus[0].runs.Load(); n > 4*rounds {
		t.Errorf("CPU 0 was run %d times for %d wake-ups", n, rounds/2)
	}
}

func TestHaltedCPUWithAMaskedInterruptSleeps(t *testing.T) {
	m, b := build(t, 1, nil, func(c *fakeCPU) hv.Exit {
		if c.runs.Load() == 1 {
			c.enableLAPIC()
			c.icr(0, 0x4050)
		}
		return hv.Halted // as with IF clear
	})
	go func() {
		for b.cpus[0].runs.Load() < 3 && !b.cpus[0].Pending() {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond)
		m.Stop()
	}()
	run(t, m)
	if n := b.cpus[0].runs.Load(); n > 4 {
		t.Errorf("ran %d times", n)
	}
}

func TestPausedMachineStandsStill(t *testing.T) {
	m, b := build(t, 2, nil, func(c *fakeCPU) hv.Exit {
		c.state.RIP++
		if c.state.RIP == 1 {
			c.icr(1, 0x4608)
		}
		return hv.Kicked
	}, func(c *fakeCPU) hv.Exit { c.state.RIP = 77; return hv.Halted })
	done := make(chan Exit)
	go func() { done <- run(t, m) }()
	var r x86.Regs
	for r.RIP != 77 {
		if err := m.Registers(1, &r); err != nil {
			t.Fatal(err)
		}
	}
	m.Pause()
	m.Pause()
	runs, now := b.cpus[0].runs.Load(), m.Clock().Now()
	var r0 x86.Regs
	if err := m.Registers(0, &r0); err != nil {
		t.Fatal(err)
	}
	if b.cpus[0].runs.Load() != runs || m.Clock().Now() != now || r0.RIP == 0 {
		t.Errorf("while paused: runs %d to %d, clock %d to %d", runs, b.cpus[0].runs.Load(), now, m.Clock().Now())
	}
	m.Resume()
	for b.cpus[0].runs.Load() == runs {
		time.Sleep(time.Millisecond)
	}
	m.Stop()
	<-done
	if err := m.Registers(0, &r); err != nil {
		t.Errorf("registers after the end: %v", err)
	}
}

func TestSerialPortCarriesBytesBothWays(t *testing.T) {
	var out bytes.Buffer
	m, _ := build(t, 1, func(c *Config) { c.Serial[0] = Serial{In: strings.NewReader("yes\n"), Out: &out} }, func(c *fakeCPU) hv.Exit {
		var p [1]byte
		if c.ReadPort(layout.COM1+5, p[:]); p[0]&1 == 0 {
			return hv.Kicked
		}
		c.ReadPort(layout.COM1, p[:])
		c.out(layout.COM1, p[0])
		if p[0] == '\n' {
			c.powerOff()
		}
		return hv.Kicked
	})
	run(t, m)
	if out.String() != "yes\n" {
		t.Errorf("got %q", out.String())
	}
}

func TestStopEndsAMachineWhoseConsoleIsStuck(t *testing.T) {
	r, w := io.Pipe() // nobody reads until the test ends
	t.Cleanup(func() { r.Close() })
	m, _ := build(t, 1, func(c *Config) { c.Serial[0].Out = w }, func(c *fakeCPU) hv.Exit {
		c.out(layout.COM1, 'x')
		c.powerOff()
		return hv.Kicked
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-m.Done(); cancel() }()
	if e, err := m.Run(ctx, &x86.State{}); e.Reason != PowerOff || err != nil {
		t.Errorf("%v, %v", e.Reason, err)
	}
}

func TestTimerInterruptReachesTheCPU(t *testing.T) {
	m, _ := build(t, 1, nil, func(c *fakeCPU) hv.Exit {
		if c.state.RIP == 0 {
			c.enableLAPIC()
			c.mmio(0xFEE003E0, 0xB)
			c.mmio(0xFEE00320, 0xEC)
			c.mmio(0xFEE00380, 100_000)
			c.state.RIP = 1
		}
		if v, ok := c.Acknowledge(); ok && v == 0xEC {
			c.powerOff()
			return hv.Kicked
		}
		return hv.Halted
	})
	if e := run(t, m); e.Reason != PowerOff {
		t.Errorf("ended by %v", e.Reason)
	}
}

// poke writes garbage from r to a register of the board.
func poke(c *fakeCPU, m *Machine, r *rand.Rand) {
	p := make([]byte, 1<<r.IntN(4))
	for i := range p {
		p[i] = byte(r.Uint32() >> r.IntN(24))
	}
	ports := []struct{ base, n int }{{0x20, 2}, {0xA0, 2}, {0x40, 4}, {0x60, 5}, {0x70, 2}, {0x4D0, 2}, {0x510, 12}, {0x600, 12},
		{0x3F8, 8}, {0x2F8, 8}, {0xCF8, 8}, {0x80, 1}, {0x92, 1}, {0xE9, 1}, {0, 0x10000}}
	pages := []uint64{layout.IOAPIC, layout.HPET, layout.LAPIC, layout.ECAM, layout.PCIMMIO}
	where := ports[r.IntN(len(ports))]
	port := uint16(where.base + r.IntN(where.n))
	a := mem.Addr(pages[r.IntN(len(pages))] + uint64(r.IntN(0x400)))
	switch r.IntN(8) {
	case 0, 1, 2:
		c.WritePort(port, p)
	case 3:
		c.ReadPort(port, p)
	case 4, 5:
		c.WriteMMIO(a, p)
	case 6:
		c.ReadMMIO(a, p)
	case 7:
		m.Clock().Advance(time.Duration(r.IntN(10_000_000)))
	}
}

func FuzzBoard(f *testing.F) {
	f.Add(uint64(1), uint16(2000))
	f.Add(uint64(7), uint16(4000))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) {
		r := rand.New(rand.NewPCG(seed, 1))
		m, b := build(t, 2, func(c *Config) { c.Clock, c.Wall = clock.NewFake(), wallAt(0) })
		for range n % 8192 {
			poke(b.cpus[r.IntN(2)], m, r)
		}
	})
}

func wallAt(s int64) func() time.Time {
	return func() time.Time { return time.Unix(1_700_000_000+s, 0) }
}

// Whatever state garbage brings the board to, it is the same after Save and Load.
func TestSaveAndLoadKeepTheWholeBoard(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		fake := func(c *Config) { c.Clock, c.Wall = clock.NewFake(), wallAt(0) }
		m, b := build(t, 2, fake)
		for range 300 {
			poke(b.cpus[r.IntN(2)], m, r)
		}
		for _, u := range m.uarts {
			u.Flush()
		}
		var first, second bytes.Buffer
		m.Pause()
		if err := m.Save(gob.NewEncoder(&first)); err != nil {
			t.Fatal(err)
		}
		n, _ := build(t, 2, fake)
		n.Pause()
		if err := n.Load(gob.NewDecoder(bytes.NewReader(first.Bytes()))); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := n.Save(gob.NewEncoder(&second)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("seed %d: saved again, the state differs", seed)
		}
	}
}
