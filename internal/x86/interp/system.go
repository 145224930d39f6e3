package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
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

func hlt(c *CPU, o *op) bool {
	c.halted, c.shadow = true, false
	c.poll.Or(pollHalt | pollIntr)
	return true
}

// iopl tells whether CPL allows IF and ports; in virtual-8086 mode IOPL must be 3, which is the same question at CPL 3.
func (c *CPU) iopl() bool { return uint64(c.cpl) <= c.flags>>12&3 }

func cli(c *CPU, o *op) bool {
	if !c.iopl() {
		return c.raiseCode(x86.GP, 0)
	}
	c.flags &^= x86.IF
	return true
}

func sti(c *CPU, o *op) bool {
	if !c.iopl() {
		return c.raiseCode(x86.GP, 0)
	}
	if c.flags&x86.IF == 0 {
		c.flags |= x86.IF
		c.shadow = true
		c.checkPending()
	}
	return true
}

func pushf(c *CPU, o *op) bool {
	if c.v86() && !c.iopl() {
		return c.raiseCode(x86.GP, 0)
	}
	st := c.stack()
	if !st.push(c, c.rflags()&^(x86.VM|x86.RF), int(o.inst.Size)) {
		return false
	}
	st.commit(c)
	return true
}

func popf(c *CPU, o *op) bool {
	if c.v86() && !c.iopl() {
		return c.raiseCode(x86.GP, 0)
	}
	st := c.stack()
	v, ok := st.pop(c, int(o.inst.Size))
	if !ok {
		return false
	}
	st.commit(c)
	m := uint64(x86.Status | x86.TF | x86.DF | x86.NT)
	if o.inst.Size > 2 {
		m |= x86.AC | x86.ID
		c.flags &^= x86.RF
		if c.cpl == 0 {
			m |= x86.VIF | x86.VIP
			v &^= x86.VIF | x86.VIP
		}
	}
	if c.iopl() {
		m |= x86.IF
	}
	if c.cpl == 0 {
		m |= x86.IOPL
	}
	c.loadFlags(v, m)
	return true
}

func softInt(c *CPU, o *op, vec x86.Vector) bool {
	c.fault = fault{vec: vec, soft: true, trap: true, len: o.inst.Len}
	c.stop = stopFault
	return false
}

func intN(c *CPU, o *op) bool {
	if c.v86() && !c.iopl() {
		return c.raiseCode(x86.GP, 0)
	}
	return softInt(c, o, x86.Vector(o.inst.Imm))
}

func int3(c *CPU, o *op) bool { return softInt(c, o, x86.BP) }

func int1(c *CPU, o *op) bool {
	c.fault = fault{vec: x86.DB, trap: true, len: o.inst.Len}
	c.stop = stopFault
	return false
}

func into(c *CPU, o *op) bool {
	if c.of() {
		return softInt(c, o, x86.OFV)
	}
	return true
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
	if !c.canonical(v) {
		return c.raiseCode(x86.GP, 0)
	}
	s.Base = v
	c.syncCode()
	return true
}

// loadTable is LGDT and LIDT.
func loadTable(c *CPU, o *op) bool {
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	limit, ok := c.load16(va)
	if !ok {
		return false
	}
	size := 4
	if c.mode == decode.Mode64 {
		size = 8
	}
	base, ok := c.load(c.wrap(va+2), uint64(size))
	if !ok {
		return false
	}
	if size == 4 && o.inst.Size == 2 {
		base &= 0xFFFFFF
	}
	if size == 8 && !c.canonical(base) {
		return c.raiseCode(x86.GP, 0)
	}
	t := &c.gdtr
	if o.inst.Op == decode.LIDT {
		t = &c.idtr
	}
	*t = x86.Table{Base: base, Limit: limit}
	return true
}

// storeTable is SGDT and SIDT.
func storeTable(c *CPU, o *op) bool {
	if c.umip() {
		return false
	}
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	t := c.gdtr
	if o.inst.Op == decode.SIDT {
		t = c.idtr
	}
	b := [10]byte{byte(t.Limit), byte(t.Limit >> 8)}
	for i := range 8 {
		b[2+i] = byte(t.Base >> (8 * i))
	}
	n := 6
	if c.mode == decode.Mode64 {
		n = 10
	}
	return c.storeN(va, b[:n])
}

// storeSelector is SLDT and STR.
func storeSelector(c *CPU, o *op) bool {
	if c.umip() {
		return false
	}
	v := c.ldtr.Selector
	if o.inst.Op == decode.STR {
		v = c.tr.Selector
	}
	return c.setWord(o, uint64(v))
}

