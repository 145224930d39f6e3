package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// offset is the offset in its segment of o's memory operand, cut to the address size. o.inst is set.
func (c *CPU) offset(o *op) uint64 {
	m := &o.inst.Mem
	off := uint64(m.Disp)
	switch m.Base {
	case decode.NoReg:
	case decode.RIP:
		off += c.nextIP(o)
	default:
		off += c.gpr[m.Base&15]
	}
	if m.Index != decode.NoReg {
		off += c.gpr[m.Index&15] * uint64(m.Scale)
	}
	return off & sizeMask(int(o.inst.AddrSize))
}

// ea is the linear address of o's memory operand, after segment checks. o.inst is set.
func (c *CPU) ea(o *op) (uint64, bool) {
	size := uint64(1)
	for i := range o.inst.NArgs {
		if a := &o.inst.Args[i]; a.Kind == decode.Mem && a.Size > 0 {
			size = uint64(a.Size)
		}
	}
	return c.linear(o.inst.Mem.Seg, c.offset(o), size, o.inst.Flags&decode.MemWrite != 0)
}

// linear is the linear address of size bytes at offset off of segment seg. Outside of 64-bit mode it checks type and limit
// (SDM vol. 3A 5.3 and 5.5); a non-canonical address in 64-bit mode is found by the access itself.
func (c *CPU) linear(seg uint8, off, size uint64, write bool) (uint64, bool) {
	s := &c.seg[seg]
	if c.mode == decode.Mode64 {
		if seg == x86.FS || seg == x86.GS {
			off += s.Base
		}
		return off, true
	}
	if !segmentAllows(s, off, size, write) {
		if seg == x86.SS {
			return 0, c.raiseCode(x86.SSV, 0)
		}
		return 0, c.raiseCode(x86.GP, 0)
	}
	return (s.Base + off) & 0xFFFFFFFF, true
}

func segmentAllows(s *x86.Segment, off, size uint64, write bool) bool {
	a := s.Access
	last := off + size - 1
	switch {
	case a&x86.SegPresent == 0: // a null selector was loaded
		return false
	case a&x86.SegCode != 0:
		return !write && a&x86.SegWritable != 0 && last <= uint64(s.Limit)
	case write && a&x86.SegWritable == 0:
		return false
	case a&x86.SegDown != 0:
		top := uint64(0xFFFF)
		if a&x86.SegBig != 0 {
			top = 0xFFFFFFFF
		}
		return off > uint64(s.Limit) && last <= top
	}
	return last <= uint64(s.Limit)
}

// syncCode brings the pseudo registers up to date after a segment or the mode changed.
func (c *CPU) syncCode() {
	for i := range c.seg {
		base := c.seg[i].Base
		if c.mode == decode.Mode64 && i != x86.FS && i != x86.GS {
			base = 0
		}
		c.gpr[regSeg+i] = base
	}
}
