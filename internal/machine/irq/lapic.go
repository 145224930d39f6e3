package irq

import (
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/clock"
	"vitrine.dev/vitrine/internal/machine/layout"
)

// Registers of the local APIC: the offset in its page is 16 times, the x2APIC's MSR 0x800 plus, this (SDM vol. 3A tables 11-1 and 11-6).
const (
	regID         = 0x02
	regVersion    = 0x03
	regTPR        = 0x08
	regAPR        = 0x09
	regPPR        = 0x0A
	regEOI        = 0x0B
	regLDR        = 0x0D
	regDFR        = 0x0E
	regSVR        = 0x0F
	regISR        = 0x10 // 8 registers each
	regTMR        = 0x18
	regIRR        = 0x20
	regESR        = 0x28
	regICR        = 0x30
	regICRHigh    = 0x31
	regLVTTimer   = 0x32
	regLVTThermal = 0x33
	regLVTPerf    = 0x34
	regLVTLINT0   = 0x35
	regLVTLINT1   = 0x36
	regLVTError   = 0x37
	regInitial    = 0x38
	regCurrent    = 0x39
	regDivide     = 0x3E
	regSelfIPI    = 0x3F
)

// MSRs of the local APIC.
const (
	msrAPICBase    = 0x1B
	msrTSCDeadline = 0x6E0
	msrX2APIC      = 0x800
	msrX2APICEnd   = 0x900
)

const (
	version = 5<<16 | 0x14 // six LVT entries, an integrated APIC

	baseBSP    = 1 << 8
	baseX2APIC = 1 << 10
	baseEnable = 1 << 11

	svrEnable = 1 << 8

	lvtMasked = 1 << 16

	esrSendVector    = 1 << 5
	esrReceiveVector = 1 << 6
	esrRegister      = 1 << 7
)

// lvtWritable is which bits of each LVT entry can be written, from regLVTTimer on.
var lvtWritable = [6]uint32{0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF}

// errMSR becomes #GP.
var errMSR = errors.New("lapic: no such MSR, or a value it does not take")

// A LAPIC is the local APIC of one CPU. It serves what hv.IO asks for a CPU: Pending, TakeNMI, Acknowledge, CR8, SetCR8, ReadMSR, WriteMSR.
type LAPIC struct {
	chips *Chips
	id    int
	cpu   CPU
	clk   *clock.Clock
	timer timer

	pending atomic.Bool   // an interrupt or NMI can be delivered; written with mu held
	base    atomic.Uint64 // IA32_APIC_BASE; written with mu held
	tpr     atomic.Uint32 // written with mu held

	mu            sync.Mutex
	isr, tmr, irr [4]uint64
	nmi, ext      bool // an NMI waits; the PIC's output
	ldr, dfr, svr uint32
	esr, errors   uint32 // as last latched by a write; collected since
	icr           uint64
	lvt           [6]uint32 // from regLVTTimer on
}

func newLAPIC(c *Chips, id int, cfg Config) *LAPIC {
	l := &LAPIC{chips: c, id: id, cpu: cfg.CPUs[id], clk: cfg.Clock}
	l.timer = timer{tsc: func() uint64 { return cfg.TSC(id) }, tscHz: cfg.TSCHz, divide: 2, alarm: cfg.Clock.NewTimer(l.timerFired)}
	l.base.Store(layout.LAPIC | baseEnable)
	if id == 0 {
		l.base.Store(layout.LAPIC | baseEnable | baseBSP)
	}
	l.reset()
	if id == 0 {
		// Virtual wire mode, as firmware leaves the boot CPU (MultiProcessor Specification 1.4, 3.6.2.2).
		l.lvt[regLVTLINT0-regLVTTimer] = extINT << 8
		l.lvt[regLVTLINT1-regLVTTimer] = nmi << 8
	}
	return l
}

