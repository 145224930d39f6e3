package fpu

import (
	"encoding/binary"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Bits of FSW and FCW (SDM vol. 1 8.1.3, 8.1.5).
const (
	flagsX87 = 0x003F // IE, DE, ZE, OE, UE, PE: flags in FSW, masks in FCW
	fswPE    = 0x0020
	fswES    = 0x0080
	fswTop   = 0x3800
	fswB     = 0x8000
	fcwInit  = 0x037F
	fcwValid = 0x1F3F // bit 6 reads as one, 7 and 13-15 as zero
	fcwFixed = 0x0040
)

const mxcsrInit = 0x1F80

// MXCSRMask is the bits of MXCSR that the guest may set; FXSAVE stores it (SDM vol. 1 11.6.6).
const MXCSRMask = 0xFFFF

var le = binary.LittleEndian

// Reset puts s in the state after FNINIT and RESET (SDM vol. 3A table 9-1): x87 initialised, MXCSR 1F80H, all registers zero.
func Reset(s *x86.FPU) { *s = x86.FPU{FCW: fcwInit, MXCSR: mxcsrInit} }

func top(s *x86.FPU) int { return int(s.FSW>>11) & 7 }

// setFCW loads the control word, and lets flags that it unmasks become pending.
func setFCW(s *x86.FPU, w uint16) {
	s.FCW = w&fcwValid | fcwFixed
	setFSW(s, s.FSW)
}

// setFSW loads the status word; ES and B follow from the flags and the masks.
func setFSW(s *x86.FPU, w uint16) {
	w &^= fswES | fswB
	if w&^s.FCW&flagsX87 != 0 {
		w |= fswES | fswB
	}
	s.FSW = w
}

func fninit(s *x86.FPU) {
	s.FCW, s.FSW, s.FTW = fcwInit, 0, 0
	s.FIP, s.FDP, s.FOP, s.FCS, s.FDS = 0, 0, 0, 0, 0
}

// control returns what executes the control instructions: the plain state changes, which no arithmetic unit is needed for.
func control(in *decode.Inst) Fn {
	size := envSize(in)
	switch in.Op {
	case decode.FWAIT, decode.FNENI, decode.FNDISI, decode.FNSETPM:
		return func(*x86.FPU, *Env) x86.Vector { return x86.NoVector }
	case decode.FNINIT:
		return func(s *x86.FPU, _ *Env) x86.Vector { fninit(s); return x86.NoVector }
	case decode.FNCLEX:
		return func(s *x86.FPU, _ *Env) x86.Vector { s.FSW &= 0x7F00; return x86.NoVector }
	case decode.FLDCW:
		return func(s *x86.FPU, e *Env) x86.Vector { setFCW(s, le.Uint16(e.Mem[:])); return x86.NoVector }
	case decode.FNSTCW:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			le.PutUint16(e.Mem[:], s.FCW)
			return x86.NoVector
		}
	case decode.FNSTSW:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			e.GPR = uint64(s.FSW)
			le.PutUint16(e.Mem[:], s.FSW)
			return x86.NoVector
		}
	case decode.FLDENV:
		return func(s *x86.FPU, e *Env) x86.Vector { loadEnv(s, e, size); return x86.NoVector }
	case decode.FNSTENV:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			storeEnv(s, e, size)
			setFCW(s, s.FCW|flagsX87)
			return x86.NoVector
		}
	case decode.FRSTOR:
		return func(s *x86.FPU, e *Env) x86.Vector {
			loadEnv(s, e, size)
			for i := range 8 {
				p := e.Mem[size+10*i:]
				s.R[(top(s)+i)&7] = x86.F80{Mant: le.Uint64(p), SE: le.Uint16(p[8:])}
			}
			return x86.NoVector
		}
	case decode.FNSAVE:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			storeEnv(s, e, size)
			for i := range 8 {
				r, p := s.R[(top(s)+i)&7], e.Mem[size+10*i:]
				le.PutUint64(p, r.Mant)
				le.PutUint16(p[8:], r.SE)
			}
			fninit(s)
			return x86.NoVector
		}
	case decode.EMMS:
		return func(s *x86.FPU, _ *Env) x86.Vector {
			s.FSW &^= fswTop
			s.FTW = 0
			return x86.NoVector
		}
	case decode.LDMXCSR, decode.VLDMXCSR:
		return func(s *x86.FPU, e *Env) x86.Vector {
			v := le.Uint32(e.Mem[:])
			if v&^MXCSRMask != 0 {
				return x86.GP
			}
			s.MXCSR = v
			return x86.NoVector
		}
	case decode.STMXCSR, decode.VSTMXCSR:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			le.PutUint32(e.Mem[:], s.MXCSR)
			return x86.NoVector
		}
	}
	return nil
}

