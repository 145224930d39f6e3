package jit

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// hostReg is where guest register r lives, or noReg where that is the state.
func hostReg(r uint8) uint8 {
	switch {
	case r == x86.RSP:
		return guestSP
	case r >= x86.R13:
		return noReg
	}
	return r
}

// slot is guest register r in the state.
func slot(r uint8) mem { return at(int32(r) * 8) }

// in is guest register r: its host register, or scratch with the value loaded.
func (t *Translator) in(r, scratch uint8) uint8 {
	if h := hostReg(r); h != noReg {
		return h
	}
	t.load(scratch, slot(r))
	return scratch
}

// address puts the linear address of in's memory operand into t0. It uses t1 and no flag.
func (t *Translator) address(in *Inst) {
	m := &in.Mem
	lea := t.lea
	if in.AddrSize == 4 {
		lea = t.lea32
	}
	h := mem{base: noReg, index: noReg, disp: int32(m.Disp)}
	switch m.Base {
	case decode.NoReg:
	case decode.RIP:
		t.load(t0, at(t.layout.Base))
		h.base = t0
		h.disp = int32(in.Off) + int32(in.Len) + int32(m.Disp)
	default:
		h.base = t.in(m.Base, t0)
	}
	if m.Index != decode.NoReg {
		h.index = t.in(m.Index, t1)
		h.shift = shiftOf[m.Scale&15]
	}
	switch {
	case h.base != noReg:
		lea(t0, h)
	case h.index != noReg: // index*scale+disp without a base: mod 0, base 5
		t.prefixes(enc{op: 0x8D, w: in.AddrSize == 8}, t0, h.index, 0)
		t.byte(t0&7<<3|4, h.shift<<6|h.index&7<<3|5)
		t.u32(uint32(h.disp))
	case int64(int32(m.Disp)) == m.Disp && (m.Disp >= 0 || in.AddrSize == 8):
		t.rr(enc{op: 0xC7, w: true}, 0, t0)
		t.u32(uint32(m.Disp))
	case in.AddrSize == 4:
		t.mov32(t0, uint32(m.Disp))
	default:
		t.prefixes(enc{op: 0xB8 | t0&7, w: true}, 0, 0, t0)
		t.u32(uint32(m.Disp))
		t.u32(uint32(uint64(m.Disp) >> 32))
	}
	switch m.Seg {
	case x86.FS:
		t.segment(t.layout.FS)
	case x86.GS:
		t.segment(t.layout.GS)
	}
}

// segment adds a segment's base to t0.
func (t *Translator) segment(field int32) {
	t.load(t1, at(field))
	t.lea(t0, mem{base: t0, index: t1})
}

var shiftOf = [16]uint8{1: 0, 2: 1, 4: 2, 8: 3}

// check turns the linear address in t0 into a host address: page in t1, offset in t0, for an access of size bytes. Where the TLB has no permission for
// it, or it crosses a page, the instruction is the interpreter's. live says that flags must pass.
func (t *Translator) check(in *Inst, size int, write, live bool) {
	if live {
		t.saveFlags()
	}
	t.mov(t1, t0)
	t.shr(t1, 7)
	t.and32(t1, (TLBEntries-1)*tlbEntrySize)
	t.add(t1, at(t.layout.TLB))
	tag := int32(tlbRead)
	if write {
		tag = tlbWrite
	}
	t.sub(t0, mem{base: t1, index: noReg, disp: tag})
	t.cmp64(t0, uint32(pageSize-size))
	f := t.jcc(ccA)
	t.load(t1, mem{base: t1, index: noReg, disp: tlbPage})
	if live {
		t.restoreFlags()
	}
	t.stub(f, join(Step, in.Off), live)
}

// saveFlags puts the flags into AX, and the guest's RAX into the frame; restoreFlags undoes it.
func (t *Translator) saveFlags() {
	t.store(at(t.layout.Frame+frameSaved), rax)
	t.byte(0x9F)             // LAHF
	t.byte(0x0F, 0x90, 0xC0) // SETO AL
}

func (t *Translator) restoreFlags() {
	t.byte(0x04, 0x7F) // ADD AL, 7F: OF where AL is 1
	t.byte(0x9E)       // SAHF
	t.load(rax, at(t.layout.Frame+frameSaved))
}
