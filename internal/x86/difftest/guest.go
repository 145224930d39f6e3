package difftest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/interp"
	"vitrine.dev/vitrine/internal/x86/model"
)

// A Guest is package interp's processor, with a monitor of some 100 instructions that enters user code by IRETQ and leaves by any exception.
type Guest struct {
	ram  *mem.Memory
	cpu  *interp.CPU
	done bool // the monitor says that the case ended
	dead bool // the processor is to be set up anew
	buf  [statePage]byte
	stop atomic.Bool // the case is to end
	pager
}

// Guest-physical addresses.
const (
	physTables = 0x1000
	physCode   = 0x10000
	physData   = 0x11000
	physSecond = 0x18000 // the second page of code
	physMon    = 0x20000 // monitor code, state, stack, tables: a page each
	ramSize    = 1 << 20
)

// The monitor's pages in the linear address space, and places in its state page.
const (
	monVA     = 0xFFFFFFFF80000000
	stateVA   = monVA + pageSize
	stackVA   = monVA + 2*pageSize
	tablesVA  = monVA + 3*pageSize
	atFrame   = 0x100 // RIP, CS, RFLAGS, RSP, SS
	atFS      = 0x140
	atGS      = 0x148
	atCR2     = 0x150
	atDS      = 0x158
	atFX      = 0x200 // an XSAVE area
	atYMM     = atFX + 576
	statePage = 0x600

	handlers    = 0x400 // in the code page, 16 bytes each
	donePort    = 0xF4
	kernelCS    = 0x10
	tssSelector = 0x40
)

// An Engine is what a [Guest]'s code runs on.
type Engine int

// The engines.
const (
	Interpreter Engine = iota
	Exact              // translated from the first execution on, flags exact
	Translator         // translated from the second, as guests have it: flags only where somebody reads them
	Engines
)

func (e Engine) String() string { return [...]string{"interp", "exact", "jit"}[e] }

// NewGuest makes the guest.
func NewGuest(e Engine) (*Guest, error) {
	ram, err := mem.New(ramSize)
	if err != nil {
		return nil, err
	}
	g := &Guest{ram: ram}
	vm := interp.NewVM(ram)
	if e != Interpreter {
		if err := vm.Translate(interp.Translation{Size: 8 << 20, Hot: uint32(e), Exact: e == Exact}); err != nil {
			return nil, err
		}
	}
	g.cpu = vm.NewCPU(0, g)
	if err := g.build(); err != nil {
		return nil, fmt.Errorf("difftest: guest: %w", err)
	}
	return g, g.reset()
}

// components are the states of the processor that cases have: XCR0.
func components() uint64 {
	if model.Engine().Has("avx") {
		return 7
	}
	return 3
}

// Close frees the guest's memory.
func (g *Guest) Close() { g.ram.Close() }

// Stop ends the case that runs now, from another goroutine.
func (g *Guest) Stop() {
	g.stop.Store(true)
	g.cpu.Kick()
}

// Instructions is how many were executed, the monitor's included; the translator's are not counted.
func (g *Guest) Instructions() (n uint64) {
	g.cpu.Counters(func(name string, v uint64) {
		if name == "instructions" {
			n = v
		}
	})
	return n
}

// ErrStopped says that a case went on until it was stopped.
var ErrStopped = errors.New("difftest: case did not end")

// Run runs c.
func (g *Guest) Run(c *Case, out *Outcome) error {
	if g.dead {
		if err := g.reset(); err != nil {
			return err
		}
	}
	le, p := binary.LittleEndian, g.buf[:]
	for i, v := range c.Regs[:16] {
		le.PutUint64(p[8*i:], v)
	}
	cs, ds := c.selectors()
	le.PutUint64(p[atDS:], ds)
	for i, v := range []uint64{c.Regs[regRIP], cs, c.Regs[regFlags], c.Regs[x86.RSP], userSS} {
		le.PutUint64(p[atFrame+8*i:], v)
	}
	le.PutUint64(p[atFS:], c.Regs[regFS])
	le.PutUint64(p[atGS:], c.Regs[regGS])
	copy(p[atFX:], c.FX[:])
	le.PutUint64(p[atFX+512:], components())
	copy(p[atYMM:], c.YMM[:])
	text := c.text()
	if err := errors.Join(
		g.ram.WriteAt(text[:pageSize], physCode),
		g.ram.WriteAt(text[pageSize:], physSecond),
		g.ram.WriteAt(c.data(), physData),
		g.ram.WriteAt(p, physMon+pageSize)); err != nil {
		return err
	}
	g.done = false
	g.stop.Store(false)
	g.begin(c.Seed)
	for {
		switch exit := g.cpu.Run(); {
		case g.done:
			g.irq.Store(false)
			return g.outcome(out)
		case exit == hv.Kicked && !g.stop.Load(): // by who rains interrupts
		case exit == hv.Kicked:
			g.dead = true
			return ErrStopped
		default:
			g.dead = true
			return fmt.Errorf("difftest: exit %d", exit)
		}
	}
}

