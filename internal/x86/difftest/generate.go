package difftest

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/model"
)

// features is what is generated: all that interp offers. Bytes that mean something else to a decoder that knows more are left out.
var features = model.Engine().Decode()

// A form is an instruction to make variants of: prefix, opcode, and what of its ModRM byte is fixed.
type form struct {
	pfx    uint8 // 0, 66, F3, F2
	opmap  uint8
	opcode uint8
	vex    bool
	l, w   bool
	mem    bool  // a memory operand
	modrm  int16 // bits that are fixed, or -1 for no ModRM byte
	mask   uint8 // which bits those are
	in     decode.Inst
}

// forms are all user-mode instructions, by size of code and class.
var forms = map[decode.Mode][][]form{decode.Mode64: enumerate(decode.Mode64), decode.Mode32: enumerate(decode.Mode32)}

// classes weigh what is generated: of what makes a program's sense, integer instructions most.
var classes = []struct {
	weight int
	has    func(*decode.Inst) bool
}{
	{45, func(in *decode.Inst) bool { return in.Flags&decode.Vec == 0 }},
	{10, func(in *decode.Inst) bool { return in.Flags&decode.X87 != 0 }},
	{5, func(in *decode.Inst) bool { return in.Flags&decode.MMXUnit != 0 }},
	{20, func(in *decode.Inst) bool {
		return in.Flags&(decode.X87|decode.MMXUnit|decode.AVX) == 0 && in.Flags&decode.Vec != 0
	}},
	{20, func(in *decode.Inst) bool { return in.Flags&decode.AVX != 0 }},
}

// enumerate asks the decoder for every opcode with every prefix and ModRM byte, and keeps one of each kind.
func enumerate(mode decode.Mode) [][]form {
	type kind struct {
		op     decode.Op
		opmap  uint8
		opcode uint8
		pfx    uint8
		w, mem bool
		vex, l bool
		reg    uint8
		flags  decode.Flags
		args   [4]decode.Kind
		sti    uint8
	}
	out := make([][]form, len(classes))
	seen := map[kind]bool{}
	for i := range 3 * 4 * 256 * 4 * 2 * 256 {
		f := form{modrm: int16(i & 0xFF), w: i>>8&1 != 0, pfx: [4]uint8{0, 0x66, 0xF3, 0xF2}[i>>9&3], opcode: uint8(i >> 11), opmap: uint8(i >> 19 & 3),
			vex: i>>21 != 0, l: i>>22 != 0}
		if f.w && mode != decode.Mode64 && !f.vex || f.vex && f.opmap == 0 {
			continue
		}
		if f.modrm&0xC0 != 0xC0 && f.modrm&0xC7 != 0x04 { // of memory forms, one with a SIB byte
			continue
		}
		code := f.bytes(uint8(f.modrm), 0x25, 0, 0)
		in, err := decode.Decode(append(code, make([]byte, 12)...), mode, features)
		if err != nil || !wanted(&in) || in.Opcode != f.opcode || in.Map != f.opmap {
			continue
		}
		f.in, f.mem = in, f.modrm < 0xC0 && in.Flags&decode.HasModRM != 0
		k := kind{op: in.Op, opmap: f.opmap, opcode: f.opcode, pfx: f.pfx, w: f.w, mem: f.mem, vex: f.vex, l: f.l, flags: in.Flags}
		group := f.group(mode, &in)
		switch {
		case in.Flags&decode.HasModRM == 0:
			f.modrm = -1
		case in.Flags&decode.X87 != 0 && !f.mem:
			f.mask, k.reg, k.sti = 0xFF, uint8(f.modrm>>3&7), uint8(f.modrm&7)
		case group:
			f.mask, k.reg = 0x38, uint8(f.modrm>>3&7)
			if in.NArgs == 0 {
				f.mask = 0x3F
			}
		}
		for j, a := range in.Args {
			k.args[j] = a.Kind
			if a.Kind == decode.High {
				k.args[j] = decode.GPR
			}
		}
		if seen[k] {
			continue
		}
		if !f.vex && (f.pfx == 0xF2 || f.pfx == 0xF3) { // of no meaning to most
			plain := f
			plain.pfx = 0
			other, err := decode.Decode(append(plain.bytes(uint8(f.modrm), 0x25, 0, 0), make([]byte, 12)...), mode, features)
			if err == nil && other.Op == in.Op && other.Args == in.Args {
				continue
			}
		}
		seen[k] = true
		for j, c := range classes {
			if c.has(&in) {
				out[j] = append(out[j], f)
			}
		}
	}
	return out
}

