package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Far JMP, CALL, RET and IRET (SDM vol. 2; vol. 3A 5.8).

// farJump is JMP to sel:off; call makes it CALL, which pushes words of size bytes.
func (c *CPU) farJump(o *op, sel uint16, off uint64, size int, call bool) bool {
	next := c.nextIP(o)
	if c.real() || c.v86() {
		if off > uint64(c.seg[x86.CS].Limit) && off > 0xFFFF {
			return c.raiseCode(x86.GP, 0)
		}
		if call {
			st := c.stack()
			if !st.push(c, uint64(c.seg[x86.CS].Selector), size) || !st.push(c, next, size) {
				return false
			}
			st.commit(c)
		}
		c.setReal(x86.CS, sel)
		c.modeChanged()
		return c.jumpTo(off)
	}
	if sel&^3 == 0 {
		return c.raiseCode(x86.GP, 0)
	}
	d, ok := c.descriptor(sel, x86.GP)
	if !ok {
		return false
	}
	if d>>44&1 == 0 {
		return c.gateJump(o, sel, d, call)
	}
	if conforming := d.kind()&(x86.SegCode|x86.SegDown) == x86.SegCode|x86.SegDown; !conforming && uint8(sel&3) > c.cpl {
		return c.raiseCode(x86.GP, c.selError(sel))
	}
	cs, ok := c.codeSegment(sel, d, c.cpl)
	if !ok || !c.goodIP(&cs, off) {
		return false
	}
	if call {
		st := c.stack()
		if !st.push(c, uint64(c.seg[x86.CS].Selector), size) || !st.push(c, next, size) {
			return false
		}
		st.commit(c)
	}
	c.seg[x86.CS] = cs
	c.modeChanged()
	return c.jumpTo(off)
}

// gateJump is a far JMP or CALL whose selector names a system descriptor: a call gate. Task switches are not supported: #GP, as for a
// selector that names nothing one can jump to.
func (c *CPU) gateJump(o *op, gsel uint16, g descriptor, call bool) bool {
	next := c.nextIP(o)
	size := 4
	switch k := g.kind(); {
	case k == sysGate && c.long:
		size = 8
	case k == sysGate:
	case k == sysGate16 && !c.long:
		size = 2
	default:
		return c.raiseCode(x86.GP, c.selError(gsel))
	}
	if g.dpl() < int(c.cpl) || g.dpl() < int(gsel&3) {
		return c.raiseCode(x86.GP, c.selError(gsel))
	}
	off := uint64(g & 0xFFFF)
	if size > 2 {
		off |= uint64(g >> 32 & 0xFFFF0000)
	}
	if c.long {
		hi, ok := c.descriptorHigh(gsel, x86.GP)
		if !ok {
			return false
		}
		if hi>>40&0x1F != 0 {
			return c.raiseCode(x86.GP, c.selError(gsel))
		}
		off |= hi << 32
	}
	if g>>47&1 == 0 {
		return c.raiseCode(x86.NP, c.selError(gsel))
	}
	sel := uint16(g >> 16)
	if sel&^3 == 0 {
		return c.raiseCode(x86.GP, 0)
	}
	d, ok := c.descriptor(sel, x86.GP)
	if !ok {
		return false
	}
	cpl := c.cpl
	if conforming := d.kind()&x86.SegDown != 0; call && !conforming && d.dpl() < int(cpl) {
		cpl = uint8(d.dpl())
	}
	cs, ok := c.codeSegment(sel, d, cpl)
	if !ok {
		return false
	}
	if c.long && cs.Access&x86.SegLong == 0 {
		return c.raiseCode(x86.GP, c.selError(sel))
	}
	if !c.goodIP(&cs, off) {
		return false
	}
	if call {
		st := c.stack()
		if c.long { // The gate leads to 64-bit code: so is its stack.
			st = stack{seg: c.seg[x86.SS], sp: c.gpr[x86.RSP], mask: ^uint64(0), flat: true}
		}
		was := c.cpl
		if cpl < was {
			old := c.stack()
			if c.long {
				sp, ok := c.tss64(uint64(4 + 8*cpl))
				if !ok {
					return false
				}
				st = stack{seg: nullSS(uint16(cpl)), sp: sp, mask: ^uint64(0), flat: true}
			} else if st, ok = c.innerStack(cpl); !ok {
				return false
			}
			params := make([]uint64, g>>32&31)
			if c.long {
				params = nil
			}
			for i := range params {
				if params[i], ok = old.pop(c, size); !ok {
					return false
				}
			}
			c.cpl = cpl
			c.selectTLB()
			ok = st.push(c, uint64(c.seg[x86.SS].Selector), size) && st.push(c, c.gpr[x86.RSP], size)
			for i := len(params) - 1; ok && i >= 0; i-- {
				ok = st.push(c, params[i], size)
			}
		}
		if !ok || !st.push(c, uint64(c.seg[x86.CS].Selector), size) || !st.push(c, next, size) {
			c.cpl = was
			c.selectTLB()
			return false
		}
		st.commit(c)
	}
	c.seg[x86.CS] = cs
	c.cpl = cpl
	c.modeChanged()
	return c.jumpTo(off)
}

