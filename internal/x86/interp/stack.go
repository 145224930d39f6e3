package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// stackMask is which bits of RSP the stack uses.
func (c *CPU) stackMask() uint64 {
	switch {
	case c.mode == decode.Mode64:
		return ^uint64(0)
	case c.seg[x86.SS].Access&x86.SegBig != 0:
		return 0xFFFFFFFF
	}
	return 0xFFFF
}

// setSP writes the part of RSP that the stack uses.
func (c *CPU) setSP(sp uint64) {
	m := c.stackMask()
	if m == 0xFFFF {
		c.gpr[x86.RSP] = c.gpr[x86.RSP]&^m | sp&m
		return
	}
	c.gpr[x86.RSP] = sp & m
}

// stackFault makes a non-canonical stack address's #GP an #SS. It returns false.
func (c *CPU) stackFault() bool {
	if c.stop == stopFault && c.fault.canon {
		c.fault.vec = x86.SSV
		c.fault.canon = false
	}
	return false
}

// storeSP writes size bytes at stack offset sp, loadSP reads them.
func (c *CPU) storeSP(sp, v, size uint64) bool {
	va, ok := c.linear(x86.SS, sp&c.stackMask(), size, true)
	if !ok || !c.store(va, v, size) {
		return c.stackFault()
	}
	return true
}

func (c *CPU) loadSP(sp, size uint64) (uint64, bool) {
	va, ok := c.linear(x86.SS, sp&c.stackMask(), size, false)
	if !ok {
		return 0, false
	}
	v, ok := c.load(va, size)
	if !ok {
		c.stackFault()
	}
	return v, ok
}

// push pushes the low size bytes of v.
func (c *CPU) push(v, size uint64) bool {
	sp := c.gpr[x86.RSP] - size
	if c.mode == decode.Mode64 {
		e := c.tlb.entry(sp)
		if off := sp - e.write; size == 8 && off <= pageSize-8 {
			*e.at64(off) = v
			c.gpr[x86.RSP] = sp
			return true
		}
	}
	if !c.storeSP(sp, v, size) {
		return false
	}
	c.setSP(sp)
	return true
}

// pop reads size bytes from the stack and moves its pointer.
func (c *CPU) pop(size uint64) (uint64, bool) {
	sp := c.gpr[x86.RSP]
	if c.mode == decode.Mode64 {
		e := c.tlb.entry(sp)
		if off := sp - e.read; size == 8 && off <= pageSize-8 {
			c.gpr[x86.RSP] = sp + 8
			return *e.at64(off), true
		}
	}
	v, ok := c.loadSP(sp, size)
	if ok {
		c.setSP(sp + size)
	}
	return v, ok
}

func bindPUSH(bd *builder, in *decode.Inst, o *op) handler {
	s := in.Args[0]
	o.size, o.imm = in.Size, uint64(in.Imm)
	bd.does = stops
	switch s.Kind {
	case decode.SReg:
		o.aux = s.Reg
		return func(c *CPU, o *op) bool { return c.push(uint64(c.seg[o.aux].Selector), uint64(o.size)) }
	case decode.Imm:
		return func(c *CPU, o *op) bool { return c.push(o.imm, uint64(o.size)) }
	case decode.Mem:
		bd.mem(o)
		return func(c *CPU, o *op) bool {
			v, ok := c.load(c.addr(o), uint64(o.size))
			return ok && c.push(v, uint64(o.size))
		}
	}
	o.dst = reg(s)
	if in.Size == 8 {
		return push64
	}
	return push_r[sizeIndex(in.Size)]
}

func push64(c *CPU, o *op) bool {
	v := *c.r64(o.dst)
	sp := c.gpr[x86.RSP] - 8
	e := c.tlb.entry(sp)
	if off := sp - e.write; off <= pageSize-8 {
		*e.at64(off) = v
		c.gpr[x86.RSP] = sp
		return true
	}
	return c.push(v, 8)
}

