package fpu

import (
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/model"
)

// An oracle is the processor itself: it loads a whole FXSAVE image and, where there are such, the YMM registers, executes the guest's own bytes with their own
// registers, and stores both. It shares nothing with Compile but the code page and the trampoline.
type oracle struct {
	img [1024 + 15]byte
	mem [MemSize + 64]byte
	aux struct { // R8
		mxcsr uint32 // what Go code runs under
		_     uint32
		out   uint64  // RFLAGS after
		in    uint64  // RFLAGS before
		load  uintptr // stubs that move all YMM registers
		store uintptr
	}
}

// area is the FXSAVE image.
func (o *oracle) area() *[512]byte { return (*[512]byte)(o.base()) }

func (o *oracle) base() unsafe.Pointer {
	off := -uintptr(unsafe.Pointer(&o.img)) & 15
	return unsafe.Pointer(&o.img[off])
}

// ymm is the vector registers, behind the image.
func (o *oracle) ymm() *[16]x86.YMM { return (*[16]x86.YMM)(unsafe.Add(o.base(), 512)) }

// load makes s what run begins with.
func (o *oracle) load(s *x86.FPU) {
	put(o.area(), s)
	*o.ymm() = s.Vec
}

// moveAll appends VMOVUPS between all YMM registers and [RDI+512], where the host has them.
func moveAll(c []byte, store bool) []byte {
	if !model.Host().Has("avx") {
		return c
	}
	for i := range uint8(16) {
		op := uint8(0x10)
		if store {
			op = 0x11
		}
		c = append(c, 0xC5, 0xFC&^(i>>3<<7), op, 0x80|i&7<<3|7)
		c = le.AppendUint32(c, 512+32*uint32(i))
	}
	if store {
		c = append(c, 0xC5, 0xF8, 0x77)
	}
	return c
}

func (o *oracle) operand() *[MemSize]byte {
	off := -uintptr(unsafe.Pointer(&o.mem)) & 63
	return (*[MemSize]byte)(unsafe.Pointer(&o.mem[off]))
}

// run executes b, whose memory operand is [RSI] and whose general register is RAX.
func (o *oracle) run(t testing.TB, b []byte, r *regs, rflags uint64) uint64 {
	c := []byte{0x48, 0x0F, 0xAE, 0x0F}   // FXRSTOR64 [RDI]
	c = append(c, 0x41, 0xFF, 0x50, 24)   // CALL [R8+24]
	c = append(c, 0x41, 0xFF, 0x70, 16)   // PUSH [R8+16]
	c = append(c, 0x9D)                   // POPFQ
	c = append(c, b...)                   //
	c = append(c, 0x9C)                   // PUSHFQ
	c = append(c, 0x41, 0x8F, 0x40, 8)    // POP [R8+8]
	c = append(c, 0x48, 0x0F, 0xAE, 0x07) // FXSAVE64 [RDI]
	c = append(c, 0x41, 0xFF, 0x50, 32)   // CALL [R8+32]
	c = append(c, 0x41, 0x0F, 0xAE, 0x10) // LDMXCSR [R8]
	c = append(c, 0xDB, 0xE3)             // FNINIT
	var errs [2]error
	o.aux.load, errs[0] = stub(moveAll(nil, false))
	o.aux.store, errs[1] = stub(moveAll(nil, true))
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	a, err := stub(c)
	if err != nil {
		t.Fatal(err)
	}
	o.aux.mxcsr = mxcsrInit
	o.aux.in = rflags&x86.Status | x86.Fixed
	r.dst, r.src, r.x0 = unsafe.Pointer(o.operand()), o.base(), unsafe.Pointer(&o.aux)
	invoke(a, r)
	return o.aux.out & x86.Status
}

