package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/fpu"
)

// systemHandler is the handler of a system instruction, or nil where in is none.
func systemHandler(in *decode.Inst) handler {
	switch in.Op {
	case decode.MOV:
		return movToSeg
	case decode.PUSH:
		return pushSeg
	case decode.POP:
		return popSeg
	}
	return systemTable[in.Op]
}

var systemTable [decode.NumOps]handler

// fill the table in a function: handlers reach it by way of Run.
func init() {
	systemTable = [decode.NumOps]handler{
		decode.HLT: privileged(hlt), decode.CLI: cli, decode.STI: sti, decode.PUSHF: pushf, decode.POPF: popf,
		decode.INT: intN, decode.INT3: int3, decode.INT1: int1, decode.INTO: into, decode.IRET: func(c *CPU, o *op) bool { return c.iret(o, int(o.inst.Size)) },
		decode.JMPF: farOperand, decode.CALLF: farOperand, decode.RETF: retf,
		decode.LDS: loadFar, decode.LES: loadFar, decode.LSS: loadFar, decode.LFS: loadFar, decode.LGS: loadFar,
		decode.SYSCALL: syscall, decode.SYSRET: sysret, decode.SYSENTER: sysenter, decode.SYSEXIT: sysexit,
		decode.SWAPGS: privileged(swapgs), decode.RDFSBASE: baseOp, decode.RDGSBASE: baseOp, decode.WRFSBASE: baseOp, decode.WRGSBASE: baseOp,
		decode.LGDT: privileged(loadTable), decode.LIDT: privileged(loadTable), decode.SGDT: storeTable, decode.SIDT: storeTable,
		decode.LLDT: protectedOnly(privileged(lldt)), decode.LTR: protectedOnly(privileged(ltr)),
		decode.SLDT: protectedOnly(storeSelector), decode.STR: protectedOnly(storeSelector), decode.SMSW: smsw, decode.LMSW: privileged(lmsw), decode.CLTS: privileged(clts),
		decode.LAR: protectedOnly(larLsl), decode.LSL: protectedOnly(larLsl), decode.VERR: protectedOnly(verify), decode.VERW: protectedOnly(verify), decode.ARPL: protectedOnly(arpl),
		decode.MOVCR: privileged(movCR), decode.MOVDR: privileged(movDR), decode.INVLPG: privileged(invlpg), decode.INVPCID: privileged(invpcid),
		decode.RDMSR: privileged(readMSR), decode.WRMSR: privileged(writeMSR), decode.RDTSC: readTSC, decode.RDTSCP: readTSC, decode.RDPMC: readPMC, decode.RDPID: rdpid,
		decode.WBINVD: privileged(nop), decode.INVD: privileged(nop), decode.CPUID: cpuidOp,
		decode.XGETBV: xgetbv, decode.XSETBV: xsetbv, decode.CLAC: acFlag, decode.STAC: acFlag,
		decode.IN: portIn, decode.OUT: portOut, decode.INS: ins, decode.OUTS: outs,
	}
}

func nop(c *CPU, o *op) bool { return true }

// privileged is h at CPL 0, and #GP(0) elsewhere.
func privileged(h handler) handler {
	return func(c *CPU, o *op) bool {
		if c.cpl != 0 {
			return c.raiseCode(x86.GP, 0)
		}
		return h(c, o)
	}
}

// protectedOnly is h in protected mode, and #UD in real and virtual-8086 mode.
func protectedOnly(h handler) handler {
	return func(c *CPU, o *op) bool {
		if c.real() || c.v86() {
			return c.raise(x86.UD)
		}
		return h(c, o)
	}
}

// umip tells whether CR4.UMIP forbids what reads descriptor registers, and raises #GP(0) if so.
func (c *CPU) umip() bool {
	if c.cpl != 0 && c.cr4&x86.CR4UMIP != 0 {
		c.raiseCode(x86.GP, 0)
		return true
	}
	return false
}

// operand reads argument i, a general register or the memory operand, size bytes of it.
func (c *CPU) operand(o *op, i, size int) (uint64, bool) {
	if a := o.inst.Args[i]; a.Kind == decode.GPR {
		return c.getReg(a.Reg, size), true
	}
	va, ok := c.ea(o)
	if !ok {
		return 0, false
	}
	return c.load(va, uint64(size))
}

// setWord writes a 16-bit result: to a register as wide as the operand, to memory 16 bits.
func (c *CPU) setWord(o *op, v uint64) bool {
	if a := o.inst.Args[0]; a.Kind == decode.GPR {
		c.setReg(a.Reg, int(o.inst.Size), v)
		return true
	}
	va, ok := c.ea(o)
	return ok && c.store16(va, uint16(v))
}