// group tells whether the reg field of in is a part of the opcode: another decodes to something else, or no operand comes from it.
func (f *form) group(mode decode.Mode, in *decode.Inst) bool {
	if in.Flags&decode.VSIB != 0 { // a register that it uses twice is an error, no other opcode
		return false
	}
	for reg := range uint8(8) {
		code := f.bytes(uint8(f.modrm)&0xC7|reg<<3, 0x25, 0, 0)
		other, err := decode.Decode(append(code, make([]byte, 12)...), mode, features)
		if err != nil || other.Op != in.Op || other.NArgs != in.NArgs {
			return true
		}
	}
	return false
}

// bytes are the instruction without displacement and immediate; of rex, with VEX too, R, X and B count.
func (f *form) bytes(modrm, sib, rex, vvvv uint8) []byte {
	var b []byte
	if f.vex {
		b = f.prefix(rex, vvvv)
		b = append(b, f.opcode, modrm)
		if modrm < 0xC0 && modrm&7 == 4 {
			b = append(b, sib)
		}
		return b
	}
	if f.pfx != 0 {
		b = append(b, f.pfx)
	}
	if f.w {
		b = append(b, 0x48)
	}
	b = append(b, [4][]byte{nil, {0x0F}, {0x0F, 0x38}, {0x0F, 0x3A}}[f.opmap]...)
	b = append(b, f.opcode, modrm)
	if modrm < 0xC0 && modrm&7 == 4 {
		b = append(b, sib)
	}
	return b
}

// prefix is VEX with these bits, in two bytes where that can be.
func (f *form) prefix(rex, vvvv uint8) []byte {
	last := (vvvv^15)<<3 | [...]uint8{0: 0, 0x66: 1, 0xF3: 2, 0xF2: 3}[f.pfx]
	if f.l {
		last |= 4
	}
	if f.opmap == 1 && !f.w && rex&3 == 0 {
		return []byte{0xC5, (rex>>2&1^1)<<7 | last}
	}
	if f.w {
		last |= 0x80
	}
	return []byte{0xC4, (rex&4>>2|rex&2|rex&1<<2)<<5 ^ 0xE0 | f.opmap, last}
}

// unwanted operations ask the machine, the kernel or the clock something, or have results that depend on more than a case has.
var unwanted = []decode.Op{
	decode.SYSCALL, decode.SYSENTER, decode.CPUID, decode.RDTSC, decode.RDTSCP, decode.RDPMC, decode.RDRAND, decode.RDSEED, decode.RDPID, decode.XGETBV,
	decode.SGDT, decode.SIDT, decode.SLDT, decode.STR, decode.SMSW, decode.LAR, decode.LSL, decode.VERR, decode.VERW,
	decode.LSS, decode.LFS, decode.LGS, decode.LDS, decode.LES, decode.IRET, decode.RETF, decode.CALLF, decode.JMPF,
	decode.XSAVE, decode.XRSTOR, decode.XSAVEC, decode.XSAVEOPT, decode.FXSAVE, decode.FNSTENV, decode.FNSAVE,
	decode.INT, decode.INT1, decode.VMCALL, decode.VMMCALL, decode.UD0, decode.UD1,
}

// wanted tells whether in is user code that both worlds must agree on.
func wanted(in *decode.Inst) bool {
	if slices.Contains(unwanted, in.Op) || in.Op == decode.FNSETPM {
		return false
	}
	for i, a := range in.Args[:in.NArgs] {
		if a.Kind == decode.SReg && (i == 0 && in.Op != decode.PUSH) {
			return false // a load of a segment register asks for the machine's descriptors
		}
	}
	return true
}

// A generator makes cases.
type generator struct {
	rng  *rand.Rand
	mode decode.Mode
	code []byte
	ends []int // offsets of instructions' ends, and so of the next
	base uint64

	tame   bool     // operands are sensible ones, if before is executed first
	before [][]byte // instructions that the last variant wants in front of it
}

