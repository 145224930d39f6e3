package difftest

import (
	"encoding/binary"
	"math/rand/v2"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// Programs are cases of many blocks: loops, branches, calls and returns, jumps through registers and memory, code that changes itself, over two pages of
// code. What most random instructions do to such a program (fault, lose the stack, leave for nowhere) is rare here, so that it goes on for long.

// A program is a generator of such a case.
type program struct {
	generator
	abi       bool   // flags are nobody's across calls and returns
	undefined uint64 // flags that no instruction may read now
	depth     int
	fn        int // of which function this is the code; calls go to those of higher number
	calls     []call
	sites     []site
	patches   []patch
}

// A call is the place of a displacement that leads to function fn.
type call struct{ at, fn int }

// A site is an instruction OP r, imm32 that may be rewritten: where its ModRM byte is. The immediate follows.
type site int

// A patch is a store into a site: the place of its address, and how far into the site it goes.
type patch struct{ at, off int }

// Functions of a program, and how deep its statements nest: each loop is at most 256 turns, by a byte in memory, and most are few.
const (
	maxFunctions = 4
	maxDepth     = 2
	counters     = dataVA + 2*pageSize - 0x100 // where tame addresses do not reach
)

// Program makes a case of some n instructions, most of which are executed often.
func Program(rng *rand.Rand, n int) *Case {
	c := &Case{Bits: 64, ABI: rng.IntN(2) == 0}
	c.randomState(rng)
	if rng.IntN(20) != 0 { // all exceptions masked
		binary.LittleEndian.PutUint16(c.FX[0:], 0x37F)
		c.FX[24], c.FX[25] = 0x80, 0x1F
	}
	c.Regs[4] = dataVA + 0x800 + uint64(rng.IntN(0x40))*8
	c.Regs[regRIP] = codeVA + pageSize - uint64(rng.IntN(min(8*n, pageSize-64)))
	p := program{generator: generator{rng: rng, mode: decode.Mode64, base: c.Regs[regRIP], tame: true}, abi: c.ABI}
	functions := 1 + rng.IntN(maxFunctions)
	entries := make([]int, functions)
	for p.fn = range functions {
		entries[p.fn] = len(p.code)
		if p.abi {
			p.undefined = allFlags
		}
		p.statements(max(3, n/functions), functions)
		p.define()
		if p.fn == 0 {
			p.code = append(p.code, 0xCC)
		} else if rng.IntN(4) == 0 {
			p.code = append(p.code, 0xF3, 0xC3)
		} else {
			p.code = append(p.code, 0xC3)
		}
	}
	for _, cl := range p.calls {
		p.rel32(cl.at, entries[cl.fn])
	}
	for _, s := range p.patches {
		a := uint32(counters + 0x40) // nothing to rewrite: somewhere else
		if len(p.sites) > 0 {
			at := p.base + uint64(p.sites[rng.IntN(len(p.sites))])
			if at >= codeVA+pageSize && at+16 < codeVA+2*pageSize {
				a = uint32(at) + uint32(s.off)
			}
		}
		binary.LittleEndian.PutUint32(p.code[s.at:], a)
	}
	c.Code = p.code
	if c.Regs[regRIP]+uint64(len(c.Code)) > codeVA+2*pageSize {
		return Program(rng, n/2)
	}
	return c
}

// rel32 makes the displacement at at lead to offset to.
func (p *program) rel32(at, to int) {
	binary.LittleEndian.PutUint32(p.code[at:], uint32(to-at-4))
}

// statements appends about n instructions, structured.
func (p *program) statements(n, functions int) {
	for end := len(p.ends) + n; len(p.ends) < end; {
		switch k := p.rng.IntN(40); {
		case k < 2 && p.depth < maxDepth:
			p.loop(n/3, functions)
		case k < 5 && p.depth < maxDepth+1:
			p.conditional(n/4, functions)
		case k < 8 && p.fn+1 < functions:
			p.call(p.fn + 1 + p.rng.IntN(functions-p.fn-1))
		case k < 9:
			p.hop()
		case k < 11:
			p.pushPop()
		case k < 12:
			p.rewritable()
		case k < 13:
			p.rewrite()
		default:
			p.plain()
		}
	}
}

// plain appends one random instruction, and before it what makes its operands sensible.
func (p *program) plain() {
	in, b := p.instruction()
	if !steady(p.rng, &in) {
		return
	}
	if p.undefined != 0 && readsFlags(&in, p.undefined) {
		p.define()
	}
	switch in.Op {
	case decode.MASKMOVQ, decode.MASKMOVDQU, decode.VMASKMOVDQU:
		p.pointer(7)
	case decode.XLAT:
		p.pointer(3)
	default:
		if in.Flags&decode.String != 0 {
			p.pointer(6)
			p.pointer(7)
			p.move(1, uint32(p.rng.IntN(20)))
		} else {
			p.prelude()
		}
	}
	p.undefined = flagsAfter(&in, p.undefined)
	p.emit(b)
}

// steady tells whether a program may have in: not what takes the stack away or leaves, and seldom what faults.
func steady(rng *rand.Rand, in *decode.Inst) bool {
	switch in.Op {
	case decode.PUSH, decode.POP, decode.PUSHA, decode.POPA, decode.POPF, decode.ENTER, decode.LEAVE, decode.INT3, decode.HLT, decode.UD2:
		return false
	case decode.PUSHF:
		return false
	case decode.DIV, decode.IDIV, decode.LDMXCSR, decode.VLDMXCSR, decode.FLDCW, decode.FLDENV, decode.FRSTOR, decode.FXRSTOR, decode.WRFSBASE, decode.WRGSBASE:
		if rng.IntN(10) != 0 {
			return false
		}
	case decode.IN, decode.OUT, decode.INS, decode.OUTS, decode.CLI, decode.STI, decode.CLAC, decode.STAC:
		if rng.IntN(10) != 0 {
			return false
		}
	}
	if in.Flags&decode.Jump != 0 {
		return false
	}
	if in.Flags&(decode.Privileged|decode.VSIB) != 0 && rng.IntN(20) != 0 {
		return false
	}
	for _, a := range in.Args[:in.NArgs] {
		if a.Kind == decode.GPR && a.Reg == 4 {
			return false
		}
	}
	return true
}

// define gives all flags a value that does not depend on what was undefined.
func (p *program) define() {
	if p.undefined == 0 {
		return
	}
	p.undefined = 0
	op := [...]byte{0x01, 0x29, 0x39, 0x11, 0x19}[p.rng.IntN(3)]
	p.emit([]byte{0x48, op, 0xC0 | p.register()<<3 | p.register()})
}

// register is one of the first eight that is not RSP.
func (p *program) register() uint8 {
	for {
		if r := uint8(p.rng.IntN(8)); r != 4 {
			return r
		}
	}
}

// move appends MOV r, imm32.
func (p *program) move(r uint8, v uint32) { p.emit(moveImm(r, v)) }

func moveImm(r uint8, v uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0x48 | r>>3, 0xC7, 0xC0 | r&7}, v)
}

