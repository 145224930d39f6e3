package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Instructions on descriptor tables, and on what descriptors say (SDM vol. 2; vol. 3A 5.10).

// loadTable is LGDT and LIDT.
func loadTable(c *CPU, o *op) bool {
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	limit, ok := c.load16(va)
	if !ok {
		return false
	}
	size := 4
	if c.mode == decode.Mode64 {
		size = 8
	}
	base, ok := c.load(c.wrap(va+2), uint64(size))
	if !ok {
		return false
	}
	if size == 4 && o.inst.Size == 2 {
		base &= 0xFFFFFF
	}
	if size == 8 && !c.canonicalBase(base) {
		return c.raiseCode(x86.GP, 0)
	}
	t := &c.gdtr
	if o.inst.Op == decode.LIDT {
		t = &c.idtr
	}
	*t = x86.Table{Base: base, Limit: limit}
	return true
}

// storeTable is SGDT and SIDT.
func storeTable(c *CPU, o *op) bool {
	if c.umip() {
		return false
	}
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	t := c.gdtr
	if o.inst.Op == decode.SIDT {
		t = c.idtr
	}
	b := [10]byte{byte(t.Limit), byte(t.Limit >> 8)}
	for i := range 8 {
		b[2+i] = byte(t.Base >> (8 * i))
	}
	n := 6
	if c.mode == decode.Mode64 {
		n = 10
	}
	return c.storeN(va, b[:n])
}

// storeSelector is SLDT and STR.
func storeSelector(c *CPU, o *op) bool {
	if c.umip() {
		return false
	}
	v := c.ldtr.Selector
	if o.inst.Op == decode.STR {
		v = c.tr.Selector
	}
	return c.setWord(o, uint64(v))
}

// systemSegment reads the descriptor of an LDT or a TSS.
func (c *CPU) systemSegment(sel uint16, want ...int) (s x86.Segment, d descriptor, ok bool) {
	if sel&4 != 0 {
		return s, 0, c.raiseCode(x86.GP, c.selError(sel))
	}
	if d, ok = c.descriptor(sel, x86.GP); !ok {
		return s, 0, false
	}
	good := false
	for _, k := range want {
		good = good || d.kind() == k
	}
	if !good {
		return s, 0, c.raiseCode(x86.GP, c.selError(sel))
	}
	if d>>47&1 == 0 {
		return s, 0, c.raiseCode(x86.NP, c.selError(sel))
	}
	s = d.segment(sel)
	if c.long {
		hi, ok := c.descriptorHigh(sel, x86.GP)
		if !ok {
			return s, 0, false
		}
		if hi>>40&0x1F != 0 {
			return s, 0, c.raiseCode(x86.GP, c.selError(sel))
		}
		s.Base |= hi << 32
		if !c.canonicalBase(s.Base) {
			return s, 0, c.raiseCode(x86.GP, c.selError(sel))
		}
	}
	return s, d, true
}

func lldt(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	sel := uint16(v)
	if sel&^3 == 0 {
		c.ldtr = x86.Segment{Selector: sel}
		return true
	}
	s, _, ok := c.systemSegment(sel, sysLDT)
	if ok {
		c.ldtr = s
	}
	return ok
}

func ltr(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	sel := uint16(v)
	if sel&^3 == 0 {
		return c.raiseCode(x86.GP, 0)
	}
	want := []int{sysTSS, sysTSS16}
	if c.long {
		want = want[:1]
	}
	s, d, ok := c.systemSegment(sel, want...)
	if !ok {
		return false
	}
	s.Access |= 2 // busy
	va, _ := c.descriptorAt(sel)
	if !c.sysStore(va+5, uint64(d>>40&0xFF|2), 1) {
		return false
	}
	c.tr = s
	return true
}

// larLsl is LAR and LSL: what the guest may know of a descriptor (SDM vol. 2A).
func larLsl(c *CPU, o *op) bool {
	v, ok := c.operand(o, 1, 2)
	if !ok {
		return false
	}
	lar := o.inst.Op == decode.LAR
	d, ok := c.visible(uint16(v), func(kind int) bool {
		switch kind {
		case sysTSS16, sysLDT, sysTSS16Busy:
			return !c.long || kind == sysLDT
		case sysTSS, sysTSSBusy:
			return true
		case sysGate16, sysTaskGate:
			return lar && !c.long
		case sysGate:
			return lar
		}
		return false
	})
	if c.stop == stopFault {
		return false
	}
	c.setZF(ok)
	if ok {
		r := uint64(d>>32) & 0xF0FF00
		if !lar {
			r = uint64(d.segment(0).Limit)
		}
		c.setReg(o.inst.Args[0].Reg, int(o.inst.Size), r)
	}
	return true
}

// visible finds sel's descriptor for LAR, LSL, VERR and VERW, which fault for no reason but a page's. system says which system types count.
func (c *CPU) visible(sel uint16, system func(int) bool) (descriptor, bool) {
	if sel&^3 == 0 {
		return 0, false
	}
	va, ok := c.descriptorAt(sel)
	if !ok {
		return 0, false
	}
	w, ok := c.sysLoad(va, 8)
	if !ok {
		return 0, false
	}
	d := descriptor(w)
	k := d.kind()
	if k&x86.SegS == 0 && !system(k) {
		return 0, false
	}
	if k&(x86.SegS|x86.SegCode|x86.SegDown) != x86.SegS|x86.SegCode|x86.SegDown && (d.dpl() < int(c.cpl) || d.dpl() < int(sel&3)) {
		return 0, false
	}
	return d, true
}

// verify is VERR and VERW.
func verify(c *CPU, o *op) bool {
	v, ok := c.operand(o, 0, 2)
	if !ok {
		return false
	}
	d, ok := c.visible(uint16(v), func(int) bool { return false })
	if c.stop == stopFault {
		return false
	}
	k := d.kind()
	if o.inst.Op == decode.VERW {
		ok = ok && k&(x86.SegCode|x86.SegWritable) == x86.SegWritable
	} else {
		ok = ok && k&(x86.SegCode|x86.SegWritable) != x86.SegCode
	}
	c.setZF(ok)
	return true
}

func arpl(c *CPU, o *op) bool {
	src := c.getReg(o.inst.Args[1].Reg, 2)
	if o.inst.Args[0].Kind == decode.GPR {
		d := c.getReg(o.inst.Args[0].Reg, 2)
		if d&3 < src&3 {
			c.setReg(o.inst.Args[0].Reg, 2, d&^3|src&3)
		}
		c.setZF(d&3 < src&3)
		return true
	}
	va, ok := c.ea(o)
	if !ok {
		return false
	}
	d, ok := c.load16(va)
	if !ok || !c.probeWrite(va, 2) {
		return false
	}
	raise := uint64(d)&3 < src&3
	if raise {
		if !c.store16(va, d&^3|uint16(src&3)) {
			return false
		}
	}
	c.setZF(raise)
	return true
}
