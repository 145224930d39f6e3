package fpu

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// x87 instructions run as they are, with the guest's registers, control word and masks in the host's x87 unit, between an FXRSTOR and an
// FXSAVE. The processor itself so does stack faults, tags, condition codes, the biased results of unmasked overflow and underflow, and what an
// unmasked exception leaves undone. ES then stays pending in the guest's FSW, as in the processor.

// x87Mem is the memory forms that exist and are arithmetic: a bit a ModRM.reg, by the low bits of the opcode.
var x87Mem = [8]uint8{
	0: 0b11111111, // FADD … FDIVR m32
	1: 0b00001101, // FLD, FST, FSTP m32
	2: 0b11111111, // FIADD … m32
	3: 0b10101111, // FILD, FISTTP, FIST, FISTP m32; FLD, FSTP m80
	4: 0b11111111, // FADD … m64
	5: 0b00001111, // FLD, FISTTP, FST, FSTP m64
	6: 0b11111111, // FIADD … m16
	7: 0b11111111, // FILD, FISTTP, FIST, FISTP m16; FBLD, FILD m64, FBSTP, FISTP m64
}

// x87Reg is the register forms, a bit a ModRM byte from C0; the undocumented aliases are in all processors.
var x87Reg = [8]uint64{
	0: 1<<64 - 1,
	1: 0xFFFF7F33_FF01FFFF, // FLD, FXCH, FNOP, FSTP1; FCHS, FABS, FTST, FXAM, constants; F2XM1 … FCOS
	2: 0x00000200_FFFFFFFF, // FCMOVcc; FUCOMPP
	3: 0x00FFFF00_FFFFFFFF, // FCMOVNcc; FUCOMI, FCOMI
	4: 1<<64 - 1,
	5: 0x0000FFFF_FFFFFFFF, // FFREE, FXCH4, FST, FSTP; FUCOM, FUCOMP
	6: 0xFFFFFFFF_02FFFFFF, // FADDP, FMULP, FCOMP5, FCOMPP; FSUBRP … FDIVP
	7: 0x00FFFF00_FFFFFFFF, // FFREEP, FXCH7, FSTP8, FSTP9; FUCOMIP, FCOMIP
}

func compileX87(in *decode.Inst) (Fn, error) {
	esc, memory := in.Opcode&7, in.ModRM < 0xC0
	var known bool
	var body []byte
	if memory {
		known = x87Mem[esc]>>(in.ModRM>>3&7)&1 == 1
		body = []byte{in.Opcode, in.ModRM&0x38 | 6} // [RSI]
	} else {
		known = x87Reg[esc]>>(in.ModRM-0xC0)&1 == 1
		body = []byte{in.Opcode, in.ModRM}
	}
	if !known {
		return nil, fmt.Errorf("%w: %02x %02x", ErrUnknown, in.Opcode, in.ModRM)
	}
	reads, writes := false, false // RFLAGS
	switch {
	case memory:
	case (esc == 2 || esc == 3) && in.ModRM < 0xE0: // FCMOVcc
		reads = true
	case (esc == 3 || esc == 7) && in.ModRM >= 0xE8: // FCOMI and kin
		reads, writes = true, true      // a processor may leave the flags alone on an unmasked exception
		body = append(body, 0x9C, 0x58) // PUSHFQ; POP RAX
	}
	if reads {
		body = append([]byte{0x52, 0x9D}, body...) // PUSH RDX; POPFQ
	}
	a, err := stub(body)
	if err != nil {
		return nil, err
	}
	opcode := uint16(esc)<<8 | uint16(in.ModRM)
	stores := in.Flags&decode.MemWrite != 0
	return func(s *x86.FPU, e *Env) x86.Vector {
		r := regs{dst: ref(&e.Mem)}
		if reads {
			r.dx = e.RFLAGS&x86.Status | x86.Fixed
		}
		m := e.img.area()
		enter87(s, m)
		invokeX87(a, &r, &m[0])
		leave87(s, m)
		s.FIP = e.RIP
		pending := s.FSW & ^s.FCW & flagsX87
		if pending != 0 {
			s.FOP = opcode & 0x7FF
			if memory {
				s.FDP = e.MemAddr
			}
		}
		if stores {
			e.NoStore = pending&^fswPE != 0
		}
		if writes {
			setStatus(e, r.ax&x86.Status)
		}
		return x86.NoVector
	}, nil
}

// enter87 writes the x87 state into m, where registers are in the order of the stack.
func enter87(s *x86.FPU, m *[512]byte) {
	le.PutUint16(m[0:], s.FCW)
	le.PutUint16(m[2:], s.FSW&^(fswES|fswB)) // nothing is pending: Compile's Fn asked
	m[4] = s.FTW
	le.PutUint32(m[24:], mxcsrInit)
	t := top(s)
	for i := range 8 {
		r := &s.R[(t+i)&7]
		le.PutUint64(m[32+16*i:], r.Mant)
		le.PutUint16(m[40+16*i:], r.SE)
	}
}

func leave87(s *x86.FPU, m *[512]byte) {
	s.FSW, s.FTW = le.Uint16(m[2:]), m[4]
	t := top(s)
	for i := range 8 {
		s.R[(t+i)&7] = x86.F80{Mant: le.Uint64(m[32+16*i:]), SE: le.Uint16(m[40+16*i:])}
	}
}

// setStatus replaces all status flags.
func setStatus(e *Env, f uint64) { e.RFLAGS = e.RFLAGS&^x86.Status | f }
