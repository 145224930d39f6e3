package interp

import (
	"vitrine.dev/vitrine/internal/x86"
)

// Delivery of exceptions and interrupts (SDM vol. 3A chapter 6).

// deliver enters the guest's handler for f, with c.rip the address to return to. A fault in doing so is delivered in its place or
// becomes a double fault; a fault in that is a shutdown (SDM vol. 3A table 6-5).
func (c *CPU) deliver(f fault) {
	c.halted = false
	for {
		c.stop = stopNone
		c.ext = 1
		if f.soft {
			c.ext = 0
		}
		ok := c.enter(f)
		c.ext = 0
		c.stop = stopNone
		if ok {
			return
		}
		c.rip = c.maskIP(c.rip - uint64(f.len))
		second := c.fault
		if second.canon && second.vec == x86.GP { // the only such accesses here are to stacks
			second.vec = x86.SSV
		}
		if !f.intr && f.vec == x86.DF8 {
			c.poll.Or(pollShutdown)
			return
		}
		a, b := class(f), class(second)
		if a == contributory && b == contributory || a == pageFaults && b != benign {
			second = fault{vec: x86.DF8, has: true}
		}
		f = second
	}
}

const (
	benign = iota
	contributory
	pageFaults
)

// class is table 6-4's.
func class(f fault) int {
	if f.intr || f.soft {
		return benign
	}
	switch f.vec {
	case x86.DE, x86.TS, x86.NP, x86.SSV, x86.GP:
		return contributory
	case x86.PFV:
		return pageFaults
	}
	return benign
}

// isFault tells whether RF is set in the flags that f pushes (SDM vol. 3B 17.3.1.1).
func isFault(f fault) bool { return !f.trap && !f.soft && !f.intr && f.vec != x86.NMIVector }

// enter does one delivery. It returns false, with c.fault set and nothing changed, where that faults.
func (c *CPU) enter(f fault) bool {
	if f.vec == x86.DB && !f.soft {
		c.dr[7] &^= dr7GD
	}
	switch {
	case c.cr0&x86.CR0PE == 0:
		return c.enterReal(f)
	case c.long:
		return c.enterLong(f)
	}
	return c.enterProtected(f)
}

// enterReal is delivery by the interrupt vector table.
func (c *CPU) enterReal(f fault) bool {
	at := uint64(f.vec) * 4
	if at+3 > uint64(c.idtr.Limit) {
		return c.raise(x86.GP)
	}
	v, ok := c.sysLoad(c.idtr.Base+at, 4)
	if !ok {
		return false
	}
	st := c.stack()
	if !st.push(c, c.rflags()&0xFFFF, 2) || !st.push(c, uint64(c.seg[x86.CS].Selector), 2) || !st.push(c, c.rip&0xFFFF, 2) {
		return false
	}
	st.commit(c)
	c.flags &^= x86.IF | x86.TF | x86.AC | x86.RF
	c.setReal(x86.CS, uint16(v>>16))
	c.rip = v & 0xFFFF
	c.modeChanged()
	return true
}

// gateError is the error code that names IDT entry vec.
func (c *CPU) gateError(vec x86.Vector) uint32 { return uint32(vec)*8 + 2 + c.ext }