// specials are the corners of the formats, as 80-bit values' parts; the low halves serve as doubles and singles.
var specials = []uint64{
	0, 1, 0x8000000000000000, 0x8000000000000001, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF0000000000001,
	0xFFF8000000000000, 0x7FEFFFFFFFFFFFFF, 0x0010000000000000, 0x000FFFFFFFFFFFFF, 0x800FFFFFFFFFFFFF, 0x3FF0000000000000, 0xBFF0000000000000,
	0x3FE0000000000000, 0x4000000000000000, 0x41DFFFFFFFC00000, 0x41E0000000000000, 0x43E0000000000000, 0x47EFFFFFE0000000, 0x36A0000000000000,
	0x380FFFFFC0000000, 0xFFFFFFFFFFFFFFFF, 0xC000000000000000, 0x7FFFFFFFFFFFFFFF,
	0x7F8000007F800001, 0xFF8000007FC00000, 0x0080000000000001, 0x007FFFFF807FFFFF, 0x7F7FFFFF3F800000, 0x4F0000003F000000, 0x4EFFFFFFBF800000,
	0x0000000100000000, 0x8000000080000000, 0x7FFFFFFF80000001,
}

func word(r *rand.Rand) uint64 {
	switch r.IntN(4) {
	case 0:
		return r.Uint64()
	case 1: // a double of ordinary size
		return r.Uint64()&^(0x7FF<<52) | uint64(1000+r.IntN(50))<<52
	case 2: // two singles
		f := func() uint64 { return uint64(r.Uint32()&^(0xFF<<23) | uint32(117+r.IntN(25))<<23) }
		return f() | f()<<32
	}
	return specials[r.IntN(len(specials))]
}

func ext(r *rand.Rand) x86.F80 {
	exps := []uint16{0, 1, 0x3FFE, 0x3FFF, 0x4000, 0x403E, 0x403F, 0x7FFE, 0x7FFF, 0x3FBF, 0x4041, 0x3C00, 0x43FE, 0x3F80, 0x407E}
	v := x86.F80{Mant: word(r), SE: exps[r.IntN(len(exps))] | uint16(r.IntN(2))<<15}
	switch r.IntN(8) {
	case 0: // all encodings, unnormals and pseudo-denormals too
	case 1:
		v.SE = uint16(r.Uint32())
	case 2, 3, 4:
		v.SE, v.Mant = 0x3FE0+uint16(r.IntN(64))|v.SE&0x8000, v.Mant|1<<63
	default:
		if v.SE&0x7FFF != 0 {
			v.Mant |= 1 << 63
		}
	}
	return v
}

// state fills s with values in which x87 exceptions may be unmasked, but none pends, and SIMD exceptions are masked.
func state(r *rand.Rand, s *x86.FPU) {
	*s = x86.FPU{FCW: fcwInit, MXCSR: mxcsrInit}
	s.FCW = uint16(r.Uint32())&0x0F00 | fcwFixed | flagsX87
	if r.IntN(2) == 0 {
		s.FCW &^= uint16(r.Uint32()) & flagsX87
	}
	s.FSW = uint16(r.Uint32()) & 0x7F7F
	s.FSW &^= ^s.FCW & flagsX87
	s.FTW = 0xFF
	if r.IntN(3) == 0 {
		s.FTW = uint8(r.Uint32())
	}
	for i := range s.R {
		s.R[i] = ext(r)
	}
	s.MXCSR = mxcsrMasks | r.Uint32()&0xE07F
	if r.IntN(2) == 0 {
		s.MXCSR = mxcsrInit
	}
	for i := range s.Vec {
		for j := range s.Vec[i] {
			s.Vec[i][j] = word(r)
		}
	}
}

// put writes s as FXSAVE64 does, by what this package's own FXSAVE is not part of.
func put(p *[512]byte, s *x86.FPU) {
	clear(p[:])
	le.PutUint16(p[0:], s.FCW)
	le.PutUint16(p[2:], s.FSW)
	p[4] = s.FTW
	le.PutUint32(p[24:], s.MXCSR)
	for i := range 8 {
		le.PutUint64(p[32+16*i:], s.R[(int(s.FSW>>11)+i)&7].Mant)
		le.PutUint16(p[40+16*i:], s.R[(int(s.FSW>>11)+i)&7].SE)
	}
	for i := range s.Vec {
		le.PutUint64(p[160+16*i:], s.Vec[i][0])
		le.PutUint64(p[168+16*i:], s.Vec[i][1])
	}
}

