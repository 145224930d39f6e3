package irq

import (
	"encoding/gob"
	"fmt"

	"vitrine.dev/vitrine/internal/mem"
)

// Claims tells whether a is in the page where this CPU sees its local APIC now. It is cheap.
func (l *LAPIC) Claims(a mem.Addr) bool {
	b := l.base.Load()
	return b&(baseEnable|baseX2APIC) == baseEnable && uint64(a)&^0xFFF == b&^0xFFF
}

// ReadMMIO answers a read in the page. Registers are 32 bits wide at multiples of 16.
func (l *LAPIC) ReadMMIO(off uint64, p []byte) {
	off &= 0xFFF
	var v uint32
	if off&0xF < 4 {
		v = l.read(int(off >> 4))
	}
	put32(p, off, v)
}

// WriteMMIO takes a write in the page.
func (l *LAPIC) WriteMMIO(off uint64, p []byte) {
	off &= 0xFFF
	if v, ok := get32(p, off); ok && off&0xF == 0 {
		l.write(int(off>>4), v)
	}
}

// read is the register's value in either mode.
func (l *LAPIC) read(reg int) uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch reg {
	case regID:
		if l.x2apic() {
			return uint32(l.id)
		}
		return uint32(l.id) << 24
	case regVersion:
		return version
	case regTPR:
		return l.tpr.Load()
	case regAPR, regPPR:
		return l.ppr()
	case regLDR:
		if l.x2apic() {
			return l.x2LDR()
		}
		return l.ldr
	case regDFR:
		return l.dfr
	case regSVR:
		return l.svr
	case regESR:
		return l.esr
	case regICR:
		return uint32(l.icr)
	case regICRHigh:
		return uint32(l.icr >> 32)
	case regInitial:
		return l.timer.initial
	case regCurrent:
		return l.timer.current(l.clk.Now(), l.timerMode())
	case regDivide:
		return l.timer.divideReg
	case regEOI:
		return 0
	}
	switch {
	case reg >= regISR && reg < regISR+8:
		return word(&l.isr, reg-regISR)
	case reg >= regTMR && reg < regTMR+8:
		return word(&l.tmr, reg-regTMR)
	case reg >= regIRR && reg < regIRR+8:
		return word(&l.irr, reg-regIRR)
	case reg >= regLVTTimer && reg <= regLVTError:
		return l.lvt[reg-regLVTTimer]
	}
	l.fail(esrRegister)
	return 0
}

func word(v *[4]uint64, i int) uint32 { return uint32(v[i/2] >> (32 * (i & 1))) }

