package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// SYSCALL, SYSENTER and their returns (SDM vol. 2B): segments are made up, not read.

// madeCode and madeStack are the segments that they load.
func madeCode(sel uint16, cpl uint16, long bool) x86.Segment {
	a := uint16(x86.SegPresent | x86.SegS | x86.SegCode | x86.SegWritable | x86.SegAccessed | x86.SegGran)
	if long {
		a |= x86.SegLong
	} else {
		a |= x86.SegBig
	}
	return x86.Segment{Selector: sel, Limit: 0xFFFFFFFF, Access: a | cpl<<x86.SegDPLShift}
}

func madeStack(sel uint16, cpl uint16) x86.Segment {
	s := nullSS(cpl)
	s.Selector = sel
	return s
}

func syscall(c *CPU, o *op) bool {
	if c.mode != decode.Mode64 || c.efer&x86.EFERSCE == 0 {
		return c.raise(x86.UD)
	}
	c.gpr[x86.RCX] = c.nextIP(o)
	c.gpr[x86.R11] = c.rflags() &^ x86.RF
	sel := uint16(c.msr.star >> 32)
	c.seg[x86.CS] = madeCode(sel&^3, 0, true)
	c.seg[x86.SS] = madeStack(sel&^3+8, 0)
	c.setRflags(c.rflags() &^ c.msr.fmask &^ x86.RF)
	c.cpl = 0
	c.modeChanged()
	return c.jumpTo(c.msr.lstar)
}

func sysret(c *CPU, o *op) bool {
	if c.mode != decode.Mode64 || c.efer&x86.EFERSCE == 0 {
		return c.raise(x86.UD)
	}
	if c.cpl != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	rip := c.gpr[x86.RCX]
	sel := uint16(c.msr.star >> 48)
	long := o.inst.Size == 8
	if long {
		// On Intel processors this faults at CPL 0, with the user's stack pointer loaded already: kernels know.
		if !c.canonical(rip) {
			return c.raiseCode(x86.GP, 0)
		}
		c.seg[x86.CS] = madeCode(sel+16|3, 3, true)
	} else {
		rip &= 0xFFFFFFFF
		c.seg[x86.CS] = madeCode(sel|3, 3, false)
	}
	c.seg[x86.SS] = madeStack(sel+8|3, 3)
	c.cpl = 3
	c.loadFlags(c.gpr[x86.R11]&0x3C7FD7, ^uint64(0))
	c.modeChanged()
	return c.jumpTo(rip)
}

func sysenter(c *CPU, o *op) bool {
	sel := uint16(c.msr.sysenterCS)
	if c.real() || sel&^3 == 0 {
		return c.raiseCode(x86.GP, 0)
	}
	rip, rsp := c.msr.sysenterEIP, c.msr.sysenterESP
	if !c.long {
		rip, rsp = rip&0xFFFFFFFF, rsp&0xFFFFFFFF
	}
	c.flags &^= x86.VM | x86.IF | x86.RF
	c.seg[x86.CS] = madeCode(sel&^3, 0, c.long)
	c.seg[x86.SS] = madeStack(sel&^3+8, 0)
	c.cpl = 0
	c.gpr[x86.RSP] = rsp
	c.modeChanged()
	return c.jumpTo(rip)
}

func sysexit(c *CPU, o *op) bool {
	sel := uint16(c.msr.sysenterCS)
	if c.real() || sel&^3 == 0 || c.cpl != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	rip, rsp := c.gpr[x86.RDX], c.gpr[x86.RCX]
	if o.inst.Size == 8 {
		if !c.canonical(rip) || !c.canonical(rsp) {
			return c.raiseCode(x86.GP, 0)
		}
		c.seg[x86.CS] = madeCode(sel&^3+32|3, 3, true)
		c.seg[x86.SS] = madeStack(sel&^3+40|3, 3)
	} else {
		rip, rsp = rip&0xFFFFFFFF, rsp&0xFFFFFFFF
		c.seg[x86.CS] = madeCode(sel&^3+16|3, 3, false)
		c.seg[x86.SS] = madeStack(sel&^3+24|3, 3)
	}
	c.cpl = 3
	c.gpr[x86.RSP] = rsp
	c.modeChanged()
	return c.jumpTo(rip)
}