// farReturn is RETF, which also drops imm bytes.
func (c *CPU) farReturn(o *op, size int, imm uint64) bool {
	st := c.stack()
	rip, ok := st.pop(c, size)
	if !ok {
		return false
	}
	s, ok := st.pop(c, size)
	if !ok {
		return false
	}
	sel := uint16(s)
	drop := func() { st.sp = st.sp&^st.mask | (st.sp+imm)&st.mask }
	if c.real() || c.v86() {
		if rip > uint64(c.seg[x86.CS].Limit) && rip > 0xFFFF {
			return c.raiseCode(x86.GP, 0)
		}
		drop()
		st.commit(c)
		c.setReal(x86.CS, sel)
		c.modeChanged()
		return c.jumpTo(rip)
	}
	cs, ok := c.returnSegment(sel)
	if !ok || !c.goodIP(&cs, rip) {
		return false
	}
	drop()
	cpl := uint8(sel & 3)
	if cpl == c.cpl {
		st.commit(c)
		c.seg[x86.CS] = cs
		c.modeChanged()
		return c.jumpTo(rip)
	}
	sp, ok := st.pop(c, size)
	if !ok {
		return false
	}
	ss, ok := st.pop(c, size)
	if !ok {
		return false
	}
	seg, ok := c.outerStack(uint16(ss), cpl, &cs)
	if !ok {
		return false
	}
	c.toOuter(cs, seg, sp, imm)
	return c.jumpTo(rip)
}

// returnSegment checks sel as the CS of a far return or IRET.
func (c *CPU) returnSegment(sel uint16) (cs x86.Segment, ok bool) {
	if sel&^3 == 0 {
		return cs, c.raiseCode(x86.GP, 0)
	}
	d, ok := c.descriptor(sel, x86.GP)
	if !ok {
		return cs, false
	}
	if uint8(sel&3) < c.cpl {
		return cs, c.raiseCode(x86.GP, c.selError(sel))
	}
	return c.codeSegment(sel, d, uint8(sel&3))
}

// outerStack checks sel as the SS of a return to privilege cpl and code segment cs.
func (c *CPU) outerStack(sel uint16, cpl uint8, cs *x86.Segment) (x86.Segment, bool) {
	if sel&^3 == 0 && c.long && cs.Access&x86.SegLong != 0 && cpl != 3 && sel&3 == uint16(cpl) {
		return nullSS(sel), true
	}
	return c.stackSegment(sel, cpl, x86.GP)
}

// toOuter is the part of a return that changes privilege.
func (c *CPU) toOuter(cs, ss x86.Segment, sp, imm uint64) {
	c.seg[x86.CS], c.seg[x86.SS] = cs, ss
	st := makeStack(ss, sp)
	if c.long && cs.Access&x86.SegLong != 0 {
		st.mask = ^uint64(0)
	}
	st.sp = st.sp&^st.mask | (st.sp+imm)&st.mask
	st.commit(c)
	if st.mask == 0xFFFF {
		c.gpr[x86.RSP] = st.sp & 0xFFFFFFFF
	}
	c.cpl = uint8(cs.Selector & 3)
	// Segments that the outer privilege may not use become null (SDM vol. 3A 5.8.6).
	for _, r := range [...]int{x86.ES, x86.DS, x86.FS, x86.GS} {
		s := &c.seg[r]
		if s.Access&x86.SegPresent != 0 && s.Access&(x86.SegCode|x86.SegDown) != x86.SegCode|x86.SegDown && s.DPL() < int(c.cpl) {
			*s = x86.Segment{Base: s.Base} // a null FS keeps its base: Linux programs live by it
		}
	}
	c.modeChanged()
}

