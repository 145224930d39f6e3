package interp

import (
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A builder makes one block.
type builder struct {
	c   *CPU
	b   *block
	ops []op
	alt []handler // of each op: what to run where its flags are not looked at, or nil
	eff []effect

	// Of the instruction being bound.
	off     uint16
	in      *decode.Inst
	quiet   handler
	does    effect
	term    terminator   // set by the binder of a jump
	deadEnd bool         // that jump sets all flags and cannot fault
	prev    *decode.Inst // the instruction before
	saved   [2]decode.Inst
}

// effect is what an op does with the status flags.
type effect uint8

const (
	readsFlags effect = 1 << iota
	setsFlags         // all six
	setsSome          // some of them, the others stay
	stops             // may fault or leave the block, so that the flags before it can be seen
)

// A binder chooses the handler of an instruction and fills o. It returns nil where the instruction is the block's end (bd.term is set) or
// does nothing.
type binder func(bd *builder, in *decode.Inst, o *op) handler

// build decodes the block at pa, linear address lin. It returns nil for a fault.
func (c *CPU) build(pa mem.Addr, lin uint64, key blockKey) *block {
	if c.codes.ops > max(totalOps/len(c.vm.cpus), minOps) {
		c.flushCode()
	}
	page := c.codePage(pa)
	code, err := c.ram.Slice(pa&^(pageSize-1), pageSize)
	if err != nil {
		c.raise(x86.UD) // code outside of RAM is not supported
		return nil
	}
	off := uint16(pa & (pageSize - 1))
	bd := &c.builder
	bd.reset(c, &block{off: off, key: key, page: page, to: [2]uint64{noLink, noLink}})
	limit := uint32(maxBlockInsns)
	if key&keySingle != 0 {
		limit = 1
	}
	var second *codePage
	for bd.b.n < limit && off < pageSize && bd.b.term == nil {
		in := &bd.saved[bd.b.n&1]
		*in, err = decode.Decode(code[off:], key.mode(), c.features)
		if err == decode.ErrShort {
			if bd.b.n > 0 {
				break
			}
			if second, err = c.straddle(bd, in, code[off:], lin); second == nil {
				return nil
			}
		}
		bd.add(in, err, off)
		off += uint16(in.Len)
	}
	return bd.finish(off, second)
}

func (bd *builder) reset(c *CPU, b *block) {
	bd.c, bd.b, bd.prev, bd.deadEnd = c, b, nil, false
	bd.ops, bd.alt, bd.eff = bd.ops[:0], bd.alt[:0], bd.eff[:0]
}

// straddle decodes the instruction that begins with the bytes of head and goes on in the next page. It returns nil for a fault.
func (c *CPU) straddle(bd *builder, in *decode.Inst, head []byte, lin uint64) (*codePage, error) {
	va := c.nextPage(lin)
	pa, _, ok := c.fetchPage(va)
	if !ok {
		return nil, nil
	}
	second := c.codePage(pa)
	tail, err := c.ram.Slice(pa&^(pageSize-1), 16)
	if err != nil {
		c.raise(x86.UD)
		return nil, nil
	}
	var buf [32]byte
	n := copy(buf[:], head)
	copy(buf[n:], tail)
	*in, err = decode.Decode(buf[:n+16], bd.b.key.mode(), c.features)
	bd.ops = append(bd.ops, op{fn: checkSecond, imm: uint64(second.pa), ip: bd.b.off, next: bd.b.off})
	bd.alt, bd.eff = append(bd.alt, nil), append(bd.eff, stops)
	return second, err
}

// nextPage is the linear address of the page behind lin.
func (c *CPU) nextPage(lin uint64) uint64 {
	va := lin&^(pageSize-1) + pageSize
	if c.mode != decode.Mode64 {
		va &= 0xFFFFFFFF
	}
	return va
}

// checkSecond begins a block that straddles two pages: the second must still be where it was when the block was made.
func checkSecond(c *CPU, o *op) bool {
	lin := c.gpr[regBase] + uint64(o.ip)
	if c.mode != decode.Mode64 {
		lin += c.seg[x86.CS].Base
	}
	pa, _, ok := c.fetchPage(c.nextPage(lin))
	if !ok {
		return false
	}
	if uint64(pa&^(pageSize-1)) != o.imm {
		c.codes.written(mem.Addr(o.imm), 1) // kills this block with the others that end there
		c.stop = stopRetry
		return false
	}
	return true
}

// add binds one instruction.
func (bd *builder) add(in *decode.Inst, err error, off uint16) {
	o := op{ip: off, next: off + uint16(in.Len), size: in.Size, mseg: 0xFF}
	bd.off, bd.in, bd.quiet, bd.does, bd.term = off, in, nil, readsFlags|stops, nil
	var fn handler
	switch {
	case err == decode.ErrTooLong:
		fn = raiseGP
	case err != nil:
		fn = raiseUD
	default:
		fn = bd.bind(in, &o)
	}
	if err != nil {
		o.next = off + 1
		bd.b.term = termEnd
	}
	bd.b.n++
	if fn != nil {
		o.fn = fn
		bd.emit(o)
	}
	switch {
	case bd.term != nil:
		bd.b.term, bd.b.last = bd.term, o
	case err == nil && in.Flags&(decode.Jump|decode.EndBlock) != 0:
		bd.b.term = termEnd
	}
	bd.prev = in
}

// emit appends an op.
func (bd *builder) emit(o op) {
	bd.ops = append(bd.ops, o)
	bd.alt = append(bd.alt, bd.quiet)
	bd.eff = append(bd.eff, bd.does)
}

// finish completes the block, whose last byte is before off.
func (bd *builder) finish(off uint16, second *codePage) *block {
	b := bd.b
	b.end = off
	if b.term == nil {
		b.term = termNext
		b.to[0] = uint64(off)
	}
	if bd.term == nil {
		b.last = op{ip: off, next: off, mseg: 0xFF}
	}
	bd.dropFlags()
	// One more than there are: runBlocks steps behind the last one before it looks at the count.
	b.ops = make([]op, len(bd.ops), len(bd.ops)+1)
	copy(b.ops, bd.ops)
	bd.c.codes.insert(b, second)
	bd.c.stats.blocks++
	return b
}

// dropFlags gives ops whose flags nobody can see the handlers that do not compute them.
func (bd *builder) dropFlags() {
	live := !bd.deadEnd
	for i := len(bd.ops) - 1; i >= 0; i-- {
		e := bd.eff[i]
		if e&setsFlags != 0 {
			if !live && bd.alt[i] != nil {
				bd.ops[i].fn = bd.alt[i]
			}
			live = false
		}
		if e&setsSome != 0 && !live && bd.alt[i] != nil {
			bd.ops[i].fn = bd.alt[i]
		}
		if e&(readsFlags|stops) != 0 {
			live = true
		}
	}
}

// bind chooses the handler.
func (bd *builder) bind(in *decode.Inst, o *op) handler {
	if f := binders[in.Op]; f != nil {
		return f(bd, in, o)
	}
	if in.Flags&decode.Vec != 0 {
		return bindVec(bd, in, o)
	}
	if fn := systemHandler(in); fn != nil {
		bd.keep(o)
		return fn
	}
	return raiseUD
}

// keep gives o all of the instruction.
func (bd *builder) keep(o *op) {
	if o.inst == nil {
		o.inst = &whole{Inst: *bd.in}
		if bd.hasMem() {
			o.mseg = bd.in.Mem.Seg
		}
	}
}

func (bd *builder) hasMem() bool {
	for i := range bd.in.NArgs {
		if bd.in.Args[i].Kind == decode.Mem {
			return true
		}
	}
	return false
}

// clean says that the instruction neither reads flags nor stops; it sets them all if sets is true, with quiet doing the same without.
func (bd *builder) clean(sets bool, quiet handler) {
	bd.does, bd.quiet = 0, quiet
	if sets {
		bd.does = setsFlags
	}
}

// reg is the byte offset of a register operand.
func reg(a decode.Arg) uint8 {
	if a.Kind == decode.High {
		return a.Reg*8 + 1
	}
	return a.Reg * 8
}

// mem fills o's memory operand such that c.addr gives its linear address. Where that takes more than base, index and displacement
// it emits an op in front that computes the address, with all checks.
func (bd *builder) mem(o *op) {
	in := bd.in
	m := &in.Mem
	o.mseg = m.Seg
	o.mbase, o.index, o.disp = regZero*8, regZero*8, uint64(m.Disp)
	if in.Mode == decode.Mode64 && in.AddrSize == 8 {
		switch m.Base {
		case decode.NoReg:
		case decode.RIP:
			o.mbase = regBase * 8
			o.disp += uint64(o.next)
		default:
			o.mbase = m.Base * 8
		}
		if m.Index != decode.NoReg {
			o.index = m.Index * 8
			o.scale = scaleShift[m.Scale&15]
		}
		if m.Seg != x86.FS && m.Seg != x86.GS {
			return
		}
		seg := (regSeg + m.Seg) * 8
		if o.index == regZero*8 {
			o.index, o.scale = seg, 0
			return
		}
		if o.mbase == regZero*8 {
			o.mbase = seg
			return
		}
	}
	ea := op{fn: computeEA, ip: o.ip, next: o.next, size: o.size, mseg: m.Seg}
	ea.inst = &whole{Inst: *in}
	does, quiet := bd.does, bd.quiet
	bd.does, bd.quiet = stops, nil
	bd.emit(ea)
	bd.does, bd.quiet = does, quiet
	o.mbase, o.index, o.scale, o.disp = regEA*8, regZero*8, 0, 0
}

var scaleShift = [16]uint8{1: 0, 2: 1, 4: 2, 8: 3}

// addr is the linear address of a memory operand that builder.mem prepared.
func (c *CPU) addr(o *op) uint64 {
	return *c.r64(o.mbase) + *c.r64(o.index)<<(o.scale&63) + o.disp
}

func computeEA(c *CPU, o *op) bool {
	va, ok := c.ea(o)
	c.gpr[regEA] = va
	return ok
}

func raiseUD(c *CPU, _ *op) bool { return c.raise(x86.UD) }
func raiseGP(c *CPU, _ *op) bool { return c.raiseCode(x86.GP, 0) }