// write is a write to a 32-bit register.
func (l *LAPIC) write(reg int, v uint32) {
	switch reg { // those that reach beyond this CPU, without its lock
	case regEOI:
		l.eoi()
		return
	case regICR:
		l.mu.Lock()
		l.icr = l.icr&^0xFFFFFFFF | uint64(v&^(1<<12))
		icr := l.icr
		l.mu.Unlock()
		l.send(icr, false)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch reg {
	case regTPR:
		l.tpr.Store(v & 0xFF)
		l.update()
	case regLDR:
		l.ldr = v & 0xFF000000
	case regDFR:
		l.dfr = v | 0x0FFFFFFF
	case regSVR:
		l.writeSVR(v)
	case regESR:
		l.esr, l.errors = l.errors, 0
	case regICRHigh:
		l.icr = l.icr&0xFFFFFFFF | uint64(v&0xFF000000)<<32
	case regInitial:
		if l.timerMode() != timerDeadline {
			l.timer.initial = v
			l.timer.start(l.clk.Now())
		}
	case regDivide:
		l.timer.setDivide(v, l.clk.Now(), l.timerMode())
	case regID, regVersion, regAPR, regPPR, regCurrent: // read-only
	default:
		switch {
		case reg >= regLVTTimer && reg <= regLVTError:
			l.writeLVT(reg, v)
		case reg < regISR || reg >= regIRR+8:
			l.fail(esrRegister)
		}
	}
}

func (l *LAPIC) writeSVR(v uint32) {
	l.svr = v & 0x3FF
	if v&svrEnable == 0 {
		for i := range l.lvt { // SDM vol. 3A 11.4.7.2
			l.lvt[i] |= lvtMasked
		}
		l.timer.stop()
	}
	l.update()
}

func (l *LAPIC) writeLVT(reg int, v uint32) {
	i := reg - regLVTTimer
	v &= lvtWritable[i]
	if l.svr&svrEnable == 0 {
		v |= lvtMasked
	}
	if reg == regLVTTimer && (v^l.lvt[i])>>17&3 != 0 {
		// Changing to or from deadline mode disarms (SDM vol. 3A 11.5.4.1); the other change keeps counting.
		if v>>17&3 >= timerDeadline || l.timerMode() >= timerDeadline {
			l.timer.stop()
		}
	}
	l.lvt[i] = v
	l.update()
}

// ReadMSR serves IA32_APIC_BASE, the TSC deadline and the x2APIC. An error becomes #GP.
func (l *LAPIC) ReadMSR(msr uint32) (uint64, error) {
	switch {
	case msr == msrAPICBase:
		return l.base.Load(), nil
	case msr == msrTSCDeadline:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.timer.deadline, nil
	case msr < msrX2APIC || msr >= msrX2APICEnd || !l.x2apic():
		return 0, errMSR
	}
	reg := int(msr - msrX2APIC)
	switch {
	case reg == regICR:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.icr, nil
	case reg == regID, reg == regVersion, reg == regTPR, reg == regPPR, reg == regLDR, reg == regSVR,
		reg >= regISR && reg <= regESR, reg >= regLVTTimer && reg <= regCurrent, reg == regDivide:
		return uint64(l.read(reg)), nil
	}
	return 0, errMSR
}

// x2Writable is which bits of x2APIC registers of 32 bits may be set; a write of others, or of other registers, is #GP.
var x2Writable = map[int]uint64{
	regTPR: 0xFF, regEOI: 0, regSVR: 0x3FF, regESR: 0, regInitial: 0xFFFFFFFF, regDivide: 0xB, regSelfIPI: 0xFF,
	regLVTTimer: 0x710FF, regLVTThermal: 0x117FF, regLVTPerf: 0x117FF, regLVTLINT0: 0x1F7FF, regLVTLINT1: 0x1F7FF, regLVTError: 0x110FF,
}

// WriteMSR serves the same. An error becomes #GP.
func (l *LAPIC) WriteMSR(msr uint32, v uint64) error {
	switch {
	case msr == msrAPICBase:
		return l.writeBase(v)
	case msr == msrTSCDeadline:
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.timerMode() == timerDeadline {
			l.setDeadline(v)
		}
		return nil
	case msr < msrX2APIC || msr >= msrX2APICEnd || !l.x2apic():
		return errMSR
	}
	reg := int(msr - msrX2APIC)
	if reg == regEOI && v == 0 { // the hot one
		l.eoi()
		return nil
	}
	if reg == regICR {
		if v&0xFFF32000 != 0 {
			return errMSR
		}
		l.mu.Lock()
		l.icr = v &^ (1 << 12)
		l.mu.Unlock()
		l.send(v, true)
		return nil
	}
	allowed, ok := x2Writable[reg]
	if !ok || v&^allowed != 0 {
		return errMSR
	}
	if reg == regSelfIPI {
		l.send(v|shorthandSelf<<18, true)
		return nil
	}
	l.write(reg, uint32(v))
	return nil
}

// writeBase is IA32_APIC_BASE with the transitions of SDM vol. 3A 11.12.5.
func (l *LAPIC) writeBase(v uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.base.Load()
	const addr = 0xF_FFFF_FFFF_F000
	if v&^(addr|baseEnable|baseX2APIC|baseBSP) != 0 {
		return errMSR
	}
	switch was, is := old&(baseEnable|baseX2APIC), v&(baseEnable|baseX2APIC); {
	case is == baseX2APIC,
		was == baseEnable|baseX2APIC && is == baseEnable,
		was == 0 && is == baseEnable|baseX2APIC:
		return errMSR
	case was != is && is == 0:
		l.base.Store(v)
		l.reset()
	}
	l.base.Store(v)
	l.update()
	return nil
}

type lapicState struct {
	Base          uint64
	TPR           uint32
	ISR, TMR, IRR [4]uint64
	NMI           bool
	LDR, DFR, SVR uint32
	ESR, Errors   uint32
	ICR           uint64
	LVT           [6]uint32
	Timer         timerState
}

// Save implements bus.Stateful.
func (l *LAPIC) Save(enc *gob.Encoder) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return enc.Encode(lapicState{
		Base: l.base.Load(), TPR: l.tpr.Load(), ISR: l.isr, TMR: l.tmr, IRR: l.irr, NMI: l.nmi, LDR: l.ldr, DFR: l.dfr, SVR: l.svr,
		ESR: l.esr, Errors: l.errors, ICR: l.icr, LVT: l.lvt, Timer: l.timer.save(),
	})
}

// Load implements bus.Stateful. The clock is restored before.
func (l *LAPIC) Load(dec *gob.Decoder) error {
	var s lapicState
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("lapic %d: %w", l.id, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base.Store(s.Base)
	l.tpr.Store(s.TPR & 0xFF)
	l.isr, l.tmr, l.irr, l.nmi = s.ISR, s.TMR, s.IRR, s.NMI
	l.ldr, l.dfr, l.svr, l.esr, l.errors, l.icr, l.lvt = s.LDR, s.DFR, s.SVR, s.ESR, s.Errors, s.ICR, s.LVT
	l.timer.load(s.Timer, l.timerMode(), l.clk.Now())
	l.update()
	return nil
}
