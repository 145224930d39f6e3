package interp

import (
	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Run executes the guest until there is a reason to stop.
func (c *CPU) Run() hv.Exit {
	c.unpark()
	defer c.park()
	c.checkPending()
	c.at = c.rip
	for {
		if c.poll.Load()&pollTidy != 0 {
			c.tidy()
		}
		if c.poll.Load() != 0 {
			if exit, leave := c.pollEvents(); leave {
				return exit
			}
		}
		one := c.step || c.shadow && c.poll.Load() != 0
		c.stop, c.at = stopNone, c.rip
		if one {
			c.stepOne()
		} else {
			c.shadow = false
			if b := c.lookup(c.key()); b != nil {
				c.runBlocks(b)
			}
		}
		if c.poll.Load()&pollSample != 0 {
			c.answerSample() // now: what ran was not the handler of what is delivered next
		}
		if c.stop == stopFault {
			f := c.fault
			c.deliver(f)
			if f.soft && c.step && c.dbHits != 0 {
				c.dr[6] = c.dr[6]&^0xF | c.dbHits
				c.deliver(fault{vec: x86.DB, trap: true}) // on the first instruction of INT's handler
			}
		}
	}
}

// runBlocks executes from the start of b until something is to be looked at: an exception, c.poll, an instruction after which
// nothing may be taken for granted. It leaves c.rip at the next instruction, or at the one that faulted.
func (c *CPU) runBlocks(b *block) {
	for {
		if b.code != 0 || c.warm(b) {
			if b = c.runNative(b); b == nil {
				return
			}
			continue
		}
		base := c.gpr[regBase]
		// Two at a time: half the loop's own work, and two places for the host to predict calls from.
		o, k := b.first(), len(b.ops)
		for ; k >= 2; k -= 2 {
			if !o.fn(c, o) {
				c.leave(b, o, k)
				return
			}
			o = o.after()
			if !o.fn(c, o) {
				c.leave(b, o, k-1)
				return
			}
			o = o.after()
		}
		if k != 0 && !o.fn(c, o) {
			c.leave(b, o, 1)
			return
		}
		c.stats.insns += uint64(b.n)
		nb := b.term(c, b)
		if nb == nil || nb.dead || c.poll.Load() != 0 {
			if nb = c.next(b, nb, base); nb == nil {
				return
			}
		}
		b = nb
	}
}

// next is the slow way from b, which ran at page base, to its successor nb. It returns nil when Run must see to something first.
func (c *CPU) next(b, nb *block, base uint64) *block {
	if nb != nil {
		c.rip = c.maskIP(c.gpr[regBase] + uint64(nb.off))
	}
	c.at = base + uint64(b.off)
	if nb == nil && c.stop != stopNone {
		c.left(&b.last)
		return nil
	}
	if c.poll.Load() != 0 || c.shadow || c.step {
		return nil
	}
	base = c.gpr[regBase]
	nb = c.lookup(b.key)
	if nb != nil && c.gpr[regBase] == base && nb.page == b.page && b.key == nb.key && b.key&keyLimited == 0 && !b.dead {
		for i, to := range b.to {
			if to == uint64(nb.off) {
				b.link[i] = nb
			}
		}
	}
	return nb
}

// leave ends b at o, which returned false with k ops left to do, it included.
func (c *CPU) leave(b *block, o *op, k int) {
	c.stats.insns += uint64(len(b.ops) - k)
	c.at = c.gpr[regBase] + uint64(b.off)
	c.left(o)
}

// left puts c.rip where o, which returned false, leaves it.
func (c *CPU) left(o *op) {
	switch c.stop {
	case stopJump:
		return
	case stopFault:
		if c.fault.trap {
			c.rip = c.nextIP(o)
			return
		}
		if c.fault.canon && c.fault.vec == x86.GP && stackReference(o) {
			c.fault.vec = x86.SSV
		}
	}
	c.rip = c.ipOf(o)
}

// stackReference tells whether o's memory operand is in the stack segment, so that a non-canonical address is #SS.
func stackReference(o *op) bool {
	return o.mseg == x86.SS
}

// stepOne executes one instruction with all that debuggers can ask for.
func (c *CPU) stepOne() {
	shadow, step := c.shadow, c.step // as they are before it: POPF may change what traps behind the next
	if step && !c.beforeStep() {
		return
	}
	for {
		b := c.lookup(c.key() | keySingle)
		if b == nil {
			return
		}
		c.single(b)
		if c.stop != stopRetry {
			break
		}
		c.stop = stopNone
	}
	if shadow {
		c.shadow = false
	}
	if c.stop != stopFault && step {
		c.stop = stopNone
		c.afterStep()
	}
}

// single executes a block of one instruction.
func (c *CPU) single(b *block) {
	for i := range b.ops {
		if o := &b.ops[i]; !o.fn(c, o) {
			c.left(o)
			return
		}
	}
	c.stats.insns++
	nb := b.term(c, b)
	if nb != nil {
		c.rip = c.maskIP(c.gpr[regBase] + uint64(nb.off))
	} else if c.stop != stopNone {
		c.left(&b.last)
	}
}

// key is the key of blocks in the present state.
func (c *CPU) key() blockKey {
	k := blockKey(c.mode)
	if c.mode != decode.Mode64 && c.seg[x86.CS].Limit != 0xFFFFFFFF {
		k |= keyLimited
	}
	return k
}

// lookup finds or makes the block at c.rip and sets gpr[regBase] for it. It returns nil for a fault.
func (c *CPU) lookup(key blockKey) *block {
	e := c.jc.entry(c.rip)
	if e.rip == c.rip && (e.gen == c.gen || e.gen == c.ggen) && e.b.key == key && !e.b.dead {
		c.gpr[regBase] = c.rip - uint64(e.b.off)
		return e.b
	}
	lin := c.rip
	if c.mode != decode.Mode64 {
		if c.rip > uint64(c.seg[x86.CS].Limit) {
			c.raiseCode(x86.GP, 0)
			return nil
		}
		lin = (lin + c.seg[x86.CS].Base) & 0xFFFFFFFF
	} else if !c.canonical(lin) {
		c.raiseCode(x86.GP, 0)
		return nil
	}
	pa, gen, ok := c.fetchPage(lin)
	if !ok {
		return nil
	}
	pa |= mem.Addr(lin & (pageSize - 1))
	b := c.codes.find(pa, key)
	if b == nil {
		if b = c.build(pa, lin, key); b == nil {
			return nil
		}
	}
	if c.mode != decode.Mode64 && key&keyLimited != 0 && c.rip+uint64(b.end-b.off)-1 > uint64(c.seg[x86.CS].Limit) {
		// The last instructions are beyond the limit: one at a time, so that those in front of it run.
		if key&keySingle != 0 {
			c.raiseCode(x86.GP, 0)
			return nil
		}
		return c.lookup(key | keySingle)
	}
	c.gpr[regBase] = c.rip - uint64(b.off)
	if key&keySingle == 0 {
		*e = jumpEntry{rip: c.rip, b: b, gen: gen}
	}
	return b
}

// canonical tells whether va is a linear address that 64-bit code can name (SDM vol. 1 3.3.7.1).
func (c *CPU) canonical(va uint64) bool {
	if c.cr4&x86.CR4LA57 != 0 {
		return uint64(int64(va<<7)>>7) == va
	}
	return uint64(int64(va<<16)>>16) == va
}

// canonicalBase tells whether a register that holds an address without using it may hold v: bases of segments and tables, MSRs, INVPCID's
// descriptor. A processor with 57-bit addresses does not ask whether CR4.LA57 is set (KVM: x86: model canonical checks more precisely, Linux v6.13).
func (c *CPU) canonicalBase(v uint64) bool { return uint64(int64(v<<7)>>7) == v }
