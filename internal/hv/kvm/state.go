package kvm

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
)

// MSRs that are treated by name; most are fields of State, or the machine's.
const (
	msrTSC          = 0x10
	msrAPICBase     = 0x1B
	msrMiscEnable   = 0x1A0
	msrMTRRDefault  = 0x2FF
	msrTSCDeadline  = 0x6E0
	msrX2APIC       = 0x800
	msrX2APICEnd    = 0x900
	msrHyperV       = 0x40000000
	msrHyperVEnd    = 0x40000200
	msrEFER         = 0xC0000080
	msrLSTAR        = 0xC0000082
	msrFSBase       = 0xC0000100
	msrGSBase       = 0xC0000101
	msrKernelGSBase = 0xC0000102
)

// Clock is a number that is no MSR's, under which State.MSR of CPU 0 has kvm-clock's nanoseconds.
const Clock = 0xFFFF_C10C

// segments pairs KVM's segment registers with State's.
func segments(s *specialRegs, r *x86.Regs) [8]struct {
	k *segment
	x *x86.Segment
} {
	return [8]struct {
		k *segment
		x *x86.Segment
	}{
		{&s.es, &r.Seg[x86.ES]}, {&s.cs, &r.Seg[x86.CS]}, {&s.ss, &r.Seg[x86.SS]}, {&s.ds, &r.Seg[x86.DS]}, {&s.fs, &r.Seg[x86.FS]},
		{&s.gs, &r.Seg[x86.GS]}, {&s.ldt, &r.LDTR}, {&s.tr, &r.TR},
	}
}

func (s *segment) get(x *x86.Segment) {
	*x = x86.Segment{Selector: s.selector, Base: s.base, Limit: s.limit}
	x.Access = uint16(s.kind&15) | uint16(s.s&1)<<4 | uint16(s.dpl&3)<<5 | uint16(s.present&1)<<7 |
		uint16(s.avl&1)<<12 | uint16(s.l&1)<<13 | uint16(s.db&1)<<14 | uint16(s.g&1)<<15
	if s.unusable != 0 {
		x.Access &^= x86.SegPresent
	}
}

func (s *segment) set(x *x86.Segment) {
	bit := func(n int) uint8 { return uint8(x.Access>>n) & 1 }
	*s = segment{base: x.Base, limit: x.Limit, selector: x.Selector, kind: uint8(x.Access & 15), s: bit(4), dpl: uint8(x.DPL()),
		present: bit(7), avl: bit(12), l: bit(13), db: bit(14), g: bit(15), unusable: bit(7) ^ 1}
}

// general pairs KVM's order of general registers with State's.
func (g *generalRegs) list() [16]*uint64 {
	return [16]*uint64{&g.rax, &g.rcx, &g.rdx, &g.rbx, &g.rsp, &g.rbp, &g.rsi, &g.rdi,
		&g.r[0], &g.r[1], &g.r[2], &g.r[3], &g.r[4], &g.r[5], &g.r[6], &g.r[7]}
}

// readRegs fills all of r but XCR0 and what MSRs hold, which need requests of their own and are had by State.
func (v *VCPU) readRegs(r *x86.Regs) error {
	var g generalRegs
	if _, err := ioctlAt(v.fd, getRegs, &g); err != nil {
		return v.wrap("registers", err)
	}
	var s specialRegs
	if _, err := ioctlAt(v.fd, getSRegs, &s); err != nil {
		return v.wrap("special registers", err)
	}
	fillRegs(r, &g, &s)
	if r.CR8 = v.io.CR8(); v.vm.chip {
		r.CR8 = s.cr8
	}
	for _, m := range []struct {
		msr uint32
		to  *uint64
	}{{msrKernelGSBase, &r.KernelGSBase}, {msrLSTAR, &r.LSTAR}} {
		value, err := v.readMSR(m.msr)
		if err != nil {
			return err
		}
		*m.to = value
	}
	return nil
}

// fillRegs makes r of KVM's structures, without CR8.
func fillRegs(r *x86.Regs, g *generalRegs, s *specialRegs) {
	*r = x86.Regs{RIP: g.rip, RFLAGS: g.rflags, CR0: s.cr0, CR2: s.cr2, CR3: s.cr3, CR4: s.cr4, EFER: s.efer}
	for i, p := range g.list() {
		r.GPR[i] = *p
	}
	for _, p := range segments(s, r) {
		p.k.get(p.x)
	}
	r.GDTR, r.IDTR = x86.Table{Base: s.gdt.base, Limit: s.gdt.limit}, x86.Table{Base: s.idt.base, Limit: s.idt.limit}
}

func (v *VCPU) wrap(what string, err error) error {
	return fmt.Errorf("kvm: CPU %d: %s: %w", v.id, what, err)
}

