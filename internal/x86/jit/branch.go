package jit

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// branch translates the jump that ends the block. It returns false where that is the interpreter's.
func (t *Translator) branch(b *Block, i int) bool {
	in := &b.Insts[i]
	next := int(in.Off) + int(in.Len)
	if in.Size == 2 {
		return false
	}
	switch in.Op {
	case decode.JMP:
		if in.Args[0].Kind == decode.Rel {
			t.goTo(1, b, next+int(in.Imm), t.live[i] != 0)
			return true
		}
		if !t.target(in, t.live[i] != 0) {
			return false
		}
		t.lookup(t.live[i] != 0, join(Step, in.Off), nil)
	case decode.JCC:
		t.conditional(b, i, next, next+int(in.Imm))
	case decode.CALL:
		return t.call(b, i, next)
	case decode.RET:
		live := t.live[i] != 0
		t.mov(t0, guestSP)
		t.check(in, 8, false, live)
		t.load(t0, mem{base: t1, index: t0})
		pop := int32(8)
		if in.NArgs > 0 {
			pop += int32(in.Imm & 0xFFFF)
		}
		t.plus(guestSP, guestSP, pop)
		t.lookup(live, join(Step, in.Off), func() { t.plus(guestSP, guestSP, -pop) })
	default:
		return false
	}
	return true
}

// conditional translates a JCC to page offset taken.
func (t *Translator) conditional(b *Block, i, next, taken int) {
	in := &b.Insts[i]
	cc := in.Opcode & 15
	fallLive, takenLive := t.liveAt(b, next, peekDepth) != 0, t.liveAt(b, taken, peekDepth) != 0
	switch {
	case inPage(next) && inPage(taken) && taken > int(in.Off):
		t.link(1, t.jcc(cc), join(Taken, in.Off))
		t.goTo(0, b, next, fallLive)
	case inPage(next):
		t.link(0, t.jcc(cc^1), join(Fall, in.Off))
		t.goTo(1, b, taken, takenLive)
	default:
		f := t.jcc(cc)
		t.goTo(0, b, next, fallLive)
		t.here(f)
		t.goTo(1, b, taken, takenLive)
	}
}

func inPage(off int) bool { return off >= 0 && off < pageSize }

// link makes f the block's way k.
func (t *Translator) link(k int, f fixup, word uint32) {
	t.code.Links[k].At = uint32(f)
	t.stub(f, word, false)
}

// goTo goes to page offset off, the block's way k. live says that flags are looked at there.
func (t *Translator) goTo(k int, b *Block, off int, live bool) {
	from := b.Insts[len(b.Insts)-1].Off
	word := join(Fall, from)
	if k == 1 {
		word = join(Taken, from)
	}
	if !inPage(off) {
		t.load(t0, at(t.layout.Base))
		t.plus(t0, t0, int32(off))
		t.lookup(live, word, nil)
		return
	}
	if off <= int(from) {
		t.poll(word, live)
	}
	t.link(k, t.jmp(), word)
}

// poll leaves the code where somebody wants the processor.
func (t *Translator) poll(word uint32, live bool) {
	if !live {
		t.cmp0(at(t.layout.Poll))
		t.stub(t.jcc(ccNE), word, false)
		return
	}
	t.saveFlags()
	t.cmp0(at(t.layout.Poll))
	t.stub(t.jcc(ccNE), word, true)
	t.restoreFlags()
}

// target puts where an indirect jump goes into t0.
func (t *Translator) target(in *Inst, live bool) bool {
	switch a := in.Args[0]; a.Kind {
	case decode.Mem:
		t.address(in)
		t.check(in, 8, false, live)
		t.load(t0, mem{base: t1, index: t0})
	case decode.GPR:
		if h := t.in(a.Reg, t0); h != t0 {
			t.mov(t0, h)
		}
	default:
		return false
	}
	return true
}

// lookup goes to the RIP in t0 by the jump table; what it does not know is an exit, in front of which undo goes.
func (t *Translator) lookup(live bool, word uint32, undo func()) {
	miss := t.find(live)
	t.load(t0, entry(jumpBase))
	t.store(at(t.layout.Base), t0)
	if live {
		t.restoreFlags()
	}
	t.jmpMem(entry(jumpCode))
	t.missed(miss, live, word, undo)
}

// entry is a field of the jump table's entry that t1 points to.
func entry(field int32) mem { return mem{base: t1, index: noReg, disp: field} }