// Generate makes a case of at most n instructions.
func Generate(rng *rand.Rand, n int) *Case {
	c := &Case{Bits: 64}
	if rng.IntN(5) == 0 {
		c.Bits = 32
	}
	c.randomState(rng)
	c.Regs[regRIP] = codeVA + uint64(rng.IntN(pageSize-20*n-64))
	g := generator{rng: rng, mode: c.mode(), base: c.Regs[regRIP]}
	var undefined uint64
	type branch struct{ at, size, insn int }
	var branches []branch
	for len(g.ends) < n {
		in, b := g.instruction()
		if undefined != 0 && readsFlags(&in, undefined) {
			g.emit([]byte{0x38, 0xC0}) // CMP AL, AL defines all
			undefined = 0
			continue
		}
		if in.Op == decode.POPF {
			b = append(slices.Clone(tamePOPF), b...)
		}
		undefined = flagsAfter(&in, undefined)
		if in.NArgs > 0 && in.Args[0].Kind == decode.Rel {
			size := 1
			if in.Opcode&0xF0 == 0x80 || in.Opcode == 0xE8 || in.Opcode == 0xE9 {
				size = 4
			}
			branches = append(branches, branch{len(g.code) + len(b) - size, size, len(g.ends)})
		}
		g.emit(b)
	}
	g.code = append(g.code, 0xCC)
	for _, br := range branches {
		next := g.ends[br.insn]
		to := g.ends[br.insn+rng.IntN(len(g.ends)-br.insn)] - next
		if br.size == 1 {
			if to > 127 {
				to = 0
			}
			g.code[br.at] = uint8(to)
		} else {
			binary.LittleEndian.PutUint32(g.code[br.at:], uint32(to))
		}
	}
	c.Code = g.code
	return c
}

// tamePOPF is AND DWORD PTR [rSP], which takes away TF, AC, NT and ID: ptrace can clear the last two in no other way, and stepping and
// alignment checks are tests of their own.
var tamePOPF = []byte{0x81, 0x24, 0x24, 0xFF, 0xBE, 0xDB, 0xFF}

func (g *generator) emit(b []byte) {
	g.code = append(g.code, b...)
	g.ends = append(g.ends, len(g.code))
}

// instruction makes one that both worlds read alike.
func (g *generator) instruction() (decode.Inst, []byte) {
	for {
		b := g.variant(g.pick())
		in, err := decode.Decode(b, g.mode, features)
		if err != nil || int(in.Len) != len(b) || !wanted(&in) {
			continue
		}
		if g.rng.IntN(100) < boring(&in) {
			continue
		}
		more, err := decode.Decode(b, g.mode, decode.AllFeatures)
		if err != nil || more.Op != in.Op {
			continue
		}
		// Processors take REP on LOOPE and LOOPNE for another way to say which of the two; the SDM has nothing of it.
		if (in.Op == decode.LOOPE || in.Op == decode.LOOPNE) && in.Prefix&(decode.RepE|decode.RepNE) != 0 {
			continue
		}
		// SHLD and SHRD of 16 bits by more than 16 are undefined.
		if (in.Op == decode.SHLD || in.Op == decode.SHRD) && in.Size == 2 && (in.Args[2].Kind != decode.Imm || in.Imm&31 > 16) {
			continue
		}
		// PREFETCH of a register is #UD on AMD's processors and a NOP on Intel's.
		if in.Op == decode.PREFETCH && in.Args[0].Kind != decode.Mem || in.Op == decode.PREFETCH && in.ModRM >= 0xC0 {
			continue
		}
		// A CMPXCHG of 32 bits that fails extends its register destination by zeros in the SDM, and not on AMD's processors.
		if in.Op == decode.CMPXCHG && in.Size == 4 && in.Args[0].Kind == decode.GPR {
			continue
		}
		// Outside of 64-bit mode VEX.W of VPEXTRD and VPINSRD is ignored by Intel's processors, #UD on AMD's.
		if (in.Op == decode.VPEXTRD || in.Op == decode.VPINSRD) && in.Prefix&decode.RexW != 0 {
			continue
		}
		// MOVSXD of 16 bits reads 32 on AMD's processors. ARPL writes memory only where it must, and interp asks whether it could.
		// SYSRET outside of 64-bit mode is #UD on Intel's processors, #GP for user code on AMD's.
		if in.Op == decode.MOVSXD && in.Size == 2 || in.Op == decode.ARPL && in.Args[0].Kind == decode.Mem || in.Op == decode.SYSRET {
			continue
		}
		// AMD's processors cut near branches with a 66 prefix to 16 bits, Intel's and interp ignore it.
		if in.Prefix&decode.OpSize != 0 && in.Flags&decode.Jump != 0 {
			continue
		}
		return in, b
	}
}