func movToSeg(c *CPU, o *op) bool {
	r := o.inst.Args[0].Reg
	if r == x86.CS || r > x86.GS {
		return c.raise(x86.UD)
	}
	v, ok := c.operand(o, 1, 2)
	if !ok || !c.loadSeg(r, uint16(v)) {
		return false
	}
	if r == x86.SS {
		c.stackShadow()
	}
	return true
}

// stackShadow keeps interrupts and debug traps away until the instruction after this one, which sets the stack pointer.
func (c *CPU) stackShadow() {
	c.shadow, c.noTrap = true, true
	if c.io.Pending() {
		c.poll.Or(pollIntr)
	}
}

func pushSeg(c *CPU, o *op) bool {
	st := c.stack()
	size := int(o.inst.Size)
	v := uint64(c.seg[o.inst.Args[0].Reg].Selector)
	if size == 4 { // Only 16 bits are written (SDM vol. 2B, PUSH).
		st.sp = st.sp&^st.mask | (st.sp-2)&st.mask
		size = 2
	}
	if !st.push(c, v, size) {
		return false
	}
	st.commit(c)
	return true
}

func popSeg(c *CPU, o *op) bool {
	r := o.inst.Args[0].Reg
	st := c.stack()
	v, ok := st.pop(c, int(o.inst.Size))
	if !ok || !c.loadSeg(r, uint16(v)) {
		return false
	}
	if r == x86.SS {
		st.seg = c.seg[x86.SS]
		c.stackShadow()
	}
	st.commit(c)
	return true
}

// farPointer reads the memory operand: an offset of the operand size, then a selector.
func (c *CPU) farPointer(o *op) (sel uint16, off uint64, ok bool) {
	va, ok := c.ea(o)
	if !ok {
		return 0, 0, false
	}
	size := uint64(o.inst.Size)
	if off, ok = c.load(va, size); !ok {
		return 0, 0, false
	}
	sel, ok = c.load16(c.wrap(va + size))
	return sel, off, ok
}

// wrap cuts a linear address to what the mode has.
func (c *CPU) wrap(va uint64) uint64 {
	if c.mode == decode.Mode64 {
		return va
	}
	return va & 0xFFFFFFFF
}

func loadFar(c *CPU, o *op) bool {
	sel, off, ok := c.farPointer(o)
	if !ok {
		return false
	}
	r := map[decode.Op]uint8{decode.LDS: x86.DS, decode.LES: x86.ES, decode.LSS: x86.SS, decode.LFS: x86.FS, decode.LGS: x86.GS}[o.inst.Op]
	if !c.loadSeg(r, sel) {
		return false
	}
	c.setReg(o.inst.Args[0].Reg, int(o.inst.Size), off)
	return true
}

func farOperand(c *CPU, o *op) bool {
	in := o.inst
	size := int(in.Size)
	sel, off := uint16(in.Imm2), uint64(in.Imm)&sizeMask(size)
	if in.Args[0].Kind == decode.Mem {
		var ok bool
		if sel, off, ok = c.farPointer(o); !ok {
			return false
		}
	}
	return c.farJump(o, sel, off, size, in.Op == decode.CALLF)
}

func retf(c *CPU, o *op) bool {
	var drop uint64
	if o.inst.NArgs > 0 {
		drop = uint64(o.inst.Imm) & 0xFFFF
	}
	return c.farReturn(o, int(o.inst.Size), drop)
}

func swapgs(c *CPU, o *op) bool {
	c.seg[x86.GS].Base, c.msr.kernelGS = c.msr.kernelGS, c.seg[x86.GS].Base
	c.syncCode()
	return true
}

// baseOp is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
func baseOp(c *CPU, o *op) bool {
	if c.cr4&x86.CR4FSGSBASE == 0 {
		return c.raise(x86.UD)
	}
	s := &c.seg[x86.FS]
	if o.inst.Op == decode.RDGSBASE || o.inst.Op == decode.WRGSBASE {
		s = &c.seg[x86.GS]
	}
	reg, size := o.inst.Args[0].Reg, int(o.inst.Size)
	if o.inst.Op == decode.RDFSBASE || o.inst.Op == decode.RDGSBASE {
		c.setReg(reg, size, s.Base)
		return true
	}
	v := c.getReg(reg, size)
	if !c.canonicalBase(v) {
		return c.raiseCode(x86.GP, 0)
	}
	s.Base = v
	c.syncCode()
	return true
}

func smsw(c *CPU, o *op) bool {
	if c.umip() {
		return false
	}
	return c.setWord(o, c.cr0)
}

func lmsw(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	// PE can be set, not cleared.
	return c.setCR0(c.cr0&^0xE | v&0xF)
}

func clts(c *CPU, o *op) bool {
	c.cr0 &^= x86.CR0TS
	c.vecChanged()
	return true
}

