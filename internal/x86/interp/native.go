package interp

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/jit"
)

// hot is how often a block is interpreted before it is translated, where nothing else is asked for.
const hot = 30

// native is one CPU's translated code.
type native struct {
	hot    uint32
	vec    jit.VecUse
	cache  *jit.Cache
	tr     *jit.Translator
	blocks []*block // by jit.Block.ID
	jumps  jit.JumpTable
	insts  []jit.Inst
}

// hostCode is what is known of a translated block.
type hostCode struct {
	marks []jit.Mark
	vec   bool // see jit.Code.Vec
	links [2]jit.Link
	to    [2]uint64 // where the block goes on, as offsets from its page: behind it, where its jump leads
	dead  uintptr
	in    []inLink
	size  uint32
}

// An inLink is a jump to a block's code: the place of its displacement, and where it led before.
type inLink struct{ at, stub uintptr }

func newNative(c *CPU, how Translation) (*native, error) {
	cache, err := jit.NewCache(how.Size)
	if err != nil {
		return nil, err
	}
	n := &native{hot: how.Hot, cache: cache, tr: jit.NewTranslator(&layout, c.features, how.Exact)}
	setJumps(&c.frame, &n.jumps)
	return n, nil
}

// vecUse is which vector instructions raise no exception for what CR0, CR4 and XCR0 say (checkSSE, checkAVX).
func (c *CPU) vecUse() jit.VecUse {
	const state = fpu.CompSSE | fpu.CompAVX
	switch {
	case c.cr0&(x86.CR0EM|x86.CR0TS) != 0 || c.cr4&x86.CR4OSFXSR == 0:
		return jit.NoVec
	case c.cr4&x86.CR4OSXSAVE == 0 || c.xcr0&state != state:
		return jit.SSE
	}
	return jit.AVX
}

// vecChanged drops all translations where another use was in force when they were made.
func (c *CPU) vecChanged() {
	if n := c.native; n != nil && n.vec != c.vecUse() {
		n.vec = c.vecUse()
		n.tr.Use(n.vec)
		c.poll.Or(pollFlush)
	}
}

// warm counts an execution of b, which is not translated, and translates it when it has been executed often enough. It tells whether there is a
// translation now.
func (c *CPU) warm(b *block) bool {
	if b.heat++; c.native == nil || b.heat != c.native.hot {
		return false
	}
	return c.compile(b)
}

// compile makes host code of b, if it is of a kind that can be translated.
func (c *CPU) compile(b *block) bool {
	n := c.native
	if b.key != blockKey(decode.Mode64) || b.end > pageSize || b.n == 0 || b.dead {
		return false
	}
	page, err := c.ram.Slice(b.page.pa, pageSize)
	if err != nil {
		return false
	}
	n.insts = n.insts[:0]
	off := b.off
	for range b.n {
		in, err := decode.Decode(page[off:], decode.Mode64, c.features)
		if err != nil {
			return false // also where it is being overwritten by others now
		}
		n.insts = append(n.insts, jit.Inst{Inst: in, Off: off})
		off += uint16(in.Len)
	}
	if off != b.end {
		return false
	}
	code := n.tr.Translate(&jit.Block{Insts: n.insts, Page: page, ID: uint32(len(n.blocks))}, n.cache.Next())
	a, err := n.cache.Add(code.Bytes)
	if err != nil {
		c.poll.Or(pollFlush)
		return false
	}
	h := &hostCode{marks: append([]jit.Mark(nil), code.Marks...), links: code.Links, vec: code.Vec, dead: a + uintptr(code.Dead), size: uint32(len(code.Bytes))}
	last := &n.insts[len(n.insts)-1]
	h.to = [2]uint64{uint64(b.end), uint64(b.end) + uint64(last.Imm)}
	b.code, b.host = a, h
	n.blocks = append(n.blocks, b)
	c.stats.translated++
	return true
}

// kill makes b's code unreachable. It may be running.
func (n *native) kill(b *block) {
	for _, l := range b.host.in {
		n.cache.Link(l.at, l.stub)
	}
	n.cache.Divert(b.code, b.host.dead)
	b.code, b.host = 0, nil
}

// reset forgets all code.
func (n *native) reset() {
	n.cache.Reset()
	n.blocks = n.blocks[:0]
	n.jumps = jit.JumpTable{}
}