// find makes t1 point to the entry of the RIP in t0, or goes to the fixups that it returns: where there is none, and where somebody wants the processor.
func (t *Translator) find(live bool) (miss [3]fixup) {
	if live {
		t.saveFlags()
	}
	t.mov(t1, t0)
	t.shr(t1, 12)
	t.xor(t1, t0)
	t.and32(t1, jumpEntries-1)
	t.shl(t1, 5)
	t.add(t1, at(t.layout.Frame+frameJumps))
	t.cmp0(at(t.layout.Poll))
	miss[0] = t.jcc(ccNE)
	t.cmp(t0, entry(jumpRIP))
	miss[1] = t.jcc(ccNE)
	t.load(t0, entry(jumpGen))
	t.cmp(t0, at(t.layout.Gen))
	found := t.jcc(ccE)
	t.cmp(t0, at(t.layout.GlobalGen))
	miss[2] = t.jcc(ccNE)
	t.here(found)
	return miss
}

// missed is where find's fixups lead: an exit.
func (t *Translator) missed(miss [3]fixup, live bool, word uint32, undo func()) {
	for _, f := range miss {
		t.here(f)
	}
	if live {
		t.restoreFlags()
	}
	if undo != nil {
		undo()
	}
	t.leave(word)
}

// call translates CALL. Nothing is pushed before it is known where an indirect one goes: it may fault.
func (t *Translator) call(b *Block, i, next int) bool {
	in := &b.Insts[i]
	live := t.live[i] != 0
	direct := in.Args[0].Kind == decode.Rel
	var miss [3]fixup
	if !direct {
		if !t.target(in, live) {
			return false
		}
		miss = t.find(live)
		t.load(t0, entry(jumpCode))
		t.store(at(t.layout.Frame+frameHost), t0)
		t.load(t0, entry(jumpBase))
		t.store(at(t.layout.Frame+frameBase), t0)
		if live {
			t.restoreFlags()
		}
	}
	t.plus(t0, guestSP, -8)
	t.check(in, 8, true, live)
	t.lea(t1, mem{base: t1, index: t0})
	t.load(t0, at(t.layout.Base))
	t.plus(t0, t0, int32(next))
	t.store(mem{base: t1, index: noReg}, t0)
	t.plus(guestSP, guestSP, -8)
	if direct {
		t.goTo(1, b, next+int(in.Imm), live)
		return true
	}
	t.load(t0, at(t.layout.Frame+frameBase))
	t.store(at(t.layout.Base), t0)
	t.jmpMem(at(t.layout.Frame + frameHost))
	t.missed(miss, live, join(Step, in.Off), nil)
	return true
}

// stack translates PUSH, POP and LEAVE of 64 bits.
func (t *Translator) stack(in *Inst, live bool) bool {
	if in.Size != 8 {
		return false
	}
	a := in.Args[0]
	host := mem{base: t1, index: t0}
	switch {
	case in.Op == decode.LEAVE:
		t.mov(t0, rbp)
		t.check(in, 8, false, live)
		t.plus(guestSP, rbp, 8)
		t.load(rbp, host)
	case in.Op == decode.PUSH && a.Kind == decode.GPR:
		t.plus(t0, guestSP, -8)
		t.check(in, 8, true, live)
		r := hostReg(a.Reg)
		if r == noReg {
			t.lea(t1, host)
			t.load(t0, slot(a.Reg))
			r, host = t0, mem{base: t1, index: noReg}
		}
		t.store(host, r)
		t.plus(guestSP, guestSP, -8)
	case in.Op == decode.PUSH && a.Kind == decode.Imm:
		t.plus(t0, guestSP, -8)
		t.check(in, 8, true, live)
		t.rm(enc{op: 0xC7, w: true}, 0, host)
		t.u32(uint32(in.Imm))
		t.plus(guestSP, guestSP, -8)
	case in.Op == decode.PUSH && a.Kind == decode.Mem:
		t.address(in)
		t.check(in, 8, false, live)
		t.load(t0, host)
		t.store(at(t.layout.Frame+frameHost), t0)
		t.plus(t0, guestSP, -8)
		t.check(in, 8, true, live)
		t.lea(t1, host)
		t.load(t0, at(t.layout.Frame+frameHost))
		t.store(mem{base: t1, index: noReg}, t0)
		t.plus(guestSP, guestSP, -8)
	case in.Op == decode.POP && a.Kind == decode.GPR:
		t.mov(t0, guestSP)
		t.check(in, 8, false, live)
		r := hostReg(a.Reg)
		if r == noReg {
			t.load(t0, host)
			t.store(slot(a.Reg), t0)
		} else {
			t.load(r, host)
		}
		if a.Reg != x86.RSP {
			t.plus(guestSP, guestSP, 8)
		}
	default:
		return false
	}
	return true
}
