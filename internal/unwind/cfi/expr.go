package cfi

// Bounds of an expression: values on its stack, and operations, since it may jump.
const (
	maxDepth = 64
	maxOps   = 1000
)

// Operations of DWARF expressions (DWARF 5, 7.7.1): those that unwinding needs, which excludes types, objects' pieces and calls.
const (
	opDeref      = 0x06
	opConst1u    = 0x08
	opConst1s    = 0x09
	opConst2u    = 0x0A
	opConst2s    = 0x0B
	opConst4u    = 0x0C
	opConst4s    = 0x0D
	opConst8u    = 0x0E
	opConst8s    = 0x0F
	opConstu     = 0x10
	opConsts     = 0x11
	opDup        = 0x12
	opDrop       = 0x13
	opOver       = 0x14
	opPick       = 0x15
	opSwap       = 0x16
	opRot        = 0x17
	opAbs        = 0x19
	opAnd        = 0x1A
	opDiv        = 0x1B
	opMinus      = 0x1C
	opMod        = 0x1D
	opMul        = 0x1E
	opNeg        = 0x1F
	opNot        = 0x20
	opOr         = 0x21
	opPlus       = 0x22
	opPlusUconst = 0x23
	opShl        = 0x24
	opShr        = 0x25
	opShra       = 0x26
	opXor        = 0x27
	opBra        = 0x28
	opEq         = 0x29
	opGe         = 0x2A
	opGt         = 0x2B
	opLe         = 0x2C
	opLt         = 0x2D
	opNe         = 0x2E
	opSkip       = 0x2F
	opLit0       = 0x30
	opReg0       = 0x50
	opBreg0      = 0x70
	opBregx      = 0x92
	opDerefSize  = 0x94
	opNop        = 0x96
)

// binary operations take two values and give one; a is the one below.
var binary2 = map[byte]func(a, b uint64) (uint64, bool){
	opAnd: func(a, b uint64) (uint64, bool) { return a & b, true },
	opDiv: func(a, b uint64) (uint64, bool) {
		if b == 0 {
			return 0, false
		}
		return uint64(int64(a) / int64(b)), true
	},
	opMinus: func(a, b uint64) (uint64, bool) { return a - b, true },
	opMod: func(a, b uint64) (uint64, bool) {
		if b == 0 {
			return 0, false
		}
		return a % b, true
	},
	opMul:  func(a, b uint64) (uint64, bool) { return a * b, true },
	opOr:   func(a, b uint64) (uint64, bool) { return a | b, true },
	opPlus: func(a, b uint64) (uint64, bool) { return a + b, true },
	opShl:  func(a, b uint64) (uint64, bool) { return a << b, true },
	opShr:  func(a, b uint64) (uint64, bool) { return a >> b, true },
	opShra: func(a, b uint64) (uint64, bool) { return uint64(int64(a) >> b), true },
	opXor:  func(a, b uint64) (uint64, bool) { return a ^ b, true },
	opEq:   func(a, b uint64) (uint64, bool) { return truth(a == b), true },
	opGe:   func(a, b uint64) (uint64, bool) { return truth(int64(a) >= int64(b)), true },
	opGt:   func(a, b uint64) (uint64, bool) { return truth(int64(a) > int64(b)), true },
	opLe:   func(a, b uint64) (uint64, bool) { return truth(int64(a) <= int64(b)), true },
	opLt:   func(a, b uint64) (uint64, bool) { return truth(int64(a) < int64(b)), true },
	opNe:   func(a, b uint64) (uint64, bool) { return truth(a != b), true },
}

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// A machine evaluates one expression. After an operation that cannot be done ok is false.
type machine struct {
	stack []uint64
	room  [maxDepth]uint64
	regs  *Regs
	mem   Memory
	err   error
}

func (s *machine) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

func (s *machine) push(v uint64) {
	if len(s.stack) == maxDepth {
		s.fail(errExpr)
		return
	}
	s.stack = append(s.stack, v)
}

func (s *machine) pop() uint64 {
	v := s.pick(0)
	if s.err == nil {
		s.stack = s.stack[:len(s.stack)-1]
	}
	return v
}

