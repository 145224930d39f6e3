package decode

import (
	"encoding/binary"
	"errors"
)

// Why bytes are not an instruction.
var (
	ErrShort   = errors.New("decode: more bytes needed")                 // the instruction goes on behind code
	ErrUD      = errors.New("decode: undefined instruction")             // #UD
	ErrTooLong = errors.New("decode: instruction of more than 15 bytes") // #GP(0)
)

// MaxLen is the length in bytes that no instruction exceeds (SDM vol. 2A 2.3.11).
const MaxLen = 15

// Decode reads the instruction at the start of code. It looks at no byte behind the instruction's last, and allocates nothing.
// Instructions whose feature is not in f are those of a processor without it: undefined, or what their encoding meant before (TZCNT is BSF).
// On an error the Inst has no meaning.
func Decode(code []byte, mode Mode, f Features) (Inst, error) {
	r := reader{code: code}
	if len(code) > MaxLen {
		r.code = code[:MaxLen]
	}
	var in Inst
	in.Mode = mode
	op, ok := r.prefixes(&in)
	if !ok {
		return in, r.short()
	}
	opmap := 0
	switch {
	case op == 0x0F:
		opmap = 1
		if op, ok = r.u8(); ok && (op == 0x38 || op == 0x3A) {
			opmap = 2 + int(op>>1&1)
			op, ok = r.u8()
		}
		if !ok {
			return in, r.short()
		}
	case op|1 == 0xC5:
		switch is, err := r.isVex(in.Mode); {
		case err != nil:
			return in, err
		case is:
			if opmap, err = in.vex(op, &r); err != nil {
				return in, err
			}
			if op, ok = r.u8(); !ok {
				return in, r.short()
			}
		}
	}
	in.Map, in.Opcode = uint8(opmap), op
	if opmap > 3 {
		in.Map -= vexMaps - 1
	}
	e := roots[opmap][op]
	if e == 0 {
		return in, ErrUD
	}
	if withModRM[opmap][op>>5]>>(op&31)&1 != 0 {
		if in.ModRM, ok = r.u8(); !ok {
			return in, r.short()
		}
	}
	for e >= inner {
		n := nodes[e%uint16(len(nodes))]
		e = nodes[(e+1+in.branch(n, f))%uint16(len(nodes))]
	}
	if e == 0 {
		return in, ErrUD
	}
	if err := in.operands(&rows[e], &r); err != nil {
		return in, err
	}
	if in.Prefix&Lock != 0 && (in.Flags&Lockable == 0 || in.ModRM>>6 == 3) {
		return in, ErrUD
	}
	in.Len = uint8(r.pos)
	return in, nil
}

// branch is the child that a node of the tree has for the instruction read so far.
func (in *Inst) branch(node uint16, f Features) uint16 {
	switch node & 0xFF {
	case byMode:
		return uint16(in.Mode >> 3)
	case byPrefix: // F3 and F2 go before 66
		switch {
		case in.Prefix&RepE != 0:
			return 2
		case in.Prefix&RepNE != 0:
			return 3
		}
		return uint16(in.Prefix / OpSize & 1)
	case byMod:
		if in.ModRM>>6 == 3 {
			return 1
		}
		return 0
	case byReg:
		return uint16(in.ModRM >> 3 & 7)
	case byRM:
		return uint16(in.ModRM & 7)
	case byW:
		return uint16(in.Prefix / RexW & 1)
	case byB:
		return uint16(in.Prefix / RexB & 1)
	case byL:
		return uint16(in.Prefix / VexL & 1)
	}
	return uint16(f >> (node >> 8) & 1)
}

// prefixes reads all in front of the opcode and returns the opcode's first byte.
func (r *reader) prefixes(in *Inst) (uint8, bool) {
	var rex uint8
	seg := uint8(noSeg)
	in.AddrSize = uint8(in.Mode)
	for {
		b, ok := r.u8()
		if !ok {
			return 0, false
		}
		switch prefixKind[b] {
		case 0:
			if rex != 0 {
				in.Prefix |= Rex | Prefix(rex&15)*RexB
			}
			in.Seg = seg
			return b, true
		case isRex:
			if in.Mode != Mode64 {
				in.Seg = seg
				return b, true
			}
			rex = b // counts only right before the opcode
			continue
		case isSeg:
			// In 64-bit mode the other four are ignored, and do not undo FS or GS (SDM vol. 1 3.3.7.1).
			s := segOf(b)
			if in.Mode != Mode64 || s >= 4 {
				seg = s
				in.Prefix |= SegPfx
			}
		case isOpSize:
			in.Prefix |= OpSize
		case isAdSize:
			in.Prefix |= AdSize
			in.AddrSize = otherAddrSize[in.Mode&15]
		case isLock:
			in.Prefix |= Lock
		case isRepNE: // the last of the two counts
			in.Prefix = in.Prefix&^RepE | RepNE
		case isRepE:
			in.Prefix = in.Prefix&^RepNE | RepE
		}
		rex = 0
	}
}

const noSeg = 0xFF

// The kinds of prefixes.
const (
	isRex = iota + 1
	isSeg
	isOpSize
	isAdSize
	isLock
	isRepNE
	isRepE
)

var prefixKind = [256]uint8{
	0x26: isSeg, 0x2E: isSeg, 0x36: isSeg, 0x3E: isSeg, 0x64: isSeg, 0x65: isSeg,
	0x66: isOpSize, 0x67: isAdSize, 0xF0: isLock, 0xF2: isRepNE, 0xF3: isRepE,
	0x40: isRex, 0x41: isRex, 0x42: isRex, 0x43: isRex, 0x44: isRex, 0x45: isRex, 0x46: isRex, 0x47: isRex,
	0x48: isRex, 0x49: isRex, 0x4A: isRex, 0x4B: isRex, 0x4C: isRex, 0x4D: isRex, 0x4E: isRex, 0x4F: isRex,
}

var otherAddrSize = [16]uint8{Mode16: 4, Mode32: 2, Mode64: 4}

// segOf is the segment that an override prefix names.
func segOf(b uint8) uint8 {
	if b >= 0x64 {
		return b - 0x64 + 4
	}
	return b >> 3 & 3
}

// A reader takes an instruction's bytes one after the other.
type reader struct {
	code []byte
	pos  int
	vvvv uint8 // of VEX; 0 where there is none, or it is unused
}

// short is the error for bytes that are not there.
func (r *reader) short() error {
	if len(r.code) == MaxLen {
		return ErrTooLong
	}
	return ErrShort
}

func (r *reader) u8() (uint8, bool) {
	if r.pos >= len(r.code) {
		return 0, false
	}
	b := r.code[r.pos]
	r.pos++
	return b, true
}

// unsigned reads n bytes: 1, 2, 4 or 8.
func (r *reader) unsigned(n uint8) (uint64, bool) {
	if len(r.code)-r.pos < int(n) {
		return 0, false
	}
	p := r.code[r.pos:]
	r.pos += int(n)
	switch n {
	case 1:
		return uint64(p[0]), true
	case 2:
		return uint64(binary.LittleEndian.Uint16(p)), true
	case 4:
		return uint64(binary.LittleEndian.Uint32(p)), true
	}
	return binary.LittleEndian.Uint64(p), true
}

// signed reads n bytes and extends their sign.
func (r *reader) signed(n uint8) (int64, bool) {
	v, ok := r.unsigned(n)
	sh := 64 - 8*uint(n)
	return int64(v<<sh) >> sh, ok
}
