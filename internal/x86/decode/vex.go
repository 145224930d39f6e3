package decode

// vexMaps is the first of VEX's opcode maps in roots: map 1.
const vexMaps = 4

// isVex tells whether C4 or C5, which was read, begins a VEX prefix. Outside of 64-bit mode it is LES or LDS, unless their ModRM byte would name a register.
func (r *reader) isVex(m Mode) (bool, error) {
	if m == Mode64 {
		return true, nil
	}
	if r.pos >= len(r.code) {
		return false, r.short()
	}
	return r.code[r.pos] >= 0xC0, nil
}

// vex reads the rest of a VEX prefix that began with first, and gives the index of its opcode map in roots (SDM vol. 2A 2.3.5).
func (in *Inst) vex(first uint8, r *reader) (opmap int, err error) {
	if in.Prefix&(Lock|RepE|RepNE|OpSize|Rex) != 0 {
		return 0, ErrUD
	}
	b, ok := r.u8()
	if !ok {
		return 0, r.short()
	}
	bits, select_ := ^b, uint8(1) // R, and where there are three bytes X and B, are inverted
	last := b
	if first == 0xC4 {
		select_ = b & 31
		if last, ok = r.u8(); !ok {
			return 0, r.short()
		}
		in.Prefix |= Prefix(bits>>5&1)*RexB | Prefix(bits>>6&1)*RexX | Prefix(last>>7)*RexW
	}
	in.Prefix |= Vex | Prefix(bits>>7)*RexR | Prefix(last>>2&1)*VexL | [4]Prefix{0, OpSize, RepE, RepNE}[last&3]
	r.vvvv = ^last >> 3 & 15
	if in.Mode != Mode64 { // eight registers; B is not looked at
		in.Prefix &^= RexB | RexX | RexR
	}
	if select_ < 1 || select_ > 3 {
		return 0, ErrUD
	}
	return vexMaps - 1 + int(select_), nil
}