// envSize is the length of FNSTENV's environment: 14 bytes for 16-bit operands, else 28.
func envSize(in *decode.Inst) int {
	if in.Size == 2 {
		return 14
	}
	return 28
}

// storeEnv writes the environment in one of its four layouts (SDM vol. 1 figures 8-9 to 8-12).
func storeEnv(s *x86.FPU, e *Env, size int) {
	ip, dp := uint32(s.FIP), uint32(s.FDP)
	if size == 14 {
		w := [7]uint16{s.FCW, s.FSW, FullTag(s), uint16(ip), s.FCS, uint16(dp), s.FDS}
		if e.Real {
			w[4] = uint16(ip>>16)<<12 | s.FOP&0x7FF
			w[6] = uint16(dp>>16) << 12
		}
		for i, v := range w {
			le.PutUint16(e.Mem[2*i:], v)
		}
		return
	}
	const high = 0xFFFF0000 // reserved halves are stored as ones
	w := [7]uint32{high | uint32(s.FCW), high | uint32(s.FSW), high | uint32(FullTag(s)),
		ip, uint32(s.FOP&0x7FF)<<16 | uint32(s.FCS), dp, high | uint32(s.FDS)}
	if e.Real {
		w[3] = high | ip&0xFFFF
		w[4] = ip>>16<<12 | uint32(s.FOP&0x7FF)
		w[5] = high | dp&0xFFFF
		w[6] = dp >> 16 << 12
	}
	for i, v := range w {
		le.PutUint32(e.Mem[4*i:], v)
	}
}

// loadEnv reads what storeEnv writes. The selectors are read as zero, as on processors that no longer keep them.
func loadEnv(s *x86.FPU, e *Env, size int) {
	var fsw, tag, op uint16
	if size == 14 {
		w := func(i int) uint16 { return le.Uint16(e.Mem[2*i:]) }
		s.FCW, fsw, tag = w(0), w(1), w(2)
		s.FIP, s.FDP = uint64(w(3)), uint64(w(5))
		if e.Real {
			s.FIP |= uint64(w(4)>>12) << 16
			s.FDP |= uint64(w(6)>>12) << 16
			op = w(4)
		}
	} else {
		w := func(i int) uint32 { return le.Uint32(e.Mem[4*i:]) }
		s.FCW, fsw, tag = uint16(w(0)), uint16(w(1)), uint16(w(2))
		s.FIP, s.FDP, op = uint64(w(3)), uint64(w(5)), uint16(w(4)>>16)
		if e.Real {
			s.FIP = uint64(w(3)&0xFFFF | w(4)>>12<<16)
			s.FDP = uint64(w(5)&0xFFFF | w(6)>>12<<16)
			op = uint16(w(4))
		}
	}
	s.FOP, s.FCS, s.FDS = op&0x7FF, 0, 0
	s.FCW = s.FCW&fcwValid | fcwFixed
	setFSW(s, fsw)
	s.FTW = AbridgedTag(tag)
}

// FullTag is the tag word as FNSTENV stores it: two bits a physical register (SDM vol. 1 8.1.7).
func FullTag(s *x86.FPU) uint16 {
	const valid, zero, special, empty = 0, 1, 2, 3
	var w uint16
	for i, r := range s.R {
		t := uint16(special)
		switch exp := r.SE & 0x7FFF; {
		case s.FTW>>i&1 == 0:
			t = empty
		case exp == 0 && r.Mant == 0:
			t = zero
		case exp != 0 && exp != 0x7FFF && r.Mant>>63 == 1:
			t = valid
		}
		w |= t << (2 * i)
	}
	return w
}

// AbridgedTag is FXSAVE's form of a full tag word: a register is empty or not (SDM vol. 1 10.5.1.1).
func AbridgedTag(full uint16) uint8 {
	var t uint8
	for i := range 8 {
		if full>>(2*i)&3 != 3 {
			t |= 1 << i
		}
	}
	return t
}