func bindPOP(bd *builder, in *decode.Inst, o *op) handler {
	d := in.Args[0]
	o.size = in.Size
	bd.does = stops
	switch d.Kind {
	case decode.SReg:
		bd.keep(o)
		if fn := systemHandler(in); fn != nil {
			return fn
		}
		return raiseUD
	case decode.Mem:
		bd.keep(o)
		return popMem
	}
	o.dst = reg(d)
	if in.Size == 8 {
		return pop64
	}
	return func(c *CPU, o *op) bool {
		v, ok := c.pop(uint64(o.size))
		if ok {
			c.setReg(o.dst/8, int(o.size), v)
		}
		return ok
	}
}

func pop64(c *CPU, o *op) bool {
	sp := c.gpr[x86.RSP]
	e := c.tlb.entry(sp)
	if off := sp - e.read; off <= pageSize-8 {
		c.gpr[x86.RSP] = sp + 8
		*c.r64(o.dst) = *e.at64(off)
		return true
	}
	v, ok := c.pop(8)
	if ok {
		*c.r64(o.dst) = v
	}
	return ok
}

// popMem computes its address with the stack pointer as it is after the pop (SDM vol. 2, POP).
func popMem(c *CPU, o *op) bool {
	sp := c.gpr[x86.RSP]
	v, ok := c.pop(uint64(o.size))
	if !ok {
		return false
	}
	va, ok := c.ea(o)
	if !ok || !c.store(va, v, uint64(o.size)) {
		c.gpr[x86.RSP] = sp
		return false
	}
	return true
}

func bindStack(fn handler) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		o.size, o.imm = in.Size, uint64(in.Imm)
		o.aux = uint8(in.Imm2) & 31
		return fn
	}
}

func pusha(c *CPU, o *op) bool {
	size, sp := uint64(o.size), c.gpr[x86.RSP]
	// A PUSHA that faults moves no register; what it stored below the stack is not looked at.
	at := sp
	for r := range 8 {
		at -= size
		if !c.storeSP(at, c.gpr[r], size) {
			return false
		}
	}
	c.setSP(at)
	return true
}

func popa(c *CPU, o *op) bool {
	size, sp := uint64(o.size), c.gpr[x86.RSP]
	var v [8]uint64
	for r := 7; r >= 0; r-- {
		var ok bool
		if v[r], ok = c.loadSP(sp, size); !ok {
			return false
		}
		sp += size
	}
	for r := range uint8(8) {
		if r != x86.RSP {
			c.setReg(r, int(size), v[r])
		}
	}
	c.setSP(sp)
	return true
}

func enter(c *CPU, o *op) bool {
	size, level := uint64(o.size), o.aux
	sp, bp := c.gpr[x86.RSP]-size, c.gpr[x86.RBP]
	if !c.storeSP(sp, bp, size) {
		return false
	}
	frame := sp
	if level > 0 {
		for range level - 1 {
			bp -= size
			v, ok := c.loadSP(bp, size)
			if !ok {
				return false
			}
			sp -= size
			if !c.storeSP(sp, v, size) {
				return false
			}
		}
		sp -= size
		if !c.storeSP(sp, frame, size) {
			return false
		}
	}
	sp -= o.imm & 0xFFFF
	// The new top must be writable (SDM vol. 2, ENTER).
	va, ok := c.linear(x86.SS, sp&c.stackMask(), size, true)
	if !ok || !c.probeWrite(va, size) {
		return c.stackFault()
	}
	c.setReg(x86.RBP, int(size), frame)
	c.setSP(sp)
	return true
}

func leave(c *CPU, o *op) bool {
	size, bp := uint64(o.size), c.gpr[x86.RBP]
	v, ok := c.loadSP(bp, size)
	if !ok {
		return false
	}
	c.setSP(bp + size)
	c.setReg(x86.RBP, int(size), v)
	return true
}