func invlpg(c *CPU, o *op) bool {
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	if c.long && !c.canonical(va) {
		return true
	}
	c.tlbs.flushPage(va)
	c.selectTLB()
	return true
}

func invpcid(c *CPU, o *op) bool {
	kind := c.getReg(o.inst.Args[0].Reg, 8)
	if c.mode != decode.Mode64 {
		kind &= 0xFFFFFFFF
	}
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	pcid, ok := c.load64(va)
	if !ok {
		return false
	}
	lin, ok := c.load64(c.wrap(va + 8))
	if !ok {
		return false
	}
	if kind > 3 || kind < 2 && (pcid > 0xFFF || c.cr4&x86.CR4PCIDE == 0 && pcid != 0) || kind == 0 && !c.canonicalBase(lin) {
		return c.raiseCode(x86.GP, 0)
	}
	switch kind {
	case 0:
		c.tlbs.flushPage(lin)
	case 1:
		for _, sp := range c.tlbs.all {
			if uint64(sp.pcid) == pcid {
				c.tlbs.flushSpace(sp, false)
			}
		}
	case 2:
		c.tlbs.flushAll()
	case 3:
		for _, sp := range c.tlbs.all {
			c.tlbs.flushSpace(sp, false)
		}
	}
	c.selectTLB()
	return true
}

// acFlag is CLAC and STAC.
func acFlag(c *CPU, o *op) bool {
	if c.cpl != 0 {
		return c.raise(x86.UD)
	}
	if o.inst.Op == decode.STAC {
		c.flags |= x86.AC
	} else {
		c.flags &^= x86.AC
	}
	c.selectTLB()
	return true
}

func readPMC(c *CPU, o *op) bool { return c.raiseCode(x86.GP, 0) } // There are no counters.

func readTSC(c *CPU, o *op) bool {
	if c.cpl != 0 && c.cr4&x86.CR4TSD != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	t := c.TSC()
	c.gpr[x86.RAX], c.gpr[x86.RDX] = t&0xFFFFFFFF, t>>32
	if o.inst.Op == decode.RDTSCP {
		c.gpr[x86.RCX] = c.msr.tscAux
	}
	return true
}

func rdpid(c *CPU, o *op) bool {
	c.setReg(o.inst.Args[0].Reg, 8, c.msr.tscAux)
	return true
}

func cpuidOp(c *CPU, o *op) bool {
	a, b, cx, d := c.cpuid(uint32(c.gpr[x86.RAX]), uint32(c.gpr[x86.RCX]))
	c.gpr[x86.RAX], c.gpr[x86.RBX], c.gpr[x86.RCX], c.gpr[x86.RDX] = uint64(a), uint64(b), uint64(cx), uint64(d)
	return true
}

func xgetbv(c *CPU, o *op) bool {
	if c.cr4&x86.CR4OSXSAVE == 0 {
		return c.raise(x86.UD)
	}
	var v uint64
	switch uint32(c.gpr[x86.RCX]) {
	case 0:
		v = c.xcr0
	case 1:
		if !c.vm.model.Has("xgetbv1") {
			return c.raiseCode(x86.GP, 0)
		}
		v = fpu.InUse(&c.fpu, c.xcr0)
	default:
		return c.raiseCode(x86.GP, 0)
	}
	c.gpr[x86.RAX], c.gpr[x86.RDX] = v&0xFFFFFFFF, v>>32
	return true
}

func xsetbv(c *CPU, o *op) bool {
	if c.cr4&x86.CR4OSXSAVE == 0 {
		return c.raise(x86.UD)
	}
	v := c.gpr[x86.RAX]&0xFFFFFFFF | c.gpr[x86.RDX]<<32
	if uint32(c.gpr[x86.RCX]) != 0 || v&1 == 0 || v&^c.vm.xcr0 != 0 || v&(fpu.CompSSE|fpu.CompAVX) == fpu.CompAVX {
		return c.raiseCode(x86.GP, 0)
	}
	c.xcr0 = v
	c.vecChanged()
	return true
}

func readMSR(c *CPU, o *op) bool {
	v, ok := c.rdmsr(uint32(c.gpr[x86.RCX]))
	if !ok {
		return c.raiseCode(x86.GP, 0)
	}
	c.gpr[x86.RAX], c.gpr[x86.RDX] = v&0xFFFFFFFF, v>>32
	return true
}

func writeMSR(c *CPU, o *op) bool {
	if !c.wrmsr(uint32(c.gpr[x86.RCX]), c.gpr[x86.RAX]&0xFFFFFFFF|c.gpr[x86.RDX]<<32) {
		return c.raiseCode(x86.GP, 0)
	}
	return true
}
