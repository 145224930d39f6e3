package interp

import (
	"encoding/binary"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/fpu"
)

// A vecOp is an instruction of package fpu.
type vecOp struct {
	fn    fpu.Fn
	check func(c *CPU) bool // CR0 and CR4
	size  int               // of the memory operand; 0 where fpu.OperandSize says
	gpr   int               // which argument is a general register, or -1
	load  bool
	store bool
	wait  bool
	slow  bool // has a memory operand with no fixed size, or needs the x87 instruction pointers
}

// bindVec binds an instruction of package fpu.
func bindVec(bd *builder, in *decode.Inst, o *op) handler {
	if in.Prefix&decode.Vex != 0 {
		bd.protected(o)
	}
	if h := bindVecMove(bd, in, o); h != nil {
		return h
	}
	if fpu.Masked(in) {
		return bindMasked(bd, in, o)
	}
	fn, err := fpu.Compile(in)
	if err != nil {
		return raiseUD
	}
	v := &vecOp{fn: fn, gpr: -1, check: checkFor(in), wait: in.Flags&(decode.Wait|decode.MMXUnit) != 0}
	mem := false
	for i := range in.NArgs {
		switch a := &in.Args[i]; a.Kind {
		case decode.GPR:
			v.gpr = int(i)
			o.dst, o.size = reg(*a), a.Size
		case decode.Mem:
			mem = true
			v.size = int(a.Size)
			v.load, v.store = in.Flags&decode.MemRead != 0, in.Flags&decode.MemWrite != 0
		}
	}
	v.slow = mem && v.size == 0 || in.Flags&decode.X87 != 0
	if in.Op == decode.FXSAVE { // leaves bytes of its operand alone
		v.load = true
	}
	bd.keep(o)
	o.inst.vec = v
	if mem {
		if v.slow || in.Mode != decode.Mode64 || in.AddrSize != 8 {
			o.mbase = 0xFF
		} else {
			bd.mem(o)
		}
		return vecMem
	}
	return vecReg
}

// checkFor is the check that the kind of instruction needs (SDM vol. 3A 2.5, table 2-2 and chapter 13).
func checkFor(in *decode.Inst) func(*CPU) bool {
	switch {
	case in.Op == decode.FWAIT:
		return (*CPU).checkFWAIT
	case in.Op == decode.FXSAVE || in.Op == decode.FXRSTOR:
		return (*CPU).checkX87
	case in.Flags&decode.SSE != 0:
		return (*CPU).checkSSE
	case in.Flags&decode.AVX != 0:
		return (*CPU).checkAVX
	case in.Flags&decode.MMXUnit != 0:
		return (*CPU).checkMMX
	case in.Flags&decode.X87 != 0:
		return (*CPU).checkX87
	}
	if in.Flags&decode.Privileged != 0 {
		return func(c *CPU) bool {
			if c.checkXSAVE() {
				return c.cpl == 0 || c.raiseCode(x86.GP, 0)
			}
			return false
		}
	}
	return (*CPU).checkXSAVE
}

func (c *CPU) checkFWAIT() bool {
	const m = x86.CR0MP | x86.CR0TS
	return c.cr0&m != m || c.raise(x86.NM)
}

func (c *CPU) checkX87() bool {
	return c.cr0&(x86.CR0EM|x86.CR0TS) == 0 || c.raise(x86.NM)
}

func (c *CPU) checkMMX() bool {
	switch {
	case c.cr0&(x86.CR0EM|x86.CR0TS) == 0:
		return true
	case c.cr0&x86.CR0EM != 0:
		return c.raise(x86.UD)
	}
	return c.raise(x86.NM)
}

func (c *CPU) checkSSE() bool {
	switch {
	case c.cr0&(x86.CR0EM|x86.CR0TS) == 0 && c.cr4&x86.CR4OSFXSR != 0:
		return true
	case c.cr0&x86.CR0EM != 0 || c.cr4&x86.CR4OSFXSR == 0:
		return c.raise(x86.UD)
	}
	return c.raise(x86.NM)
}

// checkAVX is for 64-bit code; builder.protected checks the mode of other code.
func (c *CPU) checkAVX() bool {
	const state = fpu.CompSSE | fpu.CompAVX
	switch {
	case c.cr4&x86.CR4OSXSAVE == 0 || c.xcr0&state != state:
		return c.raise(x86.UD)
	case c.cr0&x86.CR0TS != 0:
		return c.raise(x86.NM)
	}
	return true
}

func (c *CPU) checkXSAVE() bool {
	switch {
	case c.cr4&x86.CR4OSXSAVE == 0:
		return c.raise(x86.UD)
	case c.cr0&x86.CR0TS != 0:
		return c.raise(x86.NM)
	}
	return true
}

func vecReg(c *CPU, o *op) bool {
	v := o.inst.vec
	if !v.check(c) {
		return false
	}
	c.vecIn(o)
	return c.vecRun(o) && c.vecOut(o)
}