// enterLong is delivery in IA-32e mode (SDM vol. 3A 6.14).
func (c *CPU) enterLong(f fault) bool {
	at := uint64(f.vec) * 16
	if at+15 > uint64(c.idtr.Limit) {
		return c.raiseCode(x86.GP, c.gateError(f.vec))
	}
	lo, ok := c.sysLoad(c.idtr.Base+at, 8)
	if !ok {
		return false
	}
	hi, ok := c.sysLoad(c.idtr.Base+at+8, 8)
	if !ok {
		return false
	}
	if t := lo >> 40 & 0x1F; t != 0xE && t != 0xF {
		return c.raiseCode(x86.GP, c.gateError(f.vec))
	}
	if f.soft && uint8(lo>>45&3) < c.cpl {
		return c.raiseCode(x86.GP, c.gateError(f.vec))
	}
	if lo>>47&1 == 0 {
		return c.raiseCode(x86.NP, c.gateError(f.vec))
	}
	cs, ok := c.gateTarget(uint16(lo >> 16))
	if !ok {
		return false
	}
	if cs.Access&(x86.SegLong|x86.SegBig) != x86.SegLong {
		return c.raiseCode(x86.GP, uint32(cs.Selector&^3)+c.ext)
	}
	rip := lo&0xFFFF | lo>>32&0xFFFF0000 | hi<<32
	if !c.canonical(rip) {
		return c.raiseCode(x86.GP, c.ext)
	}
	cpl, rsp := cs.Selector&3, c.gpr[x86.RSP]
	ist := lo >> 32 & 7
	if ist != 0 || uint8(cpl) < c.cpl {
		off := uint64(4 + 8*cpl)
		if ist != 0 {
			off = 28 + 8*ist
		}
		if rsp, ok = c.tss64(off); !ok {
			return false
		}
		if !c.canonical(rsp) {
			return c.raiseCode(x86.SSV, c.ext)
		}
	}
	flags := c.rflags()
	if isFault(f) {
		flags |= x86.RF
	}
	// The frame, as it lies in memory: the error code first.
	frame := [6]uint64{uint64(f.code), c.rip, uint64(c.seg[x86.CS].Selector), flags, c.gpr[x86.RSP], uint64(c.seg[x86.SS].Selector)}
	words := frame[:]
	if !f.has {
		words = frame[1:]
	}
	rsp &^= 15
	was := c.cpl
	c.cpl = uint8(cpl)
	c.selectTLB()
	for i := len(words) - 1; i >= 0; i-- {
		rsp -= 8
		if !c.store64(rsp, words[i]) {
			c.cpl = was
			c.selectTLB()
			if c.fault.canon {
				c.fault.vec, c.fault.code = x86.SSV, c.ext
			}
			return false
		}
	}
	c.gpr[x86.RSP] = rsp
	if uint8(cpl) != was {
		c.seg[x86.SS] = nullSS(cpl)
	}
	c.flags &^= x86.TF | x86.NT | x86.RF | x86.VM
	if lo>>40&1 == 0 {
		c.flags &^= x86.IF
	}
	c.seg[x86.CS] = cs
	c.rip = rip
	c.modeChanged()
	return true
}

// nullSS is what SS is after a change of privilege in 64-bit mode.
func nullSS(cpl uint16) x86.Segment {
	return x86.Segment{Selector: cpl, Limit: 0xFFFFFFFF, Access: x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed | x86.SegBig | x86.SegGran | cpl<<x86.SegDPLShift}
}

// gateTarget checks the code segment that an interrupt or trap gate names, and gives it as CS would be: its RPL is the new CPL.
func (c *CPU) gateTarget(sel uint16) (cs x86.Segment, ok bool) {
	if sel&^3 == 0 {
		return cs, c.raiseCode(x86.GP, c.ext)
	}
	d, ok := c.descriptor(sel, x86.GP)
	if !ok {
		return cs, false
	}
	cs = d.segment(sel)
	if cs.Access&(x86.SegS|x86.SegCode) != x86.SegS|x86.SegCode || cs.DPL() > int(c.cpl) {
		return cs, c.raiseCode(x86.GP, uint32(sel&^3)+c.ext)
	}
	if cs.Access&x86.SegPresent == 0 {
		return cs, c.raiseCode(x86.NP, uint32(sel&^3)+c.ext)
	}
	cpl := uint16(c.cpl)
	if cs.Access&x86.SegDown == 0 { // not conforming
		cpl = uint16(cs.DPL())
	}
	cs.Selector = sel&^3 | cpl
	return cs, c.touch(&cs, d)
}

// tss64 reads a stack pointer of the 64-bit TSS.
func (c *CPU) tss64(off uint64) (uint64, bool) {
	if off+7 > uint64(c.tr.Limit) {
		return 0, c.raiseCode(x86.TS, uint32(c.tr.Selector&^3)+c.ext)
	}
	return c.sysLoad(c.tr.Base+off, 8)
}