// outcome reads what the monitor left.
func (g *Guest) outcome(out *Outcome) error {
	var frame [56]byte
	le, p := binary.LittleEndian, g.buf[:]
	if err := errors.Join(
		g.ram.ReadAt(p, physMon+pageSize),
		g.ram.ReadAt(frame[:], physMon+3*pageSize-56),
		g.ram.ReadAt(out.Data[:], physData)); err != nil {
		return err
	}
	for i := range 16 {
		out.Regs[i] = le.Uint64(p[8*i:])
	}
	out.Vector = frame[0]
	out.Regs[regRIP] = le.Uint64(frame[16:])
	out.Regs[regFlags] = le.Uint64(frame[32:])
	out.Regs[x86.RSP] = le.Uint64(frame[40:])
	out.Regs[regFS], out.Regs[regGS] = le.Uint64(p[atFS:]), le.Uint64(p[atGS:])
	out.Addr = 0
	if out.Vector == uint8(x86.PFV) {
		out.Addr = le.Uint64(p[atCR2:])
	}
	copy(out.FX[:], p[atFX:])
	if components()&4 != 0 {
		copy(out.YMM[:], p[atYMM:])
	}
	return nil
}

// reset puts the CPU at the monitor's start.
func (g *Guest) reset() error {
	g.dead = false
	var s x86.State
	if err := g.cpu.State(&s); err != nil {
		return err
	}
	s.CR0 = x86.CR0PE | x86.CR0MP | x86.CR0ET | x86.CR0NE | x86.CR0WP | x86.CR0AM | x86.CR0PG
	s.CR3 = physTables
	s.CR4 = x86.CR4PAE | x86.CR4OSFXSR | x86.CR4OSXMMEXCPT | x86.CR4FSGSBASE | x86.CR4OSXSAVE
	s.EFER = x86.EFERSCE | x86.EFERLME | x86.EFERLMA | x86.EFERNXE
	s.XCR0 = components()
	s.GDTR, s.IDTR = x86.Table{Base: tablesVA, Limit: 0x4F}, x86.Table{Base: tablesVA + 0x400, Limit: 33*16 - 1}
	for i := range s.Seg {
		s.Seg[i] = x86.Segment{}
	}
	s.Seg[x86.CS] = x86.Segment{Selector: kernelCS, Limit: 0xFFFFFFFF, Access: x86.SegPresent | x86.SegS | x86.SegCode | x86.SegWritable | x86.SegAccessed | x86.SegLong | x86.SegGran}
	s.Seg[x86.SS] = x86.Segment{Limit: 0xFFFFFFFF, Access: x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed | x86.SegBig | x86.SegGran}
	s.TR = x86.Segment{Selector: tssSelector, Base: tablesVA + 0x200, Limit: 0x67, Access: x86.SegPresent | 11}
	s.RIP, s.RFLAGS = monVA, x86.Fixed
	s.DR = [8]uint64{6: 0xFFFF0FF0, 7: 0x400}
	return g.cpu.SetState(&s)
}

// build writes page tables, descriptors and the monitor.
func (g *Guest) build() error {
	const (
		rw, user = 3, 7
		t        = physTables
	)
	g.ram.Store64(t, t+0x1000|user)
	g.ram.Store64(t+8*511, t+0x5000|rw)
	g.ram.Store64(t+0x1000, t+0x2000|user)
	g.ram.Store64(t+0x2000+8*(codeVA>>21), t+0x3000|user)
	g.ram.Store64(t+0x2000+8*(dataVA>>21), t+0x4000|user)
	g.pager.ram = g.ram
	g.pager.map_()
	g.ram.Store64(t+0x5000+8*510, t+0x6000|rw)
	g.ram.Store64(t+0x6000, t+0x7000|rw)
	for i := range uint64(4) {
		g.ram.Store64(mem.Addr(t+0x7000+8*i), physMon+i*pageSize|rw)
	}
	const tables = physMon + 3*pageSize
	for sel, d := range map[uint64]uint64{kernelCS: 0x00AF9B000000FFFF, userSS &^ 3: 0x00CFF3000000FFFF, userCS &^ 3: 0x00AFFB000000FFFF, userCS32 &^ 3: 0x00CFFB000000FFFF} {
		g.ram.Store64(mem.Addr(tables+sel), d)
	}
	const tss = tablesVA + 0x200
	g.ram.Store64(tables+tssSelector, 0x67|tss&0xFFFFFF<<16|0x8B<<40|tss>>24&0xFF<<56)
	g.ram.Store64(tables+tssSelector+8, tss>>32)
	g.ram.Store32(tables+0x204, uint32((stackVA+pageSize)&0xFFFFFFFF)) // RSP0
	g.ram.Store32(tables+0x208, 0xFFFFFFFF)
	g.ram.Store32(tables+0x264, 0x68<<16) // no I/O permission bitmap
	for v := range uint64(33) {
		h := uint64(monVA) + handlers + 16*v
		kind := uint64(0x8E)
		if v == 3 || v == 4 {
			kind = 0xEE // INT3 and INTO are user code's to use
		}
		g.ram.Store64(mem.Addr(tables+0x400+16*v), h&0xFFFF|kernelCS<<16|kind<<40|h>>16&0xFFFF<<48)
		g.ram.Store64(mem.Addr(tables+0x408+16*v), h>>32)
	}
	return g.ram.WriteAt(monitor(), physMon)
}