// boring is the percentage of in that is passed over: what ends a case, most of the time or always.
func boring(in *decode.Inst) int {
	switch {
	case in.Flags&decode.Privileged != 0, in.Flags&decode.Jump != 0 && (in.NArgs == 0 || in.Args[0].Kind != decode.Rel):
		return 98
	}
	switch in.Op {
	case decode.IN, decode.OUT, decode.INS, decode.OUTS, decode.CLI, decode.STI, decode.CLAC, decode.STAC:
		return 98
	case decode.DIV, decode.IDIV, decode.WRFSBASE, decode.WRGSBASE, decode.POP, decode.ENTER, decode.LEAVE:
		return 70
	}
	return 0
}

func (g *generator) pick() *form {
	n := g.rng.IntN(100)
	for i, c := range classes {
		if n -= c.weight; n < 0 {
			return &forms[g.mode][i][g.rng.IntN(len(forms[g.mode][i]))]
		}
	}
	panic("BUG: the classes' weights are not 100")
}

// address is one for f: mostly aligned where it must be.
func (g *generator) address(f *form) uint64 {
	a, misaligned := dataAddress(g.rng), 20
	if g.tame {
		a, misaligned = tameAddress(g.rng), 300
	}
	if f.in.Flags&decode.Aligned != 0 && g.rng.IntN(misaligned) != 0 {
		a &^= 31
	}
	return a
}

// variant makes bytes of f with random registers, addresses, immediates and harmless prefixes.
func (g *generator) variant(f *form) []byte {
	rng := g.rng
	var b []byte
	g.before = g.before[:0]
	if rng.IntN(20) == 0 {
		b = append(b, [...]byte{0x64, 0x65, 0x67, 0x66, 0x2E, 0x36, 0xF2, 0xF3}[rng.IntN(8)])
	}
	if f.in.Flags&decode.Lockable != 0 && f.mem && rng.IntN(4) == 0 {
		b = append(b, 0xF0)
	}
	if f.in.Flags&decode.String != 0 && f.pfx == 0 && rng.IntN(2) == 0 {
		b = append(b, 0xF2+uint8(rng.IntN(2)))
	}
	if f.pfx != 0 && !f.vex {
		b = append(b, f.pfx)
	}
	rex := uint8(0)
	if f.w {
		rex = 0x48
	}
	vvvv := uint8(0)
	for _, a := range f.in.Args {
		if a.Place == decode.InVvvv || rng.IntN(400) == 0 {
			vvvv = uint8(rng.IntN(16))
			if g.mode != decode.Mode64 && !f.w {
				vvvv &= 7
			}
		}
	}
	if rng.IntN(3) == 0 && g.mode == decode.Mode64 {
		rex |= 0x40 | uint8(rng.IntN(8))
	}
	modrm := uint8(rng.Uint32())
	if f.modrm >= 0 {
		modrm = modrm&^f.mask | uint8(f.modrm)&f.mask | 0xC0
	}
	var tail []byte
	le := binary.LittleEndian
	if f.mem {
		kind := rng.IntN(20)
		if g.tame && kind >= 3 && kind <= 12 && f.in.Flags&decode.VSIB == 0 {
			kind = 8
		}
		switch kind {
		case 8:
			if g.tame {
				var x uint8
				modrm, x, tail = g.registers(f, modrm)
				if rex &^= 3; x != 0 {
					rex |= 0x40 | x
				}
				break
			}
			fallthrough
		default: // an absolute address
			modrm, rex = modrm&0x38|4, rex&^3
			tail = le.AppendUint32([]byte{0x25}, uint32(g.address(f)))
			if f.in.Flags&decode.VSIB != 0 {
				tail[0] = uint8(rng.Uint32())&0xF8 | 5
			}
		case 0, 1, 2: // relative to RIP: put right below
			modrm = modrm&0x38 | 5
			tail = le.AppendUint32(nil, uint32(g.address(f)))
			if g.mode == decode.Mode64 {
				le.PutUint32(tail, le.Uint32(tail)-uint32(g.base)-uint32(len(g.code)))
			}
		case 3, 4, 5, 6: // from a register that began as a pointer
			r := pointers[rng.IntN(len(pointers))]
			if g.mode != decode.Mode64 {
				r &= 7 // R8 and R13 are RAX and RBP: something else
			}
			modrm, rex = modrm&0x38|0x40|uint8(r&7), rex&^1
			if r >= 8 {
				rex |= 0x41
			}
			tail = []byte{uint8(rng.Uint32()) & 0xF0}
			if rng.IntN(3) == 0 {
				tail[0] = uint8(rng.Uint32())
			}
			if r&7 == 4 {
				tail = append([]byte{0x24}, tail...)
			}
		case 7: // anything
			if g.tame {
				return nil
			}
			modrm &= 0x3F | uint8(rng.IntN(3))<<6
			tail = le.AppendUint64(nil, rng.Uint64())
		}
	}
	if f.vex {
		if g.mode != decode.Mode64 {
			rex = 0
		}
		b = append(b, f.prefix(rex, vvvv)...)
		b = append(b, f.opcode)
		if f.modrm >= 0 {
			b = append(b, modrm)
		}
		return g.finish(f, append(b, tail...))
	}
	if rex != 0 {
		b = append(b, rex)
	}
	b = append(b, [4][]byte{nil, {0x0F}, {0x0F, 0x38}, {0x0F, 0x3A}}[f.opmap]...)
	b = append(b, f.opcode)
	if f.modrm >= 0 {
		b = append(b, modrm)
	}
	return g.finish(f, append(b, tail...))
}