// reset is the state after INIT (SDM vol. 3A 11.4.7.3).
func (l *LAPIC) reset() {
	l.isr, l.tmr, l.irr = [4]uint64{}, [4]uint64{}, [4]uint64{}
	l.nmi = false
	l.tpr.Store(0)
	l.ldr, l.dfr, l.svr = 0, 0xFFFFFFFF, 0xFF
	l.esr, l.errors, l.icr = 0, 0, 0
	for i := range l.lvt {
		l.lvt[i] = lvtMasked
	}
	l.timer.reset()
	l.update()
}

// Pending tells whether an interrupt or NMI waits. It is an atomic load.
func (l *LAPIC) Pending() bool { return l.pending.Load() }

// TakeNMI consumes a pending NMI.
func (l *LAPIC) TakeNMI() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.nmi
	l.nmi = false
	l.update()
	return was
}

// Acknowledge takes the interrupt with the highest priority: the PIC's first, as KVM does.
func (l *LAPIC) Acknowledge() (vector uint8, ok bool) {
	l.mu.Lock()
	ext := l.acceptsExtINT()
	l.mu.Unlock()
	if ext {
		// Without l.mu: the PIC tells its new output to l.
		if vector, ok = l.chips.PIC.Acknowledge(); ok {
			return vector, true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	v := highest(&l.irr)
	if !l.enabled() || v < 0 || v>>4 <= int(l.ppr()>>4) {
		return 0, false
	}
	l.irr[v>>6] &^= 1 << (v & 63)
	l.isr[v>>6] |= 1 << (v & 63)
	l.update()
	return uint8(v), true
}

// CR8 is the upper half of the task priority register.
func (l *LAPIC) CR8() uint64 { return uint64(l.tpr.Load() >> 4) }

// SetCR8 sets it and clears the lower half.
func (l *LAPIC) SetCR8(v uint64) {
	if uint32(v&15)<<4 == l.tpr.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tpr.Store(uint32(v&15) << 4)
	l.update()
}

// update recomputes pending after any change.
func (l *LAPIC) update() {
	p := l.nmi || l.acceptsExtINT()
	if !p && l.enabled() {
		v := highest(&l.irr)
		p = v >= 0 && v>>4 > int(l.ppr()>>4)
	}
	if l.pending.Swap(p) != p && p {
		l.cpu.Wake()
	}
}

// enabled is for hardware and software.
func (l *LAPIC) enabled() bool { return l.base.Load()&baseEnable != 0 && l.svr&svrEnable != 0 }

func (l *LAPIC) x2apic() bool { return l.base.Load()&baseX2APIC != 0 }

// acceptsExtINT tells whether the PIC's request reaches the CPU. Software enable does not matter: firmware's LINT0 works before it.
func (l *LAPIC) acceptsExtINT() bool {
	if !l.ext {
		return false
	}
	lint0 := l.lvt[regLVTLINT0-regLVTTimer]
	if l.base.Load()&baseEnable == 0 {
		return l.id == 0 // INTR is the CPU's own pin then
	}
	return lint0&lvtMasked == 0 && lint0>>8&7 == extINT
}

// ppr is the processor priority (SDM vol. 3A 11.8.3.1).
func (l *LAPIC) ppr() uint32 {
	tpr := l.tpr.Load()
	if v := highest(&l.isr); v >= 0 && uint32(v)>>4 > tpr>>4 {
		return uint32(v) & 0xF0
	}
	return tpr
}

// arbitration is what lowest-priority delivery compares; ok is false where the CPU takes no interrupts.
func (l *LAPIC) arbitration() (int, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := 0
	for _, w := range l.irr {
		waiting += bits.OnesCount64(w)
	}
	return int(l.ppr())<<8 | waiting, l.enabled()
}

// highest is the highest bit set, or -1.
func highest(v *[4]uint64) int {
	for i := 3; i >= 0; i-- {
		if v[i] != 0 {
			return i<<6 + bits.Len64(v[i]) - 1
		}
	}
	return -1
}

// setExtINT is the PIC's output.
func (l *LAPIC) setExtINT(level bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ext = level
	l.update()
}

// take accepts a message that names this CPU. It returns false where the interrupt waits already.
func (l *LAPIC) take(m message) (fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m.mode {
	case fixed, lowestPriority:
		return l.accept(m.vector, m.level)
	case nmi:
		if l.base.Load()&baseEnable != 0 {
			l.takeNMI()
		}
	case initIPI:
		l.reset()
		l.cpu.Init()
	case startup:
		l.cpu.Startup(m.vector)
	}
	// SMI: the board has no system management mode. ExtINT: only the PIC answers, by LINT0.
	return true
}

// takeNMI wakes the CPU also where something is pending already: it may be halted with that masked.
func (l *LAPIC) takeNMI() {
	if !l.nmi {
		l.nmi = true
		l.pending.Store(true)
		l.cpu.Wake()
	}
}

// accept puts vector into the IRR. It returns false where it is there already.
func (l *LAPIC) accept(vector uint8, level bool) (fresh bool) {
	if vector < 16 {
		l.fail(esrReceiveVector)
		return true
	}
	if !l.enabled() {
		return true
	}
	w, bit := vector>>6, uint64(1)<<(vector&63)
	fresh = l.irr[w]&bit == 0
	if l.irr[w] |= bit; level {
		l.tmr[w] |= bit
	} else {
		l.tmr[w] &^= bit
	}
	l.update()
	return fresh
}

// fail notes an error and raises the error interrupt.
func (l *LAPIC) fail(e uint32) {
	was := l.errors
	l.errors |= e
	if lvt := l.lvt[regLVTError-regLVTTimer]; was&e == 0 && lvt&lvtMasked == 0 && lvt&0xFF >= 16 {
		l.accept(uint8(lvt), false)
	}
}

// matches tells whether m names this CPU (SDM vol. 3A 11.6.2). It takes l.mu.
func (l *LAPIC) matches(m message, from *LAPIC) bool {
	switch m.shorthand {
	case shorthandSelf:
		return l == from
	case shorthandAll:
		return true
	case shorthandOthers:
		return l != from
	}
	if m.dest == 0xFFFFFFFF || !m.x2 && m.dest == 0xFF {
		return true
	}
	if !m.logical {
		return m.dest == uint32(l.id)
	}
	if l.x2apic() {
		ldr := l.x2LDR()
		return m.dest>>16 == ldr>>16 && m.dest&ldr&0xFFFF != 0
	}
	l.mu.Lock()
	ldr, dfr := l.ldr>>24, l.dfr
	l.mu.Unlock()
	if m.dest > 0xFF {
		return false
	}
	if dfr>>28 == 0xF {
		return m.dest&ldr != 0
	}
	return m.dest>>4 == ldr>>4 && m.dest&ldr&0xF != 0
}

func (l *LAPIC) x2LDR() uint32 { return uint32(l.id)>>4<<16 | 1<<(l.id&15) }

// eoi ends the interrupt in service; a level-triggered one is told to the I/O APIC.
func (l *LAPIC) eoi() {
	l.mu.Lock()
	v := highest(&l.isr)
	if v < 0 {
		l.mu.Unlock()
		return
	}
	l.isr[v>>6] &^= 1 << (v & 63)
	level := l.tmr[v>>6]>>(v&63)&1 != 0
	l.update()
	l.mu.Unlock()
	if level {
		l.chips.IOAPIC.eoi(uint8(v))
	}
}

// ICR shorthands (SDM vol. 3A 11.6.1).
const (
	shorthandSelf   = 1
	shorthandAll    = 2
	shorthandOthers = 3
)

// send does what the ICR says.
func (l *LAPIC) send(icr uint64, x2 bool) {
	m := message{
		dest:      uint32(icr >> 32),
		x2:        x2,
		logical:   icr>>11&1 != 0,
		mode:      uint8(icr >> 8 & 7),
		vector:    uint8(icr),
		shorthand: uint8(icr >> 18 & 3),
	}
	if !x2 {
		m.dest >>= 24
	}
	if m.mode <= lowestPriority && m.vector < 16 {
		l.mu.Lock()
		l.fail(esrSendVector)
		l.mu.Unlock()
		return
	}
	if m.mode == initIPI && icr>>15&1 != 0 && icr>>14&1 == 0 {
		return // INIT level de-assert did something on the Pentium only
	}
	l.chips.deliver(m, l)
}