// mark is the address of the code of b's instruction at page offset off, or 0.
func (b *block) mark(off uint16) uintptr {
	m := b.host.marks
	lo, hi := 0, len(m)
	for lo < hi {
		if mid := (lo + hi) / 2; m[mid].Guest < off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(m) && m[lo].Guest == off {
		return b.code + uintptr(m[lo].Host)
	}
	return 0
}

// opAt is the first op of the instruction at off, or the place behind all.
func (b *block) opAt(off uint16) int {
	for i := range b.ops {
		if b.ops[i].ip == off {
			return i
		}
	}
	return len(b.ops)
}

// runNative executes from the start of b, which is translated, until there is a block that is not, which it returns. It returns nil where runBlocks
// does, with c.rip set.
func (c *CPU) runNative(b *block) *block {
	code, within := b.code, false
	for {
		enterNative(c, code, within)
		f := &c.frame
		base := c.gpr[regBase]
		reason, off := jit.Split(f.Word)
		if f.Signal != 0 { // it says neither block nor reason
			b, off = c.hostFault()
			reason = jit.Step
		} else {
			b = c.native.blocks[f.Block]
		}
		c.at = base + uint64(b.off)
		if b.host == nil {
			reason = jit.Dead
		}
		switch reason {
		case jit.Step:
			var nb *block
			if nb, code = c.interpret(b, off, base); code != 0 {
				within = b.host.vec
				continue
			}
			return nb
		case jit.Taken, jit.Fall:
			k := 0
			if reason == jit.Taken {
				k = 1
			}
			return c.follow(b, k, base)
		default:
			c.rip = base + uint64(off)
			return nil
		}
	}
}

// interpret executes b's instruction at off. It returns the address of the code to go on with, or 0 and the block, or nil with c.rip set.
func (c *CPU) interpret(b *block, off uint16, base uint64) (*block, uintptr) {
	c.stats.steps++
	i, next := b.opAt(off), off
	for ; i < len(b.ops) && b.ops[i].ip == off; i++ {
		o := &b.ops[i]
		if !o.fn(c, o) {
			c.left(o)
			return nil, 0
		}
		next = o.next
	}
	last := b.last.ip == off // it is in the terminator, perhaps with the jump behind it, and after an op that computed its address
	if next == off && !last || b.dead {
		c.rip = base + uint64(next)
		return nil, 0
	}
	if !last && next != b.end {
		if c.poll.Load() != 0 {
			c.rip = base + uint64(next)
			return nil, 0
		}
		if code := b.mark(next); code != 0 {
			return nil, code
		}
	}
	nb := b.term(c, b)
	if nb == nil || nb.dead || c.poll.Load() != 0 {
		if nb = c.next(b, nb, base); nb == nil {
			return nil, 0
		}
	}
	c.learn(nb)
	return nb, 0
}

// follow goes where b, whose page is at base, leads: way k of its links.
func (c *CPU) follow(b *block, k int, base uint64) *block {
	c.rip = base + b.host.to[k]
	if c.poll.Load() != 0 {
		return nil
	}
	nb := c.lookup(b.key)
	if nb == nil || nb.code == 0 || b.host == nil {
		return nb
	}
	if l := b.host.links[k]; l.At != 0 && nb.page == b.page && c.gpr[regBase] == base {
		at := b.code + uintptr(l.At)
		c.native.cache.Link(at, nb.code)
		nb.host.in = append(nb.host.in, inLink{at, b.code + uintptr(l.Stub)})
	} else {
		c.learn(nb)
	}
	return nb
}

// learn puts nb, where the processor goes now, into the jump table.
func (c *CPU) learn(nb *block) {
	if nb.code == 0 {
		return
	}
	base := c.gpr[regBase]
	rip := base + uint64(nb.off)
	if e := c.jc.entry(rip); e.rip == rip && e.b == nb {
		*c.native.jumps.At(rip) = jit.Jump{RIP: rip, Gen: e.gen, Base: base, Code: nb.code}
	}
}

// hostFault finds where translated code was when the host raised a signal: a fault of the guest's instruction, which the interpreter will find again.
func (c *CPU) hostFault() (*block, uint16) {
	pc, sig := c.frame.FaultPC, c.frame.Signal
	c.frame.Signal = 0
	for _, b := range c.native.blocks {
		if b.host == nil || pc < b.code || pc >= b.code+uintptr(b.host.size) {
			continue
		}
		m := b.host.marks
		for i := len(m) - 1; i >= 0; i-- {
			if b.code+uintptr(m[i].Host) <= pc {
				if in := c.native.instruction(c, b, m[i].Guest); in.Op == decode.DIV || in.Op == decode.IDIV || in.Flags&decode.Vec != 0 {
					return b, m[i].Guest
				}
				panic(fmt.Sprintf("BUG: interp: signal %d in the translation of the instruction at %#x", sig, c.gpr[regBase]+uint64(m[i].Guest)))
			}
		}
	}
	panic(fmt.Sprintf("BUG: interp: signal %d in translated code at %#x, of no block", sig, pc))
}

// instruction is b's instruction at off.
func (n *native) instruction(c *CPU, b *block, off uint16) decode.Inst {
	page, err := c.ram.Slice(b.page.pa, pageSize)
	if err != nil {
		return decode.Inst{}
	}
	in, err := decode.Decode(page[off:], decode.Mode64, c.features)
	if err != nil {
		return decode.Inst{}
	}
	return in
}
