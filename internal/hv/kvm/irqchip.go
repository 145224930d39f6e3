package kvm

//lint:file-ignore U1000 the structures are KVM's (include/uapi/linux/kvm.h): a field that we do not use keeps the place of those behind it

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
)

// Interrupt controllers in the kernel ([hv.IRQChip]): no access to them is an exit, timers of LAPICs are the kernel's, HLT waits in KVM_RUN.

// Chips of KVM_GET_IRQCHIP, and of routes.
const (
	chipPICMaster = iota
	chipPICSlave
	chipIOAPIC

	chipSize = 512 // of each one's state
	ioPins   = 24
)

type irqLevel struct {
	irq   uint32
	level int32 // in: the level; out: 0 where an edge merged into one that waits
}

type msi struct {
	low, high, data, flags uint32
	_                      [4]uint32
}

type chipState struct {
	id, _ uint32
	data  [chipSize]byte
}

// CreateIRQChip implements [hv.IRQChip].
func (v *VM) CreateIRQChip() error {
	if _, err := ioctl(v.fd, createIRQChip, 0); err != nil {
		return fmt.Errorf("kvm: interrupt controllers: %w", err)
	}
	if err := v.routes.wire(v.fd); err != nil {
		return err
	}
	v.chip = true
	return nil
}

// SetLine implements [hv.IRQChip].
func (v *VM) SetLine(pin int, level bool) (seen bool) {
	l := irqLevel{irq: uint32(pin)}
	if level {
		l.level = 1
	}
	_, err := ioctlAt(v.fd, irqLineStatus, &l)
	return err != nil || l.level != 0
}

// SignalMSI implements [hv.IRQChip]. A message that names nobody is dropped.
func (v *VM) SignalMSI(addr uint64, data uint32) {
	ioctlAt(v.fd, signalMSI, &msi{low: uint32(addr), high: uint32(addr >> 32), data: data})
}

// ChipState implements [hv.IRQChip].
func (v *VM) ChipState() ([]byte, error) {
	var all []byte
	for id := range uint32(chipIOAPIC + 1) {
		c := chipState{id: id}
		if _, err := ioctlAt(v.fd, getIRQChip, &c); err != nil {
			return nil, fmt.Errorf("kvm: interrupt controller %d: %w", id, err)
		}
		all = append(all, c.data[:]...)
	}
	return all, nil
}

// SetChipState implements [hv.IRQChip].
func (v *VM) SetChipState(p []byte) error {
	if len(p) != (chipIOAPIC+1)*chipSize {
		return fmt.Errorf("kvm: %d bytes of interrupt controllers, want %d", len(p), (chipIOAPIC+1)*chipSize)
	}
	for id := range uint32(chipIOAPIC + 1) {
		c := chipState{id: id}
		copy(c.data[:], p[id*chipSize:])
		if _, err := ioctlAt(v.fd, setIRQChip, &c); err != nil {
			return fmt.Errorf("kvm: interrupt controller %d: %w", id, err)
		}
	}
	return nil
}

// States of a CPU to KVM (KVM_MP_STATE_*).
const (
	mpRunnable      = 0
	mpUninitialized = 1
	mpInitReceived  = 2
	mpHalted        = 3
)

type lapicPage [1024]byte

// announce makes KVM find the CPU by its APIC id: its map was made before the CPU was there, and is made anew when a LAPIC's state is set
// (kvm_recalculate_apic_map).
func (v *VCPU) announce() error {
	if !v.vm.chip {
		return nil
	}
	var page lapicPage
	if _, err := ioctlAt(v.fd, getLAPIC, &page); err != nil {
		return v.wrap("LAPIC", err)
	}
	if _, err := ioctlAt(v.fd, setLAPIC, &page); err != nil {
		return v.wrap("LAPIC", err)
	}
	return nil
}

// readLAPIC fills what a CPU with a LAPIC in the kernel has beside its registers.
func (v *VCPU) readLAPIC(s *x86.State) error {
	var mp uint32
	if _, err := ioctlAt(v.fd, getMPState, &mp); err != nil {
		return v.wrap("state", err)
	}
	switch mp {
	case mpUninitialized, mpInitReceived:
		s.MP = x86.WaitForSIPI
	case mpHalted:
		s.MP = x86.Halted
	}
	var page lapicPage
	if _, err := ioctlAt(v.fd, getLAPIC, &page); err != nil {
		return v.wrap("LAPIC", err)
	}
	s.LAPIC = page[:]
	for _, msr := range []uint32{msrAPICBase, msrTSCDeadline} {
		value, err := v.readMSR(msr)
		if err != nil {
			return err
		}
		s.MSR[msr] = value
	}
	return nil
}

// writeLAPIC is readLAPIC's other half; the APIC base is set with the special registers, before. A state without a LAPIC leaves that alone.
func (v *VCPU) writeLAPIC(s *x86.State) error {
	if len(s.LAPIC) != 0 {
		var page lapicPage
		copy(page[:], s.LAPIC)
		if _, err := ioctlAt(v.fd, setLAPIC, &page); err != nil {
			return v.wrap("LAPIC", err)
		}
		deadline := []msrEntry{{index: msrTSCDeadline, data: s.MSR[msrTSCDeadline]}}
		if len(v.sieve(setMSRs, deadline)) != 1 {
			return v.wrap("TSC deadline", fmt.Errorf("%#x is refused", deadline[0].data))
		}
	}
	mp := map[x86.MPState]uint32{x86.Runnable: mpRunnable, x86.WaitForSIPI: mpInitReceived, x86.Halted: mpHalted}[s.MP]
	if _, err := ioctlAt(v.fd, setMPState, &mp); err != nil {
		return v.wrap("state", err)
	}
	return nil
}

// sleeps tells whether the CPU waits inside KVM_RUN: halted, or for its SIPI.
func (v *VCPU) sleeps() bool {
	if !v.vm.chip {
		return false
	}
	var mp uint32
	_, err := ioctlAt(v.fd, getMPState, &mp)
	return err == nil && mp != mpRunnable
}
