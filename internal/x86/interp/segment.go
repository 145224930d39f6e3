package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Segment registers and descriptors (SDM vol. 3A chapters 3 and 5).

// A descriptor is eight bytes of the GDT or the LDT.
type descriptor uint64

// segment is d as a segment register would hold it under selector sel.
func (d descriptor) segment(sel uint16) x86.Segment {
	s := x86.Segment{
		Selector: sel,
		Base:     uint64(d>>16&0xFFFFFF | d>>56<<24),
		Limit:    uint32(d&0xFFFF | d>>32&0xF0000),
		Access:   uint16(d>>40&0xFF | d>>52&0xF<<12),
	}
	if s.Access&x86.SegGran != 0 {
		s.Limit = s.Limit<<12 | 0xFFF
	}
	return s
}

func (d descriptor) kind() int { return int(d >> 40 & 0x1F) } // type and S
func (d descriptor) dpl() int  { return int(d >> 45 & 3) }

// Types of system descriptors (SDM vol. 3A table 3-2).
const (
	sysTSS16     = 1
	sysLDT       = 2
	sysTSS16Busy = 3
	sysGate16    = 4
	sysTaskGate  = 5
	sysTSS       = 9
	sysTSSBusy   = 11
	sysGate      = 12
)

// selError is the error code that names sel.
func (c *CPU) selError(sel uint16) uint32 { return uint32(sel&^3) + c.ext }

// at finds sel's descriptor.
func (c *CPU) descriptorAt(sel uint16) (va uint64, ok bool) {
	base, limit := c.gdtr.Base, uint64(c.gdtr.Limit)
	if sel&4 != 0 {
		if c.ldtr.Access&x86.SegPresent == 0 {
			return 0, false
		}
		base, limit = c.ldtr.Base, uint64(c.ldtr.Limit)
	}
	return base + uint64(sel&^7), uint64(sel|7) <= limit
}

// descriptor reads sel's descriptor. Where there is none it raises vec with sel as the error code.
func (c *CPU) descriptor(sel uint16, vec x86.Vector) (descriptor, bool) {
	va, ok := c.descriptorAt(sel)
	if !ok {
		return 0, c.raiseCode(vec, c.selError(sel))
	}
	d, ok := c.sysLoad(va, 8)
	return descriptor(d), ok
}

// descriptorHigh reads the upper half of a 16-byte system descriptor: its base's bits 63-32 in the low half.
func (c *CPU) descriptorHigh(sel uint16, vec x86.Vector) (uint64, bool) {
	va, ok := c.descriptorAt(sel)
	limit := uint64(c.gdtr.Limit)
	if sel&4 != 0 {
		limit = uint64(c.ldtr.Limit)
	}
	if !ok || uint64(sel|7)+8 > limit {
		return 0, c.raiseCode(vec, c.selError(sel))
	}
	return c.sysLoad(va+8, 8)
}

// touch sets the accessed bit of s, in its descriptor d too.
func (c *CPU) touch(s *x86.Segment, d descriptor) bool {
	if s.Access&x86.SegAccessed == 0 {
		s.Access |= x86.SegAccessed
		va, _ := c.descriptorAt(s.Selector)
		return c.sysStore(va+5, uint64(d>>40&0xFF|1), 1)
	}
	return true
}

func (c *CPU) real() bool { return c.cr0&x86.CR0PE == 0 }
func (c *CPU) v86() bool  { return c.flags&x86.VM != 0 && c.cr0&x86.CR0PE != 0 }

// setReal loads a segment register in real or virtual-8086 mode. In real mode limits stay what protected mode left them.
func (c *CPU) setReal(r uint8, sel uint16) {
	s := &c.seg[r]
	s.Selector, s.Base = sel, uint64(sel)<<4
	switch {
	case c.v86():
		s.Limit, s.Access = 0xFFFF, x86.SegPresent|x86.SegS|x86.SegWritable|x86.SegAccessed|3<<x86.SegDPLShift
	case s.Access&x86.SegPresent == 0:
		s.Limit, s.Access = 0xFFFF, x86.SegPresent|x86.SegS|x86.SegWritable|x86.SegAccessed
	}
}

// loadSeg loads a segment register other than CS, with all checks (SDM vol. 2B, MOV).
func (c *CPU) loadSeg(r uint8, sel uint16) bool {
	if c.real() || c.v86() {
		c.setReal(r, sel)
		c.modeChanged()
		return true
	}
	if r == x86.SS {
		if sel&^3 == 0 {
			if c.mode != decode.Mode64 || c.cpl == 3 || sel&3 != uint16(c.cpl) {
				return c.raiseCode(x86.GP, 0)
			}
			c.seg[r] = nullSS(sel)
			c.modeChanged()
			return true
		}
		s, ok := c.stackSegment(sel, c.cpl, x86.GP)
		if !ok {
			return false
		}
		c.seg[r] = s
		c.modeChanged()
		return true
	}
	s, ok := c.dataSegment(sel)
	if !ok {
		return false
	}
	c.seg[r] = s
	c.modeChanged()
	return true
}

// dataSegment is sel as DS, ES, FS or GS.
func (c *CPU) dataSegment(sel uint16) (s x86.Segment, ok bool) {
	if sel&^3 == 0 {
		return x86.Segment{Selector: sel}, true
	}
	d, ok := c.descriptor(sel, x86.GP)
	if !ok {
		return s, false
	}
	s = d.segment(sel)
	code := s.Access&x86.SegCode != 0
	if s.Access&x86.SegS == 0 || code && s.Access&x86.SegWritable == 0 {
		return s, c.raiseCode(x86.GP, c.selError(sel))
	}
	if (!code || s.Access&x86.SegDown == 0) && (int(sel&3) > s.DPL() || int(c.cpl) > s.DPL()) {
		return s, c.raiseCode(x86.GP, c.selError(sel))
	}
	if s.Access&x86.SegPresent == 0 {
		return s, c.raiseCode(x86.NP, c.selError(sel))
	}
	return s, c.touch(&s, d)
}

// codeSegment checks d as the target of a far jump, call or return to privilege cpl, and gives it as CS would be.
func (c *CPU) codeSegment(sel uint16, d descriptor, cpl uint8) (s x86.Segment, ok bool) {
	s = d.segment(sel&^3 | uint16(cpl))
	if s.Access&(x86.SegS|x86.SegCode) != x86.SegS|x86.SegCode || c.long && s.Access&(x86.SegLong|x86.SegBig) == x86.SegLong|x86.SegBig {
		return s, c.raiseCode(x86.GP, c.selError(sel))
	}
	if s.Access&x86.SegDown != 0 {
		ok = s.DPL() <= int(cpl)
	} else {
		ok = s.DPL() == int(cpl)
	}
	if !ok {
		return s, c.raiseCode(x86.GP, c.selError(sel))
	}
	if s.Access&x86.SegPresent == 0 {
		return s, c.raiseCode(x86.NP, c.selError(sel))
	}
	return s, c.touch(&s, d)
}

// goodIP tells whether cs allows rip, else it raises #GP(0).
func (c *CPU) goodIP(cs *x86.Segment, rip uint64) bool {
	if c.long && cs.Access&x86.SegLong != 0 {
		return c.canonical(rip) || c.raiseCode(x86.GP, 0)
	}
	return rip <= uint64(cs.Limit) || c.raiseCode(x86.GP, 0)
}