// vecIn fills what an instruction may look at besides its memory operand.
func (c *CPU) vecIn(o *op) {
	v, e := o.inst.vec, &c.env
	if v.gpr >= 0 {
		e.GPR = c.loc(o.dst, int(o.size))
	}
	if o.inst.Flags&decode.ReadsFlags != 0 {
		e.RFLAGS = c.rflags()
	}
	e.RAX, e.RDX, e.RCX, e.XCR0 = c.gpr[x86.RAX], c.gpr[x86.RDX], c.gpr[x86.RCX], c.xcr0
	if v.slow {
		e.RIP = c.ipOf(o)
		e.Real = c.cr0&x86.CR0PE == 0 || c.flags&x86.VM != 0
	}
}

// vecRun executes and turns what comes back into an exception.
func (c *CPU) vecRun(o *op) bool {
	switch vec := o.inst.vec.fn(&c.fpu, &c.env); vec {
	case x86.NoVector:
		return true
	case x86.GP:
		return c.raiseCode(x86.GP, 0)
	case x86.XM:
		if c.cr4&x86.CR4OSXMMEXCPT == 0 {
			return c.raise(x86.UD)
		}
		return c.raise(x86.XM)
	default:
		return c.raise(vec)
	}
}

// vecOut writes back.
func (c *CPU) vecOut(o *op) bool {
	e, in := &c.env, o.inst
	if o.inst.vec.gpr == 0 {
		c.setReg(o.dst/8, int(o.size), e.GPR)
	}
	if in.Flags&decode.WritesFlags != 0 {
		c.setStatus(e.RFLAGS)
	}
	switch in.Op {
	case decode.PCMPESTRI, decode.PCMPISTRI, decode.VPCMPESTRI, decode.VPCMPISTRI:
		c.gpr[x86.RCX] = e.RCX
	}
	return true
}

func vecMem(c *CPU, o *op) bool {
	v, e := o.inst.vec, &c.env
	if !v.check(c) {
		return false
	}
	if v.wait && fpu.Pending(&c.fpu) {
		return c.raise(x86.MF)
	}
	c.vecIn(o)
	size := v.size
	if size == 0 {
		size = fpu.OperandSize(&o.inst.Inst, e)
	}
	var va uint64
	if o.mbase != 0xFF {
		va = c.addr(o)
	} else {
		off := c.offset(o)
		e.MemAddr = off
		var ok bool
		if va, ok = c.linear(o.inst.Mem.Seg, off, uint64(max(size, 1)), v.store); !ok {
			return false
		}
	}
	if align := alignment(&o.inst.Inst); va&(align-1) != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	p := e.Mem[:size]
	if v.store && !c.probeWrite(va, uint64(size)) {
		return false
	}
	if v.load && !c.loadN(va, p) {
		return false
	}
	if !c.vecRun(o) {
		return false
	}
	if v.store && !e.NoStore && !c.storeN(va, p) {
		return false
	}
	return c.vecOut(o)
}

// alignment is what the memory operand's address must be a multiple of, else #GP(0).
func alignment(in *decode.Inst) uint64 {
	switch in.Op {
	case decode.FXSAVE, decode.FXRSTOR:
		return 16
	case decode.XSAVE, decode.XSAVEOPT, decode.XSAVEC, decode.XSAVES, decode.XRSTOR, decode.XRSTORS:
		return 64
	}
	if in.Flags&decode.Aligned != 0 {
		for i := range in.NArgs {
			if a := &in.Args[i]; a.Kind == decode.Mem {
				return uint64(a.Size)
			}
		}
	}
	return 1
}

// bindVecMove binds the loads and stores that matter for speed without package fpu: they only move bits.
func bindVecMove(bd *builder, in *decode.Inst, o *op) handler {
	if in.NArgs != 2 {
		return nil
	}
	d, s := in.Args[0], in.Args[1]
	var n, align uint64
	vex := in.Prefix&decode.Vex != 0
	switch in.Op {
	case decode.VMOVAPS, decode.VMOVAPD, decode.VMOVDQA, decode.VMOVNTDQ, decode.VMOVNTPS, decode.VMOVNTPD, decode.VMOVNTDQA:
		n = uint64(d.Size)
		align = n - 1
	case decode.VMOVUPS, decode.VMOVUPD, decode.VMOVDQU, decode.VLDDQU:
		n = uint64(d.Size)
	case decode.MOVAPS, decode.MOVAPD, decode.MOVDQA, decode.MOVNTDQ, decode.MOVNTPS, decode.MOVNTPD:
		n, align = 16, 15
	case decode.MOVUPS, decode.MOVUPD, decode.MOVDQU, decode.LDDQU:
		n = 16
	case decode.MOVSDX, decode.VMOVSD, decode.MOVQ, decode.VMOVQ:
		n = 8
	case decode.MOVSS, decode.VMOVSS:
		n = 4
	default:
		return nil
	}
	switch {
	case d.Kind == decode.XMM && s.Kind == decode.Mem:
		o.dst = d.Reg
	case d.Kind == decode.Mem && s.Kind == decode.XMM:
		o.src = s.Reg
	case n >= 16 && d.Kind == decode.XMM && s.Kind == decode.XMM:
		o.dst, o.src, o.size = d.Reg, s.Reg, uint8(n)
		if vex {
			return vexCopy
		}
		return vecCopy
	default:
		return nil
	}
	o.imm = align
	o.size = uint8(n)
	bd.mem(o)
	switch {
	case d.Kind == decode.Mem && vex:
		return vexStore
	case d.Kind == decode.Mem:
		return vecStore
	case vex:
		return vexLoad
	}
	return vecLoad
}

