package interp

import (
	"vitrine.dev/vitrine/internal/x86"
)

// HLT, IF, RFLAGS and software interrupts (SDM vol. 2).

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