// systemSegment reads the descriptor of an LDT or a TSS.
func (c *CPU) systemSegment(sel uint16, want ...int) (s x86.Segment, d descriptor, ok bool) {
	if sel&4 != 0 {
		return s, 0, c.raiseCode(x86.GP, c.selError(sel))
	}
	if d, ok = c.descriptor(sel, x86.GP); !ok {
		return s, 0, false
	}
	good := false
	for _, k := range want {
		good = good || d.kind() == k
	}
	if !good {
		return s, 0, c.raiseCode(x86.GP, c.selError(sel))
	}
	if d>>47&1 == 0 {
		return s, 0, c.raiseCode(x86.NP, c.selError(sel))
	}
	s = d.segment(sel)
	if c.long {
		hi, ok := c.descriptorHigh(sel, x86.GP)
		if !ok {
			return s, 0, false
		}
		if hi>>40&0x1F != 0 {
			return s, 0, c.raiseCode(x86.GP, c.selError(sel))
		}
		s.Base |= hi << 32
		if !c.canonical(s.Base) {
			return s, 0, c.raiseCode(x86.GP, c.selError(sel))
		}
	}
	return s, d, true
}

func lldt(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	sel := uint16(v)
	if sel&^3 == 0 {
		c.ldtr = x86.Segment{Selector: sel}
		return true
	}
	s, _, ok := c.systemSegment(sel, sysLDT)
	if ok {
		c.ldtr = s
	}
	return ok
}

func ltr(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	sel := uint16(v)
	if sel&^3 == 0 {
		return c.raiseCode(x86.GP, 0)
	}
	want := []int{sysTSS, sysTSS16}
	if c.long {
		want = want[:1]
	}
	s, d, ok := c.systemSegment(sel, want...)
	if !ok {
		return false
	}
	s.Access |= 2 // busy
	va, _ := c.descriptorAt(sel)
	if !c.sysStore(va+5, uint64(d>>40&0xFF|2), 1) {
		return false
	}
	c.tr = s
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
	return true
}

// larLsl is LAR and LSL: what the guest may know of a descriptor (SDM vol. 2A).
func larLsl(c *CPU, o *op) bool {
	v, ok := c.operand(o, 1, 2)
	if !ok {
		return false
	}
	lar := o.inst.Op == decode.LAR
	d, ok := c.visible(uint16(v), func(kind int) bool {
		switch kind {
		case sysTSS16, sysLDT, sysTSS16Busy:
			return !c.long || kind == sysLDT
		case sysTSS, sysTSSBusy:
			return true
		case sysGate16, sysTaskGate:
			return lar && !c.long
		case sysGate:
			return lar
		}
		return false
	})
	if c.stop == stopFault {
		return false
	}
	c.setZF(ok)
	if ok {
		r := uint64(d>>32) & 0xF0FF00
		if !lar {
			r = uint64(d.segment(0).Limit)
		}
		c.setReg(o.inst.Args[0].Reg, int(o.inst.Size), r)
	}
	return true
}

// visible finds sel's descriptor for LAR, LSL, VERR and VERW, which fault for no reason but a page's. system says which system types count.
func (c *CPU) visible(sel uint16, system func(int) bool) (descriptor, bool) {
	if sel&^3 == 0 {
		return 0, false
	}
	va, ok := c.descriptorAt(sel)
	if !ok {
		return 0, false
	}
	w, ok := c.sysLoad(va, 8)
	if !ok {
		return 0, false
	}
	d := descriptor(w)
	k := d.kind()
	if k&x86.SegS == 0 && !system(k) {
		return 0, false
	}
	if k&(x86.SegS|x86.SegCode|x86.SegDown) != x86.SegS|x86.SegCode|x86.SegDown && (d.dpl() < int(c.cpl) || d.dpl() < int(sel&3)) {
		return 0, false
	}
	return d, true
}

// verify is VERR and VERW.
func verify(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	d, ok := c.visible(uint16(v), func(int) bool { return false })
	if c.stop == stopFault {
		return false
	}
	k := d.kind()
	if o.inst.Op == decode.VERW {
		ok = ok && k&(x86.SegCode|x86.SegWritable) == x86.SegWritable
	} else {
		ok = ok && k&(x86.SegCode|x86.SegWritable) != x86.SegCode
	}
	c.setZF(ok)
	return true
}

func arpl(c *CPU, o *op) bool {
	src := c.getReg(o.inst.Args[1].Reg, 2)
	if o.inst.Args[0].Kind == decode.GPR {
		d := c.getReg(o.inst.Args[0].Reg, 2)
		if d&3 < src&3 {
			c.setReg(o.inst.Args[0].Reg, 2, d&^3|src&3)
		}
		c.setZF(d&3 < src&3)
		return true
	}
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	d, ok := c.load16(va)
	if !ok || !c.probeWrite(va, 2) {
		return false
	}
	raise := uint64(d)&3 < src&3
	if raise {
		if !c.store16(va, d&^3|uint16(src&3)) {
			return false
		}
	}
	c.setZF(raise)
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
	if kind > 3 || kind < 2 && (pcid > 0xFFF || c.cr4&x86.CR4PCIDE == 0 && pcid != 0) || kind == 0 && !c.canonical(lin) {
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
		v = c.xcr0 // as if all enabled components were in use
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
	if uint32(c.gpr[x86.RCX]) != 0 || v&1 == 0 || v&^xcr0Bits != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	c.xcr0 = v
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