// pick gives the value n below the top.
func (s *machine) pick(n int) uint64 {
	if n >= len(s.stack) {
		s.fail(errExpr)
		return 0
	}
	return s.stack[len(s.stack)-1-n]
}

// eval gives what an expression leaves on top of its stack, on which it finds the CFA where that is given.
func eval(expr []byte, regs *Regs, m Memory, cfa *uint64) (uint64, error) {
	s := &machine{regs: regs, mem: m}
	s.stack = s.room[:0]
	if cfa != nil {
		s.push(*cfa)
	}
	d := &reader{mem: bytesAt{p: expr}, end: uint64(len(expr))}
	for range maxOps {
		if d.at == d.end || d.err != nil || s.err != nil {
			break
		}
		s.do(d.byte(), d)
	}
	v := s.pop()
	switch {
	case d.err != nil:
		return 0, d.err
	case s.err == nil && d.at != d.end:
		return 0, errExpr // it runs for ever
	}
	return v, s.err
}

// do executes one operation, whose operands d has.
func (s *machine) do(op byte, d *reader) {
	if f, ok := binary2[op]; ok {
		b, a := s.pop(), s.pop()
		v, ok := f(a, b)
		if !ok {
			s.fail(errExpr)
		}
		s.push(v)
		return
	}
	switch {
	case op >= opLit0 && op < opReg0:
		s.push(uint64(op - opLit0))
	case op >= opBreg0 && op < opBreg0+32:
		s.pushReg(uint64(op-opBreg0), d)
	default:
		s.other(op, d)
	}
}

// pushReg pushes a register's value plus an offset.
func (s *machine) pushReg(reg uint64, d *reader) {
	v, err := s.regs.get(register(reg))
	if err != nil {
		s.fail(err)
	}
	s.push(v + uint64(d.sleb()))
}

func (s *machine) other(op byte, d *reader) {
	switch op {
	case opNop:
	case opConst1u:
		s.push(d.uint(1))
	case opConst1s:
		s.push(uint64(int8(d.uint(1))))
	case opConst2u:
		s.push(d.uint(2))
	case opConst2s:
		s.push(uint64(int16(d.uint(2))))
	case opConst4u:
		s.push(d.uint(4))
	case opConst4s:
		s.push(uint64(int32(d.uint(4))))
	case opConst8u, opConst8s:
		s.push(d.uint(8))
	case opConstu:
		s.push(d.uleb())
	case opConsts:
		s.push(uint64(d.sleb()))
	case opDup:
		s.push(s.pick(0))
	case opDrop:
		s.pop()
	case opOver:
		s.push(s.pick(1))
	case opPick:
		s.push(s.pick(int(d.byte())))
	case opSwap:
		a, b := s.pop(), s.pop()
		s.push(a)
		s.push(b)
	case opRot:
		a, b, c := s.pop(), s.pop(), s.pop()
		s.push(a)
		s.push(c)
		s.push(b)
	case opAbs:
		if v := s.pop(); int64(v) < 0 {
			s.push(-v)
		} else {
			s.push(v)
		}
	case opNeg:
		s.push(-s.pop())
	case opNot:
		s.push(^s.pop())
	case opPlusUconst:
		s.push(s.pop() + d.uleb())
	case opBregx:
		s.pushReg(d.uleb(), d)
	case opDeref:
		s.load(8)
	case opDerefSize:
		s.load(d.byte())
	case opSkip:
		s.jump(d, true)
	case opBra:
		s.jump(d, s.pop() != 0)
	default: // opAddr too: it holds an address of the file, which a table that is shared by processes cannot move
		s.fail(errExpr)
	}
}

// load replaces an address by what is there.
func (s *machine) load(size byte) {
	var b [8]byte
	if size == 0 || size > 8 {
		s.fail(errExpr)
		return
	}
	if a := s.pop(); s.err == nil {
		if err := s.mem.ReadAt(b[:size], a); err != nil {
			s.fail(err)
		}
		s.push(le.Uint64(b[:]))
	}
}

// jump goes on elsewhere in the expression.
func (s *machine) jump(d *reader, taken bool) {
	n := int16(d.uint(2))
	if !taken || d.err != nil {
		return
	}
	to := d.at + uint64(n)
	if to > d.end {
		s.fail(errExpr)
		return
	}
	d.at = to
}
