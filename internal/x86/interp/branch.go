package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Near branches end blocks: terminators find the next one. Those with 16-bit operands outside of 64-bit mode, which cut RIP, are rare, and plain ops that
// set c.rip.

// direct goes to a place that is not linked yet, or never is because it is in another page.
func (c *CPU) direct(b *block, k int) *block {
	rip := c.maskIP(c.gpr[regBase] + b.to[k])
	if b.to[k] < pageSize {
		c.rip = rip
		return nil
	}
	return c.jump(rip)
}

// termNext goes straight on.
func termNext(c *CPU, b *block) *block {
	if nb := b.link[0]; nb != nil {
		return nb
	}
	return c.direct(b, 0)
}

// termEnd goes straight on after an instruction that may have changed everything.
func termEnd(c *CPU, b *block) *block {
	c.rip = c.ipOf(&b.last)
	return nil
}

func termJMP(c *CPU, b *block) *block {
	if nb := b.link[1]; nb != nil {
		return nb
	}
	return c.direct(b, 1)
}

// near tells whether a branch's operand size is the mode's own.
func near(in *decode.Inst) bool { return in.Size != 2 }

// target16 is where a branch with 16-bit operands goes.
func (c *CPU) target16(o *op) bool {
	rip := (c.nextIP(o) + o.imm) & 0xFFFF
	if rip > uint64(c.seg[x86.CS].Limit) {
		return c.raiseCode(x86.GP, 0)
	}
	return c.jumpTo(rip)
}

func bindJCC(bd *builder, in *decode.Inst, o *op) handler {
	o.imm, o.aux = uint64(in.Imm), in.Opcode&15
	if !near(in) {
		return func(c *CPU, o *op) bool { return !c.cond(o.aux) || c.target16(o) }
	}
	bd.b.to = [2]uint64{uint64(o.next), uint64(o.next) + o.imm}
	if o.aux&1 != 0 {
		bd.b.to[0], bd.b.to[1] = bd.b.to[1], bd.b.to[0]
	}
	if bd.fuse(in, o) {
		return nil
	}
	bd.term = termJCC[o.aux>>1]
	return nil
}

// fuse makes one of the comparison in front of a conditional jump and the jump.
func (bd *builder) fuse(in *decode.Inst, o *op) bool {
	if bd.prev == nil || len(bd.ops) == 0 {
		return false
	}
	var table map[string][8][4]terminator
	switch bd.prev.Op {
	case decode.CMP:
		table = term_cmp
	case decode.TEST:
		table = term_test
	case decode.ADD:
		table = term_add
	case decode.SUB:
		table = term_sub
	case decode.AND:
		table = term_and
	default:
		return false
	}
	d, s := bd.prev.Args[0], bd.prev.Args[1]
	form := formLetter(d) + formLetter(s)
	t, ok := table[form]
	if !ok {
		return false
	}
	last := len(bd.ops) - 1
	term := t[in.Opcode>>1&7][sizeIndex(d.Size)]
	if term == nil || bd.ops[last].ip != bd.off-uint16(bd.prev.Len) {
		return false
	}
	next := o.next
	*o = bd.ops[last]
	o.next = next
	bd.ops, bd.alt, bd.eff = bd.ops[:last], bd.alt[:last], bd.eff[:last]
	bd.term = term
	bd.deadEnd = form[0] != 'm' && form[1] != 'm'
	return true
}

func formLetter(a decode.Arg) string {
	switch a.Kind {
	case decode.Mem:
		return "m"
	case decode.Imm:
		return "i"
	}
	return "r"
}

func bindJMP(bd *builder, in *decode.Inst, o *op) handler {
	a := in.Args[0]
	o.imm, o.size = uint64(in.Imm), in.Size
	if a.Kind == decode.Rel {
		if !near(in) {
			return (*CPU).target16
		}
		bd.b.to[1] = uint64(o.next) + o.imm
		bd.term = termJMP
		return nil
	}
	if a.Kind == decode.Mem {
		bd.mem(o)
		if !near(in) {
			return func(c *CPU, o *op) bool {
				v, ok := c.load16(c.addr(o))
				return ok && c.nearTo(uint64(v))
			}
		}
		bd.term = termJMPm
		return nil
	}
	o.src = reg(a)
	if !near(in) {
		return func(c *CPU, o *op) bool { return c.nearTo(uint64(*c.r16(o.src))) }
	}
	bd.term = termJMPr
	return nil
}

// nearTo jumps to rip, if it may.
func (c *CPU) nearTo(rip uint64) bool {
	if !c.goodTarget(rip) {
		return c.raiseCode(x86.GP, 0)
	}
	return c.jumpTo(rip)
}

func termJMPr(c *CPU, b *block) *block { return c.jump(c.maskIP(*c.r64(b.last.src))) }

func termJMPm(c *CPU, b *block) *block {
	o := &b.last
	rip, ok := c.load(c.addr(o), uint64(o.size))
	if !ok {
		return nil
	}
	return c.jump(rip)
}

func bindCALL(bd *builder, in *decode.Inst, o *op) handler {
	a := in.Args[0]
	o.imm, o.size = uint64(in.Imm), in.Size
	if !near(in) {
		return bindCALL16(bd, in, o)
	}
	switch a.Kind {
	case decode.Rel:
		bd.b.to[1] = uint64(o.next) + o.imm
		bd.term = termCALL
		if in.Size == 8 {
			o.mseg = x86.SS
			bd.term = termCALL64
		}
	case decode.Mem:
		bd.mem(o)
		bd.term = termCALLm
	default:
		o.src = reg(a)
		bd.term = termCALLr
	}
	return nil
}