// enterProtected is delivery in protected mode without IA-32e (SDM vol. 3A 6.12), from virtual-8086 mode too.
func (c *CPU) enterProtected(f fault) bool {
	at := uint64(f.vec) * 8
	if at+7 > uint64(c.idtr.Limit) {
		return c.raiseCode(x86.GP, c.gateError(f.vec))
	}
	g, ok := c.sysLoad(c.idtr.Base+at, 8)
	if !ok {
		return false
	}
	size := 2
	switch g >> 40 & 0x1F {
	case 0xE, 0xF:
		size = 4
	case 6, 7:
	default: // Task gates are not supported: as if there were none.
		return c.raiseCode(x86.GP, c.gateError(f.vec))
	}
	if f.soft && uint8(g>>45&3) < c.cpl {
		return c.raiseCode(x86.GP, c.gateError(f.vec))
	}
	if g>>47&1 == 0 {
		return c.raiseCode(x86.NP, c.gateError(f.vec))
	}
	cs, ok := c.gateTarget(uint16(g >> 16))
	if !ok {
		return false
	}
	v86 := c.flags&x86.VM != 0
	cpl := uint8(cs.Selector & 3)
	if v86 && cpl != 0 {
		return c.raiseCode(x86.GP, uint32(cs.Selector&^3)+c.ext)
	}
	rip := g & 0xFFFF
	if size == 4 {
		rip |= g >> 32 & 0xFFFF0000
	}
	if rip > uint64(cs.Limit) {
		return c.raiseCode(x86.GP, c.ext)
	}
	st := c.stack()
	was := c.cpl
	if cpl < was {
		if st, ok = c.innerStack(cpl); !ok {
			return false
		}
	}
	flags := c.rflags()
	if isFault(f) {
		flags |= x86.RF
	}
	c.cpl = cpl
	c.selectTLB()
	if v86 {
		ok = st.push(c, uint64(c.seg[x86.GS].Selector), size) && st.push(c, uint64(c.seg[x86.FS].Selector), size) &&
			st.push(c, uint64(c.seg[x86.DS].Selector), size) && st.push(c, uint64(c.seg[x86.ES].Selector), size)
	}
	if cpl < was {
		ok = ok && st.push(c, uint64(c.seg[x86.SS].Selector), size) && st.push(c, c.gpr[x86.RSP], size)
	}
	ok = ok && st.push(c, flags, size) && st.push(c, uint64(c.seg[x86.CS].Selector), size) && st.push(c, c.rip, size)
	if f.has {
		ok = ok && st.push(c, uint64(f.code), size)
	}
	if !ok {
		c.cpl = was
		c.selectTLB()
		return false
	}
	st.commit(c)
	c.flags &^= x86.TF | x86.NT | x86.RF | x86.VM
	if g>>40&1 == 0 {
		c.flags &^= x86.IF
	}
	if v86 {
		for _, r := range [...]int{x86.ES, x86.DS, x86.FS, x86.GS} {
			c.seg[r] = x86.Segment{}
		}
	}
	c.seg[x86.CS] = cs
	c.rip = rip
	c.modeChanged()
	return true
}

// innerStack finds the stack of privilege cpl in a 16- or 32-bit TSS.
func (c *CPU) innerStack(cpl uint8) (st stack, ok bool) {
	off, size := uint64(4+8*cpl), 4
	if c.tr.Access&8 == 0 {
		off, size = uint64(2+4*cpl), 2
	}
	if off+uint64(size)+1 > uint64(c.tr.Limit) {
		return st, c.raiseCode(x86.TS, uint32(c.tr.Selector&^3)+c.ext)
	}
	sp, ok := c.sysLoad(c.tr.Base+off, size)
	if !ok {
		return st, false
	}
	sel, ok := c.sysLoad(c.tr.Base+off+uint64(size), 2)
	if !ok {
		return st, false
	}
	seg, ok := c.stackSegment(uint16(sel), cpl, x86.TS)
	if !ok {
		return st, false
	}
	return makeStack(seg, sp), true
}

// stackSegment checks sel as SS for privilege cpl; what is wrong with it is reported as vec.
func (c *CPU) stackSegment(sel uint16, cpl uint8, vec x86.Vector) (seg x86.Segment, ok bool) {
	if sel&^3 == 0 {
		return seg, c.raiseCode(vec, c.ext)
	}
	d, ok := c.descriptor(sel, vec)
	if !ok {
		return seg, false
	}
	seg = d.segment(sel)
	if uint8(sel&3) != cpl || seg.DPL() != int(cpl) || seg.Access&(x86.SegS|x86.SegCode|x86.SegWritable) != x86.SegS|x86.SegWritable {
		return seg, c.raiseCode(vec, uint32(sel&^3)+c.ext)
	}
	if seg.Access&x86.SegPresent == 0 {
		return seg, c.raiseCode(x86.SSV, uint32(sel&^3)+c.ext)
	}
	return seg, c.touch(&seg, d)
}