// pointer makes r an address of data.
func (p *program) pointer(r uint8) { p.move(r, uint32(tameAddress(p.rng))) }

// absolute appends op with a memory operand at a, reg in ModRM.
func absolute(op []byte, reg uint8, a uint32) []byte {
	return binary.LittleEndian.AppendUint32(append(op, reg<<3|4, 0x25), a)
}

// block ends what is known of flags: at a label they must be defined on every way to it.
func (p *program) block() { p.define() }

func (p *program) loop(n, functions int) {
	counter := uint32(counters + 8*(p.depth+maxDepth*p.fn))
	turns := 1 + p.rng.IntN(12)
	if p.fn == 0 && p.depth == 0 && p.rng.IntN(8) == 0 {
		turns = 1 + p.rng.IntN(255)
	}
	p.emit(append(absolute([]byte{0xC6}, 0, counter), byte(turns)))
	p.block()
	top := len(p.code)
	p.depth++
	p.statements(max(2, n), functions)
	p.depth--
	p.block()
	p.emit(absolute([]byte{0xFE}, 1, counter)) // DEC keeps CF
	if back := top - (len(p.code) + 2); back >= -128 && p.rng.IntN(2) == 0 {
		p.emit([]byte{0x75, byte(back)})
	} else {
		p.emit([]byte{0x0F, 0x85, 0, 0, 0, 0})
		p.rel32(len(p.code)-4, top)
	}
}

func (p *program) conditional(n, functions int) {
	p.block()
	p.emit([]byte{0x0F, 0x80 | uint8(p.rng.IntN(16)), 0, 0, 0, 0})
	at := len(p.code) - 4
	p.depth++
	p.statements(max(1, n), functions)
	p.depth--
	p.block()
	p.rel32(at, len(p.code))
}