// forms calls f with every encoding of this package's instructions: register and memory, with and without REX.W.
func forms(t *testing.T, f func(code []byte, in *decode.Inst)) {
	try := func(b ...byte) {
		in, err := decode.Decode(append(b, make([]byte, 15)...), decode.Mode64, ^decode.Features(0))
		if err != nil || in.Flags&decode.Vec == 0 || Masked(&in) {
			return
		}
		if in.Prefix&decode.Vex != 0 {
			if _, err := decode.Decode(append(b, make([]byte, 15)...), decode.Mode64, host); err != nil {
				return // the host has it not
			}
		}
		f(append(b, 0)[:in.Len:in.Len], &in)
	}
	for esc := byte(0xD8); esc <= 0xDF; esc++ {
		for reg := range byte(8) {
			try(esc, reg<<3|6)
			try(0x66, esc, reg<<3|6)
		}
		for m := 0xC0; m <= 0xFF; m++ {
			try(esc, byte(m))
		}
	}
	for _, pfx := range [][]byte{nil, {0x66}, {0xF3}, {0xF2}} {
		for _, rex := range []byte{0, 0x48, 0x45} {
			for _, esc := range [][]byte{{0x0F}, {0x0F, 0x38}, {0x0F, 0x3A}} {
				for op := range 256 {
					for _, m := range []byte{0xC2, 0xDC, 0xC9, 0xD1, 0xE1, 0xF1, 0xFA, 0x06, 0x1E} {
						b := append([]byte(nil), pfx...)
						if rex != 0 {
							b = append(b, rex)
						}
						b = append(append(b, esc...), byte(op), m)
						try(b...)
					}
				}
			}
		}
	}
	for i := range 3 * 4 * 4 * 256 { // VEX: map, W and L, pp, opcode
		for _, v := range []byte{15, 1, 10} {
			for _, m := range []byte{0xC2, 0xD8, 0xC9, 0xD1, 0xE1, 0xF1, 0xFA, 0x1E} {
				rxb := []byte{0xE0, 0x40}[m>>4&1] // 0x40: R and B
				if m < 0xC0 {
					rxb |= 0x20
				}
				try(0xC4, rxb|byte(i>>12+1), byte(i>>11&1)<<7|(v^15)<<3|byte(i>>10&1)<<2|byte(i>>8&3), byte(i), m)
			}
		}
	}
}

// elsewhere is the instructions that have tests of their own: random operands would fault, or unmask SIMD exceptions.
var elsewhere = map[decode.Op]bool{
	decode.FXSAVE: true, decode.FXRSTOR: true, decode.XSAVE: true, decode.XRSTOR: true, decode.XSAVEC: true, decode.XSAVEOPT: true,
	decode.XSAVES: true, decode.XRSTORS: true, decode.MASKMOVQ: true, decode.MASKMOVDQU: true, decode.LDMXCSR: true,
	decode.VMASKMOVDQU: true, decode.VLDMXCSR: true,
}

// hasImmediate tells whether in ends with an immediate byte that says what it does.
func hasImmediate(in *decode.Inst) bool {
	return in.Map != 0 && in.Args[in.NArgs-min(in.NArgs, 1)].Kind == decode.Imm
}

// oracleCan says whether the oracle can run an instruction: general registers only RAX, memory only [RSI], no unmasked exception.
func oracleCan(in *decode.Inst) bool {
	if elsewhere[in.Op] {
		return false
	}
	for _, a := range in.Args[:in.NArgs] {
		if a.Kind == decode.GPR && a.Reg != 0 {
			return false
		}
		if a.Kind == decode.Mem && (in.Mem.Base != x86.RSI || in.Mem.Index != decode.NoReg) {
			return false
		}
	}
	return true
}