// monitor is the code of the page at monVA.
func monitor() []byte {
	le := binary.LittleEndian
	var b []byte
	at := func(off uint32) { b = le.AppendUint32(append(b, 0x25), uint32(stateVA&0xFFFFFFFF)+off) } // SIB and displacement
	move := func(op uint8, reg int, off uint32) {
		b = append(b, 0x48|uint8(reg>>3)<<2, op, uint8(reg&7)<<3|4)
		at(off)
	}
	const load, store = 0x8B, 0x89
	b = append(b, reload...)
	all := []byte{0xB8, uint8(components()), 0, 0, 0, 0x31, 0xD2} // MOV EAX, components; XOR EDX, EDX
	b = append(append(b, all...), 0x48, 0x0F, 0xAE, 0x2C)         // XRSTOR64
	at(atFX)
	move(load, 0, atDS)
	b = append(b, 0x8E, 0xD8, 0x8E, 0xC0) // MOV DS, EAX; MOV ES, EAX
	move(load, 0, atFS)
	b = append(b, 0xF3, 0x48, 0x0F, 0xAE, 0xD0) // WRFSBASE RAX
	move(load, 0, atGS)
	b = append(b, 0xF3, 0x48, 0x0F, 0xAE, 0xD8) // WRGSBASE RAX
	for r := range 16 {
		if r != x86.RSP {
			move(load, r, uint32(8*r))
		}
	}
	b = append(b, 0x48, 0xC7, 0xC4) // MOV RSP, state + atFrame
	b = le.AppendUint32(b, uint32(stateVA&0xFFFFFFFF)+atFrame)
	b = append(b, 0x48, 0xCF) // IRETQ

	common := len(b)
	for r := range 16 {
		if r != x86.RSP {
			move(store, r, uint32(8*r))
		}
	}
	b = append(append(b, all...), 0x48, 0x0F, 0xAE, 0x24) // XSAVE64
	at(atFX)
	b = append(b, 0xF3, 0x48, 0x0F, 0xAE, 0xC0) // RDFSBASE RAX
	move(store, 0, atFS)
	b = append(b, 0xF3, 0x48, 0x0F, 0xAE, 0xC8) // RDGSBASE RAX
	move(store, 0, atGS)
	b = append(b, 0x0F, 0x20, 0xD0) // MOV RAX, CR2
	move(store, 0, atCR2)
	b = append(b, 0xE6, donePort) // OUT
	b = jump(b, 0)

	for v := range 33 {
		for len(b) < handlers+16*v {
			b = append(b, 0xCC)
		}
		switch v {
		case 14:
			b = jump(b, atFault)
			continue
		case 32:
			b = jump(b, atIRQ)
			continue
		case 8, 10, 11, 12, 13, 17: // these have an error code
		default:
			b = append(b, 0x6A, 0)
		}
		b = jump(append(b, 0x6A, uint8(v)), common)
	}
	return pagerCode(b, common)
}

// jump appends a JMP to offset to.
func jump(b []byte, to int) []byte {
	b = append(b, 0xE9)
	return binary.LittleEndian.AppendUint32(b, uint32(to-(len(b)+4)))
}

// The machine around the CPU: three ports, and interrupt 32.

// WritePort implements [hv.IO]: the monitor ended a case.
func (g *Guest) WritePort(port uint16, _ []byte) {
	switch port {
	case donePort:
		g.done = true
		g.cpu.Kick()
	case faultPort:
		g.fault()
	case irqPort:
		g.interrupted()
	}
}

var errNone = errors.New("no such MSR")

// The rest of [hv.IO] is an empty board.
func (g *Guest) ReadPort(_ uint16, p []byte)         { clear(p) }
func (g *Guest) ReadMMIO(_ mem.Addr, p []byte)       { clear(p) }
func (g *Guest) WriteMMIO(mem.Addr, []byte)          {}
func (g *Guest) ReadMSR(uint32) (uint64, error)      { return 0, errNone }
func (g *Guest) WriteMSR(uint32, uint64) error       { return errNone }
func (g *Guest) Pending() bool                       { return g.irq.Load() }
func (g *Guest) TakeNMI() bool                       { return false }
func (g *Guest) Acknowledge() (vector uint8, _ bool) { return 32, g.irq.CompareAndSwap(true, false) }
func (g *Guest) CR8() uint64                         { return 0 }
func (g *Guest) SetCR8(uint64)                       {}