// call calls function fn: directly, through a register, or through memory.
func (p *program) call(fn int) {
	p.block()
	if k := p.rng.IntN(4); k < 2 {
		p.emit([]byte{0xE8, 0, 0, 0, 0})
		p.calls = append(p.calls, call{len(p.code) - 4, fn})
	} else {
		r := p.register()
		p.emit([]byte{0x48, 0x8D, r<<3 | 5, 0, 0, 0, 0}) // LEA r, [RIP+…]
		p.calls = append(p.calls, call{len(p.code) - 4, fn})
		p.through(r, 2, k == 2)
		p.pointer(r)
	}
	if p.abi {
		p.undefined = allFlags
	}
}

// hop jumps forward a bit, through a register or memory.
func (p *program) hop() {
	p.block()
	r := p.register()
	p.emit([]byte{0x48, 0x8D, r<<3 | 5, 0, 0, 0, 0})
	at := len(p.code) - 4
	p.through(r, 4, p.rng.IntN(2) == 0)
	for range p.rng.IntN(3) {
		p.code = append(p.code, 0x90)
	}
	p.rel32(at, len(p.code))
	p.pointer(r)
	if p.abi {
		p.undefined = allFlags
	}
}

// through appends a call (2) or jump (4) to where r says.
func (p *program) through(r, kind uint8, memory bool) {
	if memory {
		slot := uint32(counters + 0x80 + 8*p.rng.IntN(4))
		p.emit(absolute([]byte{0x48, 0x89}, r, slot))
		p.emit(absolute([]byte{0xFF}, kind, slot))
		return
	}
	p.emit([]byte{0xFF, 0xC0 | kind<<3 | r})
}

func (p *program) pushPop() {
	from, to := p.register(), p.register()
	switch p.rng.IntN(3) {
	case 0:
		p.emit([]byte{0x50 | from})
	case 1: // PUSH and POP of R8 to R15, one of which is kept in memory
		p.emit([]byte{0x41, 0x50 | from})
	default:
		p.emit(absolute([]byte{0xFF}, 6, uint32(tameAddress(p.rng))))
	}
	for range p.rng.IntN(3) {
		p.plain()
	}
	if p.rng.IntN(2) == 0 {
		p.emit([]byte{0x58 | to})
	} else {
		p.emit([]byte{0x41, 0x58 | to})
	}
}

// Operations that a site may have, in ModRM: they define all flags. The last, ADC and SBB, read CF: what had set it before the rewriting may have been
// translated for a site that did not, which only exact flags allow for.
var siteOps = [...]uint8{0, 5, 7, 2, 3}

func (p *program) siteOp() uint8 {
	n := len(siteOps)
	if p.abi {
		n -= 2
	}
	return siteOps[p.rng.IntN(n)] << 3
}

// rewritable appends OP r, imm32.
func (p *program) rewritable() {
	p.define()
	b := []byte{0x48, 0x81, 0xC0 | p.siteOp() | p.register()}
	p.sites = append(p.sites, site(len(p.code)+2))
	p.emit(binary.LittleEndian.AppendUint32(b, uint32(interesting(p.rng))))
}

// rewrite appends a store into such an instruction.
func (p *program) rewrite() {
	var b []byte
	off, at := 1, 3
	switch p.rng.IntN(3) {
	case 0: // its immediate
		b = binary.LittleEndian.AppendUint32(absolute([]byte{0xC7}, 0, 0), uint32(interesting(p.rng)))
	case 1: // a part of it
		b = absolute([]byte{0x88}, uint8(p.rng.IntN(4)), 0)
		off += p.rng.IntN(4)
	default: // which operation, and on what
		b = append(absolute([]byte{0xC6}, 0, 0), 0xC0|p.siteOp()|p.register())
		off = 0
	}
	p.patches = append(p.patches, patch{len(p.code) + at, off})
	p.emit(b)
}

// tameAddress is an address of data; seldom one that faults.
func tameAddress(rng *rand.Rand) uint64 {
	switch k := rng.IntN(400); {
	case k == 0:
		return dataAddress(rng)
	case k < 40: // across pages
		return dataVA + pageSize - uint64(rng.IntN(32))
	case k < 150:
		return dataVA + uint64(rng.IntN(2*pageSize-0x180))
	}
	return dataVA + uint64(rng.IntN(2*pageSize-0x180))&^31
}

// prelude appends the moves that the last variant's address wants.
func (p *program) prelude() {
	for _, b := range p.before {
		p.emit(b)
	}
}