func bindCALL16(bd *builder, in *decode.Inst, o *op) handler {
	a := in.Args[0]
	switch a.Kind {
	case decode.Rel:
		return func(c *CPU, o *op) bool { return c.call16((c.nextIP(o)+o.imm)&0xFFFF, o) }
	case decode.Mem:
		bd.mem(o)
		return func(c *CPU, o *op) bool {
			v, ok := c.load16(c.addr(o))
			return ok && c.call16(uint64(v), o)
		}
	}
	o.src = reg(a)
	return func(c *CPU, o *op) bool { return c.call16(uint64(*c.r16(o.src)), o) }
}

func (c *CPU) call16(rip uint64, o *op) bool {
	if !c.goodTarget(rip) {
		return c.raiseCode(x86.GP, 0)
	}
	return c.push(c.nextIP(o), 2) && c.jumpTo(rip)
}

func termCALL64(c *CPU, b *block) *block {
	ret := c.gpr[regBase] + uint64(b.last.next)
	sp := c.gpr[x86.RSP] - 8
	e := c.tlb.entry(sp)
	if off := sp - e.write; off <= pageSize-8 {
		*e.at64(off) = ret
	} else if !c.slowStore(sp, ret, 8) {
		return nil
	}
	c.gpr[x86.RSP] = sp
	if nb := b.link[1]; nb != nil {
		return nb
	}
	nb := c.direct(b, 1)
	if nb == nil && c.stop != stopNone {
		c.gpr[x86.RSP] = sp + 8 // the target is not canonical
	}
	return nb
}

func termCALL(c *CPU, b *block) *block {
	sp := c.gpr[x86.RSP]
	if !c.push(c.nextIP(&b.last), uint64(b.last.size)) {
		return nil
	}
	if nb := b.link[1]; nb != nil {
		return nb
	}
	nb := c.direct(b, 1)
	if nb == nil && c.stop != stopNone {
		c.gpr[x86.RSP] = sp
	}
	return nb
}

func termCALLr(c *CPU, b *block) *block { return c.callTo(c.maskIP(*c.r64(b.last.src)), &b.last) }

func termCALLm(c *CPU, b *block) *block {
	rip, ok := c.load(c.addr(&b.last), uint64(b.last.size))
	if !ok {
		return nil
	}
	return c.callTo(rip, &b.last)
}

// callTo pushes the return address and goes to rip.
func (c *CPU) callTo(rip uint64, o *op) *block {
	if !c.goodTarget(rip) {
		c.raiseCode(x86.GP, 0)
		return nil
	}
	if !c.push(c.nextIP(o), uint64(o.size)) {
		return nil
	}
	return c.jump(rip)
}

func bindRET(bd *builder, in *decode.Inst, o *op) handler {
	o.imm, o.size, o.mseg = 0, in.Size, x86.SS
	if in.NArgs > 0 {
		o.imm = uint64(in.Imm) & 0xFFFF
	}
	switch {
	case !near(in):
		return func(c *CPU, o *op) bool {
			rip, ok := c.loadSP(c.gpr[x86.RSP], 2)
			if !ok || !c.nearTo(rip) && c.stop == stopFault {
				return false
			}
			c.setSP(c.gpr[x86.RSP] + 2 + o.imm)
			return false
		}
	case in.Size == 8:
		bd.term = termRET64
	default:
		bd.term = termRET
	}
	return nil
}

func termRET64(c *CPU, b *block) *block {
	sp := c.gpr[x86.RSP]
	e := c.tlb.entry(sp)
	var rip uint64
	if off := sp - e.read; off <= pageSize-8 {
		rip = *e.at64(off)
	} else {
		var ok bool
		if rip, ok = c.slowLoad(sp, 8); !ok {
			return nil
		}
	}
	nb := c.jump(rip)
	if nb == nil && c.stop != stopNone {
		return nil
	}
	c.gpr[x86.RSP] = sp + 8 + b.last.imm
	return nb
}

func termRET(c *CPU, b *block) *block {
	size := uint64(b.last.size)
	rip, ok := c.loadSP(c.gpr[x86.RSP], size)
	if !ok {
		return nil
	}
	nb := c.jump(rip)
	if nb == nil && c.stop != stopNone {
		return nil
	}
	c.setSP(c.gpr[x86.RSP] + size + b.last.imm)
	return nb
}

// bindLOOP binds LOOP, LOOPE, LOOPNE and JCXZ.
func bindLOOP(taken func(c *CPU, size int) bool) binder {
	return func(bd *builder, in *decode.Inst, o *op) handler {
		o.imm, o.size = uint64(in.Imm), in.AddrSize
		if !near(in) {
			return func(c *CPU, o *op) bool { return !taken(c, int(o.size)) || c.target16(o) }
		}
		bd.b.to = [2]uint64{uint64(o.next), uint64(o.next) + o.imm}
		bd.term = func(c *CPU, b *block) *block {
			k := 0
			if taken(c, int(b.last.size)) {
				k = 1
			}
			if nb := b.link[k]; nb != nil {
				return nb
			}
			return c.direct(b, k)
		}
		return nil
	}
}

// countDown decrements rCX and tells whether it is not zero.
func (c *CPU) countDown(size int) bool {
	n := (c.gpr[x86.RCX] - 1) & sizeMask(size)
	c.setReg(x86.RCX, size, n)
	return n != 0
}

func loop(c *CPU, size int) bool   { return c.countDown(size) }
func loopE(c *CPU, size int) bool  { return c.countDown(size) && c.zf() }
func loopNE(c *CPU, size int) bool { return c.countDown(size) && !c.zf() }
func jcxz(c *CPU, size int) bool   { return c.gpr[x86.RCX]&sizeMask(size) == 0 }