// TestEveryInstructionAsTheProcessor is the proof of this package: whatever an instruction does to the whole register file, to memory, to its general
// register and to the flags, it does as the host's processor does.
func TestEveryInstructionAsTheProcessor(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var o oracle
	e := new(Env)
	var s, before x86.FPU
	seen, known := map[decode.Op]bool{}, map[decode.Op]bool{}
	failed := map[decode.Op]int{}
	forms(t, func(code []byte, in *decode.Inst) {
		if known[in.Op] = true; !oracleCan(in) {
			return
		}
		if w := rows[[3]uint8{in.Map, in.Pfx, in.Opcode}]; w != nil && w.need&^host != 0 {
			t.Logf("host lacks %v", in.Op)
			return
		}
		for i := range 36 {
			c := append([]byte(nil), code...)
			if hasImmediate(in) && i%12 == 0 {
				c[len(c)-1] = byte(r.Uint32())
				code = c
				*in, _ = decode.Decode(c, decode.Mode64, ^decode.Features(0))
			}
			fn, err := Compile(in)
			if err != nil {
				t.Errorf("%v (% x): %v", in.Op, c, err)
				return
			}
			state(r, &s)
			before = s
			o.load(&s)
			for j := 0; j < 64; j += 8 {
				le.PutUint64(e.Mem[j:], word(r))
			}
			if r.IntN(2) == 0 {
				v := ext(r)
				le.PutUint64(e.Mem[0:], v.Mant)
				le.PutUint16(e.Mem[8:], v.SE)
			}
			copy(o.operand()[:], e.Mem[:])
			mem := e.Mem
			e.GPR, e.RFLAGS = word(r), r.Uint64()&x86.Status|x86.Fixed
			flagsIn := e.RFLAGS
			e.RAX, e.RCX, e.RDX = uint64(r.IntN(40))-20, 77, uint64(r.IntN(40))-20
			or := regs{ax: e.GPR, cx: e.RCX, dx: e.RDX}
			estr := in.Op == decode.PCMPESTRI || in.Op == decode.PCMPESTRM || in.Op == decode.VPCMPESTRI || in.Op == decode.VPCMPESTRM
			if estr {
				or.ax = e.RAX
			}
			v := fn(&s, e)
			flagsOut := o.run(t, c, &or, flagsIn)
			bad := func(format string, a ...any) {
				if failed[in.Op]++; failed[in.Op] <= 2 {
					t.Errorf("%v (% x) FCW %04x FSW %04x FTW %02x MXCSR %04x: "+format,
						append([]any{in.Op, c, before.FCW, before.FSW, before.FTW, before.MXCSR}, a...)...)
				}
			}
			if v != x86.NoVector {
				bad("raised %d", v)
				continue
			}
			var got [512]byte
			put(&got, &s)
			want := *o.area()
			clear(want[6:24])
			clear(want[28:32])
			clear(want[416:])
			if got != want {
				for k := range got {
					if got[k] != want[k] {
						bad("byte %d of the image: % x, the processor's % x", k, got[k&^15:k&^15+16], want[k&^15:k&^15+16])
						break
					}
				}
			}
			if want := *o.ymm(); s.Vec != want && model.Host().Has("avx") {
				for k := range want {
					if s.Vec[k] != want[k] {
						bad("YMM%d %x, the processor's %x", k, s.Vec[k], want[k])
					}
				}
			}
			if got, want := e.RFLAGS&x86.Status, flagsOut; got != want {
				bad("flags %#x, the processor's %#x (before %#x)", got, want, flagsIn)
			}
			if e.RCX != or.cx {
				bad("RCX %#x, the processor's %#x", e.RCX, or.cx)
			}
			if a := in.Args[0]; a.Kind == decode.GPR {
				mask := uint64(1)<<(8*min(a.Size, 8)-1)<<1 - 1
				if a.Size == 4 || in.Op != decode.FNSTSW {
					mask = 1<<64 - 1
				}
				if e.GPR&mask != or.ax&mask {
					bad("general register %#x, the processor's %#x", e.GPR&mask, or.ax&mask)
				}
			}
			if in.Flags&decode.MemWrite != 0 {
				n := OperandSize(in, e)
				for _, a := range in.Args[:in.NArgs] {
					if a.Kind == decode.Mem && a.Size != 0 {
						n = int(a.Size)
					}
				}
				got, want := e.Mem, *o.operand()
				if e.NoStore {
					got = mem
				}
				if in.Op == decode.FNSTENV || in.Op == decode.FNSAVE { // but for the pointers
					clear(got[envSize(in)*3/7 : envSize(in)])
					clear(want[envSize(in)*3/7 : envSize(in)])
				}
				if string(got[:n]) != string(want[:n]) {
					bad("memory % x, the processor's % x", got[:n], want[:n])
				}
			}
		}
		seen[in.Op] = true
	})
	t.Logf("%d operations", len(seen))
	for op := range known {
		if !seen[op] && !elsewhere[op] {
			t.Errorf("%v was not tested", op)
		}
	}
}