func vecCopy(c *CPU, o *op) bool {
	if !c.checkSSE() {
		return false
	}
	d, s := &c.fpu.Vec[o.dst&15], &c.fpu.Vec[o.src&15]
	d[0], d[1] = s[0], s[1]
	return true
}

func vecLoad(c *CPU, o *op) bool { return c.checkSSE() && c.loadVector(o) }

// loadVector loads 4, 8 or 16 bytes into the lower half of a register.
func (c *CPU) loadVector(o *op) bool {
	va := c.addr(o)
	d := &c.fpu.Vec[o.dst&15]
	switch {
	case va&o.imm != 0:
		return c.misalignedSSE(va)
	case o.size == 16:
		e := c.tlb.entry(va)
		if off := va - e.read; off <= pageSize-16 {
			d[0], d[1] = *e.at64(off), *e.at64(off + 8)
			return true
		}
		var p [16]byte
		if !c.slowLoadN(va, p[:]) {
			return false
		}
		d[0], d[1] = binary.LittleEndian.Uint64(p[:]), binary.LittleEndian.Uint64(p[8:])
		return true
	case o.size == 8:
		v, ok := c.load64(va)
		if ok {
			d[0], d[1] = v, 0
		}
		return ok
	}
	v, ok := c.load32(va)
	if ok {
		d[0], d[1] = uint64(v), 0
	}
	return ok
}

func vecStore(c *CPU, o *op) bool { return c.checkSSE() && c.storeVector(o) }

// storeVector stores the low 4, 8 or 16 bytes of a register.
func (c *CPU) storeVector(o *op) bool {
	va := c.addr(o)
	s := &c.fpu.Vec[o.src&15]
	switch {
	case va&o.imm != 0:
		return c.misalignedSSE(va)
	case o.size == 16:
		e := c.tlb.entry(va)
		if off := va - e.write; off <= pageSize-16 {
			*e.at64(off), *e.at64(off + 8) = s[0], s[1]
			return true
		}
		var p [16]byte
		binary.LittleEndian.PutUint64(p[:], s[0])
		binary.LittleEndian.PutUint64(p[8:], s[1])
		return c.slowStoreN(va, p[:])
	case o.size == 8:
		return c.store64(va, s[0])
	}
	return c.store32(va, uint32(s[0]))
}

func vexCopy(c *CPU, o *op) bool {
	if !c.checkAVX() {
		return false
	}
	v := c.fpu.Vec[o.src&15]
	if o.size == 16 {
		v[2], v[3] = 0, 0
	}
	c.fpu.Vec[o.dst&15] = v
	return true
}

func vexLoad(c *CPU, o *op) bool {
	if !c.checkAVX() {
		return false
	}
	if o.size == 32 {
		va := c.addr(o)
		if va&o.imm != 0 {
			return c.misalignedSSE(va)
		}
		d, e := &c.fpu.Vec[o.dst&15], c.tlb.entry(va)
		if off := va - e.read; off <= pageSize-32 {
			*d = x86.YMM{*e.at64(off), *e.at64(off + 8), *e.at64(off + 16), *e.at64(off + 24)}
			return true
		}
		var p [32]byte
		if !c.slowLoadN(va, p[:]) {
			return false
		}
		for i := range d {
			d[i] = binary.LittleEndian.Uint64(p[8*i:])
		}
		return true
	}
	if !c.loadVector(o) {
		return false
	}
	c.fpu.Vec[o.dst&15][2], c.fpu.Vec[o.dst&15][3] = 0, 0
	return true
}

func vexStore(c *CPU, o *op) bool {
	if !c.checkAVX() {
		return false
	}
	if o.size != 32 {
		return c.storeVector(o)
	}
	va := c.addr(o)
	if va&o.imm != 0 {
		return c.misalignedSSE(va)
	}
	s, e := &c.fpu.Vec[o.src&15], c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-32 {
		*e.at64(off), *e.at64(off + 8), *e.at64(off + 16), *e.at64(off + 24) = s[0], s[1], s[2], s[3]
		return true
	}
	var p [32]byte
	for i, v := range s {
		binary.LittleEndian.PutUint64(p[8*i:], v)
	}
	return c.slowStoreN(va, p[:])
}

// misalignedSSE raises #GP(0), or what a non-canonical address raises first.
func (c *CPU) misalignedSSE(va uint64) bool {
	c.raiseCode(x86.GP, 0)
	c.fault.canon = !c.canonical(va)
	return false
}
