package jit

import "encoding/binary"

// Host registers that mean something to translated code. All others hold the guest register of the same number.
const (
	rax = iota
	rcx
	rdx
	rbx
	rsp // the state: see layout.go
	rbp
	rsi
	rdi
	r8
	r9
	r10
	r11
	r12
	r13 // the guest's RSP
	t0  // R14 and R15: scratch; the guest's R13, R14 and R15 are in the state
	t1
	guestSP = r13
	noReg   = 0xFF
)

// A mem is a memory operand of the host.
type mem struct {
	base, index uint8 // index: noReg for none
	shift       uint8 // of the index
	disp        int32
}

// at is the field at off of the state.
func at(off int32) mem { return mem{base: rsp, index: noReg, disp: off} }

// An asm appends machine code to buf, which will run at address base.
type asm struct {
	buf  []byte
	base uintptr
}

func (a *asm) pos() int { return len(a.buf) }

func (a *asm) byte(b ...byte) { a.buf = append(a.buf, b...) }

func (a *asm) u32(v uint32) { a.buf = binary.LittleEndian.AppendUint32(a.buf, v) }

// An enc is an instruction's encoding, without its operands.
type enc struct {
	lock bool
	pfx  uint8 // 66, F3, F2 or 0; it goes before REX
	size bool  // 66 besides
	w    bool
	rex  bool  // a REX is needed for SPL to DIL
	esc  uint8 // opcode map
	op   uint8
}

func (a *asm) prefixes(e enc, r, x, b uint8) {
	if e.lock {
		a.byte(0xF0)
	}
	if e.size {
		a.byte(0x66)
	}
	if e.pfx != 0 {
		a.byte(e.pfx)
	}
	rex := r>>3<<2 | x>>3<<1 | b>>3
	if e.w {
		rex |= 8
	}
	if rex != 0 || e.rex {
		a.byte(0x40 | rex)
	}
	switch e.esc {
	case 1:
		a.byte(0x0F)
	case 2:
		a.byte(0x0F, 0x38)
	case 3:
		a.byte(0x0F, 0x3A)
	}
	a.byte(e.op)
}

// rr appends e with two register operands: reg in ModRM.reg, rm in ModRM.rm.
func (a *asm) rr(e enc, reg, rm uint8) {
	a.prefixes(e, reg, 0, rm)
	a.byte(0xC0 | reg&7<<3 | rm&7)
}

// rm appends e with a memory operand.
func (a *asm) rm(e enc, reg uint8, m mem) {
	x := m.index
	if x == noReg {
		x = 0
	}
	a.prefixes(e, reg, x, m.base)
	a.operand(reg, m)
}

// operand appends ModRM, SIB and displacement.
func (a *asm) operand(reg uint8, m mem) {
	mod := uint8(2)
	switch {
	case m.disp == 0 && m.base&7 != rbp:
		mod = 0
	case int32(int8(m.disp)) == m.disp:
		mod = 1
	}
	if m.index != noReg || m.base&7 == rsp {
		i := uint8(rsp)
		if m.index != noReg {
			i = m.index & 7
		}
		a.byte(mod<<6|reg&7<<3|4, m.shift<<6|i<<3|m.base&7)
	} else {
		a.byte(mod<<6 | reg&7<<3 | m.base&7)
	}
	switch mod {
	case 1:
		a.byte(uint8(m.disp))
	case 2:
		a.u32(uint32(m.disp))
	}
}

// Instructions by name, 64 bits wide where nothing else is said.

func (a *asm) mov(dst, src uint8)       { a.rr(enc{op: 0x89, w: true}, src, dst) }
func (a *asm) load(dst uint8, m mem)    { a.rm(enc{op: 0x8B, w: true}, dst, m) }
func (a *asm) load32(dst uint8, m mem)  { a.rm(enc{op: 0x8B}, dst, m) }
func (a *asm) store(m mem, src uint8)   { a.rm(enc{op: 0x89, w: true}, src, m) }
func (a *asm) store32(m mem, src uint8) { a.rm(enc{op: 0x89}, src, m) }
func (a *asm) lea(dst uint8, m mem)     { a.rm(enc{op: 0x8D, w: true}, dst, m) }
func (a *asm) lea32(dst uint8, m mem)   { a.rm(enc{op: 0x8D}, dst, m) }
func (a *asm) shr(r, n uint8)           { a.rr(enc{op: 0xC1, w: true}, 5, r); a.byte(n) }
func (a *asm) shl(r, n uint8)           { a.rr(enc{op: 0xC1, w: true}, 4, r); a.byte(n) }
func (a *asm) xor(dst, src uint8)       { a.rr(enc{op: 0x31, w: true}, src, dst) }
func (a *asm) add(dst uint8, m mem)     { a.rm(enc{op: 0x03, w: true}, dst, m) }
func (a *asm) sub(dst uint8, m mem)     { a.rm(enc{op: 0x2B, w: true}, dst, m) }
func (a *asm) cmp(r uint8, m mem)       { a.rm(enc{op: 0x3B, w: true}, r, m) }
func (a *asm) and32(r uint8, v uint32)  { a.rr(enc{op: 0x81}, 4, r); a.u32(v) }
func (a *asm) mov32(r uint8, v uint32)  { a.prefixes(enc{op: 0xB8 | r&7}, 0, 0, r); a.u32(v) }
func (a *asm) store32i(m mem, v uint32) { a.rm(enc{op: 0xC7}, 0, m); a.u32(v) }
func (a *asm) jmpReg(r uint8)           { a.rr(enc{op: 0xFF}, 4, r) }
func (a *asm) jmpMem(m mem)             { a.rm(enc{op: 0xFF}, 4, m) }
func (a *asm) plus(dst, src uint8, d int32) {
	a.lea(dst, mem{base: src, index: noReg, disp: d})
}

// cmp64 compares r, known to be below 2^32 or a miss, with v.
func (a *asm) cmp64(r uint8, v uint32) { a.rr(enc{op: 0x81, w: true}, 7, r); a.u32(v) }

// cmp0 compares the 32 bits at m with 0.
func (a *asm) cmp0(m mem) { a.rm(enc{op: 0x83}, 7, m); a.byte(0) }

// A fixup is the place of a 32-bit displacement, relative to its own end.
type fixup int

// jmp and jcc append jumps to a place that is not known yet.
func (a *asm) jmp() fixup { a.byte(0xE9); a.u32(0); return fixup(len(a.buf) - 4) }
func (a *asm) jcc(cc uint8) fixup {
	a.byte(0x0F, 0x80|cc)
	a.u32(0)
	return fixup(len(a.buf) - 4)
}

// here makes f lead to what is appended next; to makes it lead to offset p, toAddr to an address.
func (a *asm) here(f fixup)      { a.to(f, len(a.buf)) }
func (a *asm) to(f fixup, p int) { binary.LittleEndian.PutUint32(a.buf[f:], uint32(p-int(f)-4)) }
func (a *asm) toAddr(f fixup, p uintptr) {
	binary.LittleEndian.PutUint32(a.buf[f:], uint32(p-(a.base+uintptr(f)+4)))
}

// Conditions, as JCC encodes them.
const (
	ccAE = 3
	ccE  = 4
	ccNE = 5
	ccA  = 7
)
