package interp

import (
	"fmt"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

func newCPU(vm *VM, id int, io hv.IO) *CPU {
	c := &CPU{ID: id, vm: vm, io: io, ram: vm.ram, features: vm.model.Decode()}
	c.tsc.base, c.tsc.mul = vm.tscBase, tscMul()
	c.tlbs.init()
	c.Reset()
	return c
}

// Reset is what RESET# leaves (SDM vol. 3A table 10-1), except that the time-stamp counter goes on.
func (c *CPU) Reset() {
	c.gpr = [len(c.gpr)]uint64{}
	c.gpr[x86.RDX] = signature
	c.setRflags(0)
	c.rip = 0xFFF0
	data := x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed}
	for i := range c.seg {
		c.seg[i] = data
	}
	c.seg[x86.CS] = x86.Segment{Selector: 0xF000, Base: 0xFFFF0000, Limit: 0xFFFF, Access: data.Access | x86.SegCode}
	c.ldtr = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | sysLDT}
	c.tr = x86.Segment{Limit: 0xFFFF, Access: x86.SegPresent | sysTSSBusy}
	c.gdtr, c.idtr = x86.Table{Limit: 0xFFFF}, x86.Table{Limit: 0xFFFF}
	c.cr0, c.cr2, c.cr3, c.cr4, c.efer, c.xcr0 = x86.CR0CD|x86.CR0NW|x86.CR0ET, 0, 0, 0, 0, 1
	c.dr = [8]uint64{6: dr6Ones, 7: dr7Ones}
	c.msr.reset()
	fpu.Reset(&c.fpu)
	c.shadow, c.nmiMasked, c.halted = false, false, false
	c.poll.And(^uint32(pollHalt | pollShutdown))
	c.refresh()
}

// refresh derives all that follows from the registers.
func (c *CPU) refresh() {
	pcid := uint16(0)
	if c.cr4&x86.CR4PCIDE != 0 {
		pcid = uint16(c.cr3 & 0xFFF)
	}
	c.tlbs.flushAll()
	c.tlbs.cur = c.tlbs.space(pcid)
	c.spaceChanged(c.space.PDPTE)
	c.modeChanged()
}

// regs fills r. It runs between instructions.
func (c *CPU) regs(r *x86.Regs) {
	copy(r.GPR[:], c.gpr[:16])
	r.RIP, r.RFLAGS = c.rip, c.rflags()
	r.CR0, r.CR2, r.CR3, r.CR4, r.CR8 = c.cr0, c.cr2, c.cr3, c.cr4, c.io.CR8()
	r.EFER, r.XCR0 = c.efer, c.xcr0
	r.Seg, r.LDTR, r.TR = c.seg, c.ldtr, c.tr
	r.GDTR, r.IDTR = c.gdtr, c.idtr
	r.KernelGSBase, r.LSTAR = c.msr.kernelGS, c.msr.lstar
}

// fieldMSR tells whether an MSR has a field of its own in x86.State.
func fieldMSR(n uint32) bool {
	switch n {
	case msrKernelGSBase, msrLSTAR, msrEFER, msrFSBase, msrGSBase, msrTSC:
		return true
	}
	return false
}

// State fills s with all of the CPU. Call it between Runs.
func (c *CPU) State(s *x86.State) error {
	*s = x86.State{}
	c.regs(&s.Regs)
	s.FPU, s.DR, s.TSC = c.fpu, c.dr, c.TSC()
	s.MSR = make(map[uint32]uint64, len(msrTable)+1)
	for n, row := range msrTable {
		if !fieldMSR(n) {
			s.MSR[n] = *row.at(&c.msr)
		}
	}
	s.MSR[msrTSCAdjust] = c.msr.tscAdjust
	if c.halted {
		s.MP = x86.Halted
	}
	s.NMIMasked, s.Shadow = c.nmiMasked, c.shadow
	return nil
}

// SetState makes s the CPU's state. Call it between Runs. MSRs that are not in s.MSR keep their value; those that this CPU does not know, and values
// it cannot take, are an error.
func (c *CPU) SetState(s *x86.State) error {
	if s.Pending.Valid {
		return fmt.Errorf("interp: state with an event of vector %d under way", s.Pending.Vector)
	}
	if s.CR4&^c.vm.cr4 != 0 || s.XCR0&^(c.vm.xcr0|1) != 0 {
		return fmt.Errorf("interp: state with features that this CPU has not: CR4 %#x, XCR0 %#x", s.CR4, s.XCR0)
	}
	for n, v := range s.MSR {
		switch row, ok := msrTable[n]; {
		case ok:
			*row.at(&c.msr) = v
		case n == msrTSCAdjust:
			c.msr.tscAdjust = v
		case machineMSR(n):
		default:
			return fmt.Errorf("interp: state with MSR %#x, which this CPU has not", n)
		}
	}
	copy(c.gpr[:16], s.GPR[:])
	c.rip = s.RIP
	c.setRflags(s.RFLAGS)
	c.cr0, c.cr2, c.cr3, c.cr4 = s.CR0|x86.CR0ET, s.CR2, s.CR3, s.CR4
	c.efer, c.xcr0 = s.EFER, s.XCR0|1
	c.seg, c.ldtr, c.tr = s.Seg, s.LDTR, s.TR
	c.gdtr, c.idtr = s.GDTR, s.IDTR
	c.msr.kernelGS, c.msr.lstar = s.KernelGSBase, s.LSTAR
	c.fpu, c.dr = s.FPU, s.DR
	c.dr[6], c.dr[7] = c.dr[6]&0xE00F|dr6Ones, c.dr[7]&dr7Bits|dr7Ones
	// A state that was taken a moment ago (for INIT, say) does not set the counter back: CPUs' counters stay equal, as KVM keeps them too.
	if d := int64(s.TSC - c.TSC()); s.TSC != 0 && (d > int64(TSCHz()) || -d > int64(TSCHz())) {
		c.tsc.offset.Add(uint64(d))
	}
	c.cpl = uint8(s.CPL())
	c.nmiMasked, c.shadow = s.NMIMasked, s.Shadow
	c.halted = s.MP == x86.Halted
	c.poll.And(^uint32(pollHalt | pollShutdown))
	if c.halted {
		c.poll.Or(pollHalt)
	}
	c.poll.Or(pollIntr)
	c.refresh()
	c.vecChanged()
	if c.cr0&x86.CR0PG != 0 && c.efer&x86.EFERLMA == 0 && c.cr4&x86.CR4PAE != 0 {
		c.space.PDPTE, _ = mmu.LoadPDPTE(c.ram, c.cr3)
	}
	return nil
}