// registers makes an operand of base, perhaps index and a displacement, with the moves that make it an address of data. It returns ModRM, REX.X and
// REX.B, and what follows.
func (g *generator) registers(f *form, modrm uint8) (byte, uint8, []byte) {
	rng := g.rng
	a := uint32(g.address(f))
	base, disp := uint8(rng.IntN(16)), int8(rng.Uint32())&^31
	for base == 4 {
		base = uint8(rng.IntN(16))
	}
	a -= uint32(int32(disp))
	if rng.IntN(2) == 0 {
		g.before = append(g.before, moveImm(base, a))
		modrm = modrm&0x38 | 0x40 | base&7
		if base&7 == 4 {
			return modrm, base >> 3, []byte{0x24, uint8(disp)}
		}
		return modrm, base >> 3, []byte{uint8(disp)}
	}
	index := uint8(rng.IntN(16))
	for index == 4 || index == base {
		index = uint8(rng.IntN(16))
	}
	scale, n := uint8(rng.IntN(4)), uint32(rng.IntN(8))*32
	g.before = append(g.before, moveImm(base, a-n<<scale), moveImm(index, n))
	return modrm&0x38 | 0x44, index>>3<<1 | base>>3, []byte{scale<<6 | index&7<<3 | base&7, uint8(disp)}
}

// finish adds immediates to b, as long as the decoder says.
func (g *generator) finish(f *form, b []byte) []byte {
	rng, le := g.rng, binary.LittleEndian
	b = le.AppendUint64(b, interesting(rng))
	for n := range 16 {
		if n > len(b) {
			break
		}
		if in, err := decode.Decode(b[:n], g.mode, features); err == nil {
			if in.Op == decode.MOV && in.Args[0].Kind|in.Args[1].Kind != 0 && f.opcode >= 0xA0 && f.opcode <= 0xA3 && f.opmap == 0 && in.AddrSize >= 4 {
				a := le.AppendUint64(nil, dataAddress(rng))
				copy(b[n-int(in.AddrSize):n], a)
			}
			return b[:in.Len]
		}
	}
	return nil
}