// iret is IRET, IRETD and IRETQ (SDM vol. 2A).
func (c *CPU) iret(o *op, size int) bool {
	if c.v86() && c.flags&x86.IOPL != x86.IOPL {
		return c.raiseCode(x86.GP, 0)
	}
	if c.flags&x86.NT != 0 && !c.real() && !c.v86() { // A task return: not supported, and #GP in IA-32e mode.
		return c.raiseCode(x86.GP, 0)
	}
	st := c.stack()
	rip, ok := st.pop(c, size)
	if !ok {
		return false
	}
	s, ok := st.pop(c, size)
	if !ok {
		return false
	}
	flags, ok := st.pop(c, size)
	if !ok {
		return false
	}
	sel := uint16(s)
	if c.real() || c.v86() {
		if rip > uint64(c.seg[x86.CS].Limit) && rip > 0xFFFF {
			return c.raiseCode(x86.GP, 0)
		}
		st.commit(c)
		c.setReal(x86.CS, sel)
		c.unmaskNMI()
		c.returnFlags(flags, size)
		c.modeChanged()
		return c.jumpTo(rip)
	}
	if !c.long && size == 4 && c.cpl == 0 && flags&x86.VM != 0 {
		return c.iretV86(&st, rip, sel, flags)
	}
	cs, ok := c.returnSegment(sel)
	if !ok || !c.goodIP(&cs, rip) {
		return false
	}
	cpl := uint8(sel & 3)
	if cpl == c.cpl && c.mode != decode.Mode64 {
		st.commit(c)
		c.unmaskNMI()
		c.returnFlags(flags, size)
		c.seg[x86.CS] = cs
		c.modeChanged()
		return c.jumpTo(rip)
	}
	sp, ok := st.pop(c, size)
	if !ok {
		return false
	}
	ss, ok := st.pop(c, size)
	if !ok {
		return false
	}
	seg, ok := c.outerStack(uint16(ss), cpl, &cs)
	if !ok {
		return false
	}
	c.unmaskNMI()
	c.returnFlags(flags, size)
	c.toOuter(cs, seg, sp, 0)
	return c.jumpTo(rip)
}

// unmaskNMI ends what IRET ends: an NMI that came in the handler of another is taken now.
func (c *CPU) unmaskNMI() {
	if c.nmiMasked {
		c.nmiMasked = false
		c.checkPending()
	}
}

// iretV86 is IRET to virtual-8086 mode.
func (c *CPU) iretV86(st *stack, rip uint64, sel uint16, flags uint64) bool {
	var w [6]uint64 // ESP, SS, ES, DS, FS, GS
	for i := range w {
		var ok bool
		if w[i], ok = st.pop(c, 4); !ok {
			return false
		}
	}
	if rip > 0xFFFF {
		return c.raiseCode(x86.GP, 0)
	}
	c.unmaskNMI()
	c.setRflags(flags)
	c.cpl = 3
	c.setReal(x86.CS, sel)
	for i, r := range [...]uint8{x86.SS, x86.ES, x86.DS, x86.FS, x86.GS} {
		c.setReal(r, uint16(w[i+1]))
	}
	c.gpr[x86.RSP] = w[0]
	c.modeChanged()
	return c.jumpTo(rip)
}

// returnFlags loads RFLAGS as IRET does, under the privilege that IRET ran at.
func (c *CPU) returnFlags(v uint64, size int) {
	m := uint64(x86.Status | x86.TF | x86.DF | x86.NT)
	if size > 2 {
		m |= x86.RF | x86.AC | x86.ID
	}
	if c.v86() {
		m |= x86.IF // IOPL is 3 here
	} else {
		if uint64(c.cpl) <= c.flags>>12&3 {
			m |= x86.IF
		}
		if c.cpl == 0 {
			m |= x86.IOPL
			if size > 2 {
				m |= x86.VIF | x86.VIP
			}
		}
	}
	c.loadFlags(v, m)
}

// loadFlags sets the flags in m to those of v, and sees to what follows from them.
func (c *CPU) loadFlags(v, m uint64) {
	old := c.rflags()
	c.setRflags(old&^m | v&m)
	if c.flags&x86.RF != 0 && c.dr[7]&0xFF == 0 {
		c.flags &^= x86.RF // It would be cleared behind the next instruction, and nothing sees it before.
	}
	changed := old ^ c.flags
	if changed&x86.IF != 0 && c.flags&x86.IF != 0 {
		c.checkPending()
	}
	if changed&x86.AC != 0 {
		c.selectTLB()
	}
	if changed&(x86.TF|x86.VM) != 0 {
		c.modeChanged()
	}
}