// State implements [hv.VCPU].
func (v *VCPU) State(s *x86.State) error {
	if err := v.prepare(); err != nil {
		return err
	}
	*s = x86.State{TSCHz: v.tscHz}
	if err := v.readRegs(&s.Regs); err != nil {
		return err
	}
	if err := v.readXCR0(s); err != nil {
		return err
	}
	if err := v.readFPU(s); err != nil {
		return err
	}
	if err := v.readMSRs(s); err != nil {
		return err
	}
	var d debugRegs
	if _, err := ioctlAt(v.fd, getDebugRegs, &d); err != nil {
		return v.wrap("debug registers", err)
	}
	copy(s.DR[:4], d.db[:])
	s.DR[6], s.DR[7] = d.dr6, d.dr7
	return v.readEvents(s)
}

func (v *VCPU) readEvents(s *x86.State) error {
	var e vcpuEvents
	if _, err := ioctlAt(v.fd, getVCPUEvents, &e); err != nil {
		return v.wrap("events", err)
	}
	switch {
	case e.exception.injected != 0:
		s.Pending = x86.Event{Valid: true, Vector: e.exception.vector, HasErrorCode: e.exception.hasError != 0, ErrorCode: e.exception.code}
	case e.interrupt.injected != 0:
		s.Pending = x86.Event{Valid: true, Vector: e.interrupt.vector, Software: e.interrupt.soft != 0}
	case e.nmi.injected != 0:
		s.Pending = x86.Event{Valid: true, Vector: uint8(x86.NMIVector)}
	}
	s.NMI, s.NMIMasked = e.nmi.pending != 0, e.nmi.masked != 0
	s.Shadow = e.interrupt.shadow != 0
	if v.vm.chip {
		return v.readLAPIC(s)
	}
	if v.halted {
		s.MP = x86.Halted
	}
	return nil
}

// SetState implements [hv.VCPU]. MSRs that s does not name stay.
func (v *VCPU) SetState(s *x86.State) error {
	if err := v.setRate(s.TSCHz); err != nil {
		return err
	}
	if err := v.prepare(); err != nil {
		return err
	}
	sr := specialRegs{cr0: s.CR0, cr2: s.CR2, cr3: s.CR3, cr4: s.CR4, cr8: s.CR8, efer: s.EFER, apicBase: v.apicBase}
	if base, ok := s.MSR[msrAPICBase]; ok && v.vm.chip {
		sr.apicBase = base
	}
	for _, p := range segments(&sr, &s.Regs) {
		p.k.set(p.x)
	}
	sr.gdt, sr.idt = table{base: s.GDTR.Base, limit: s.GDTR.Limit}, table{base: s.IDTR.Base, limit: s.IDTR.Limit}
	if _, err := ioctlAt(v.fd, setSRegs, &sr); err != nil {
		return v.wrap("special registers", err)
	}
	g := generalRegs{rip: s.RIP, rflags: s.RFLAGS | x86.Fixed}
	for i, p := range g.list() {
		*p = s.GPR[i]
	}
	if _, err := ioctlAt(v.fd, setRegs, &g); err != nil {
		return v.wrap("registers", err)
	}
	if err := v.writeXCR0(s); err != nil {
		return err
	}
	if err := v.writeFPU(s); err != nil {
		return err
	}
	if err := v.writeMSRs(s); err != nil {
		return err
	}
	d := debugRegs{dr6: s.DR[6], dr7: s.DR[7]}
	copy(d.db[:], s.DR[:4])
	if _, err := ioctlAt(v.fd, setDebugRegs, &d); err != nil {
		return v.wrap("debug registers", err)
	}
	return v.writeEvents(s)
}

func (v *VCPU) writeEvents(s *x86.State) error {
	e := vcpuEvents{flags: eventsNMIPending | eventsShadow}
	switch p := s.Pending; {
	case !p.Valid:
	case p.Vector == uint8(x86.NMIVector) && !p.Software:
		e.nmi.injected = 1
	case p.Vector < 32 && !p.Software:
		e.exception.injected, e.exception.vector, e.exception.code = 1, p.Vector, p.ErrorCode
		if p.HasErrorCode {
			e.exception.hasError = 1
		}
	default:
		e.interrupt.injected, e.interrupt.vector = 1, p.Vector
		if p.Software {
			e.interrupt.soft = 1
		}
	}
	if s.NMI {
		e.nmi.pending = 1
	}
	if s.NMIMasked {
		e.nmi.masked = 1
	}
	if s.Shadow {
		e.interrupt.shadow = shadowSTI
	}
	if _, err := ioctlAt(v.fd, setVCPUEvents, &e); err != nil {
		return v.wrap("events", err)
	}
	v.inIO = false
	if v.vm.chip {
		return v.writeLAPIC(s)
	}
	v.halted = s.MP == x86.Halted
	v.page.ready = 0 // the next entry tells
	if v.halted && s.RFLAGS&x86.IF != 0 {
		v.page.ready = 1
	}
	return nil
}
