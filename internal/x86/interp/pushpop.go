package interp

import (
	"vitrine.dev/vitrine/internal/x86"
)

// A stack is a stack pointer that moves before it is committed, so that a fault leaves rSP as it was.
type stack struct {
	seg  x86.Segment
	sp   uint64
	mask uint64 // of the stack's address size; other bits of rSP stay
	flat bool   // 64-bit mode
}

func makeStack(seg x86.Segment, sp uint64) stack {
	m := uint64(0xFFFF)
	if seg.Access&x86.SegBig != 0 {
		m = 0xFFFFFFFF
	}
	return stack{seg: seg, sp: sp, mask: m}
}

// stack is the present one.
func (c *CPU) stack() stack {
	if c.mode == 8 {
		return stack{seg: c.seg[x86.SS], sp: c.gpr[x86.RSP], mask: ^uint64(0), flat: true}
	}
	return makeStack(c.seg[x86.SS], c.gpr[x86.RSP])
}

// push stores the low size bytes of v. Faults of the segment are #SS with the EXT bit of the delivery under way.
func (s *stack) push(c *CPU, v uint64, size int) bool {
	s.sp = s.sp&^s.mask | (s.sp-uint64(size))&s.mask
	va, ok := s.linear(c, size, true)
	if !ok {
		return false
	}
	if !c.store(va, v, uint64(size)) {
		if c.fault.canon {
			c.fault.vec, c.fault.code = x86.SSV, c.ext
		}
		return false
	}
	return true
}

// pop loads size bytes.
func (s *stack) pop(c *CPU, size int) (uint64, bool) {
	va, ok := s.linear(c, size, false)
	if !ok {
		return 0, false
	}
	v, ok := c.load(va, uint64(size))
	if !ok {
		if c.fault.canon {
			c.fault.vec, c.fault.code = x86.SSV, c.ext
		}
		return 0, false
	}
	s.sp = s.sp&^s.mask | (s.sp+uint64(size))&s.mask
	return v, true
}

func (s *stack) linear(c *CPU, size int, write bool) (uint64, bool) {
	if s.flat {
		return s.sp, true
	}
	off := s.sp & s.mask
	if !segFits(&s.seg, off, uint64(size)) {
		return 0, c.raiseCode(x86.SSV, c.ext)
	}
	return (s.seg.Base + off) & 0xFFFFFFFF, true
}

// commit makes s the stack.
func (s *stack) commit(c *CPU) {
	c.seg[x86.SS] = s.seg
	switch s.mask {
	case 0xFFFF:
		c.gpr[x86.RSP] = c.gpr[x86.RSP]&^0xFFFF | s.sp&0xFFFF
	case 0xFFFFFFFF:
		c.gpr[x86.RSP] = s.sp & 0xFFFFFFFF
	default:
		c.gpr[x86.RSP] = s.sp
	}
}

// segFits tells whether n bytes at off are inside s's limit (SDM vol. 3A 5.3).
func segFits(s *x86.Segment, off, n uint64) bool {
	end := off + n - 1
	if s.Access&(x86.SegCode|x86.SegDown) == x86.SegDown {
		top := uint64(0xFFFF)
		if s.Access&x86.SegBig != 0 {
			top = 0xFFFFFFFF
		}
		return off > uint64(s.Limit) && end <= top
	}
	return end <= uint64(s.Limit)
}
