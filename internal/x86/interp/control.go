package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// Control and debug registers (SDM vol. 3A 2.5 and vol. 3B 17.2).

// movCR is MOV to and from a control register.
func movCR(c *CPU, o *op) bool {
	d, s := o.inst.Args[0], o.inst.Args[1]
	size := 4
	if c.mode == decode.Mode64 {
		size = 8
	}
	if s.Kind == decode.CReg {
		var v uint64
		switch s.Reg {
		case 0:
			v = c.cr0
		case 2:
			v = c.cr2
		case 3:
			v = c.cr3
		case 4:
			v = c.cr4
		case 8:
			v = c.io.CR8()
		default:
			return c.raise(x86.UD)
		}
		c.setReg(d.Reg, size, v)
		return true
	}
	v := c.getReg(s.Reg, size)
	switch d.Reg {
	case 0:
		return c.setCR0(v)
	case 2:
		c.cr2 = v
		return true
	case 3:
		return c.setCR3(v)
	case 4:
		return c.setCR4(v)
	case 8:
		if v > 15 {
			return c.raiseCode(x86.GP, 0)
		}
		c.io.SetCR8(v)
		c.checkPending()
		return true
	}
	return c.raise(x86.UD)
}

func (c *CPU) setCR0(v uint64) bool {
	const known = x86.CR0PE | x86.CR0MP | x86.CR0EM | x86.CR0TS | x86.CR0NE | x86.CR0WP | x86.CR0AM | x86.CR0NW | x86.CR0CD | x86.CR0PG
	pg := v&x86.CR0PG != 0
	if v>>32 != 0 || pg && v&x86.CR0PE == 0 || v&x86.CR0NW != 0 && v&x86.CR0CD == 0 {
		return c.raiseCode(x86.GP, 0)
	}
	v = v&known | x86.CR0ET
	efer, pdpte := c.efer, c.space.PDPTE
	switch was := c.cr0&x86.CR0PG != 0; {
	case pg && !was && efer&x86.EFERLME != 0:
		if c.cr4&x86.CR4PAE == 0 || c.seg[x86.CS].Access&x86.SegLong != 0 || c.tr.Access&0x1D == sysTSS16 {
			return c.raiseCode(x86.GP, 0)
		}
		efer |= x86.EFERLMA
	case pg && efer&x86.EFERLMA == 0 && c.cr4&x86.CR4PAE != 0 && (v^c.cr0)&(x86.CR0PG|x86.CR0CD|x86.CR0NW) != 0:
		var ok bool
		if pdpte, ok = mmu.LoadPDPTE(c.ram, c.cr3); !ok {
			return c.raiseCode(x86.GP, 0)
		}
	case !pg && was:
		if c.mode == decode.Mode64 || c.cr4&x86.CR4PCIDE != 0 {
			return c.raiseCode(x86.GP, 0)
		}
		efer &^= x86.EFERLMA
	}
	changed := v ^ c.cr0
	c.cr0, c.efer = v, efer
	if changed&(x86.CR0PG|x86.CR0PE|x86.CR0WP) != 0 {
		c.tlbs.flushAll()
	}
	c.spaceChanged(pdpte)
	if changed&x86.CR0PE != 0 {
		c.cpl = 0
	}
	c.modeChanged()
	c.vecChanged()
	return true
}

func (c *CPU) setCR3(v uint64) bool {
	pdpte := c.space.PDPTE
	keep := false
	switch c.space.Mode {
	case mmu.Level4, mmu.Level5:
		if c.cr4&x86.CR4PCIDE != 0 {
			keep = v>>63 != 0
			v &^= 1 << 63
		}
		if v>>mmu.PhysBits != 0 {
			return c.raiseCode(x86.GP, 0)
		}
	case mmu.PAE:
		var ok bool
		if pdpte, ok = mmu.LoadPDPTE(c.ram, v); !ok {
			return c.raiseCode(x86.GP, 0)
		}
	default:
		if c.mode == decode.Mode64 && v>>mmu.PhysBits != 0 {
			return c.raiseCode(x86.GP, 0)
		}
	}
	c.cr3 = v
	c.spaceChanged(pdpte)
	pcid := uint16(0)
	if c.cr4&x86.CR4PCIDE != 0 {
		pcid = uint16(v & 0xFFF)
	}
	c.tlbs.cur = c.tlbs.space(pcid)
	if !keep {
		c.tlbs.flushSpace(c.tlbs.cur, false)
	}
	c.selectTLB()
	return true
}

func (c *CPU) setCR4(v uint64) bool {
	if v&^c.vm.cr4 != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	changed := v ^ c.cr4
	if c.efer&x86.EFERLMA != 0 {
		if v&x86.CR4PAE == 0 || changed&x86.CR4LA57 != 0 {
			return c.raiseCode(x86.GP, 0)
		}
	}
	if v&changed&x86.CR4PCIDE != 0 && (c.efer&x86.EFERLMA == 0 || c.cr3&0xFFF != 0) {
		return c.raiseCode(x86.GP, 0)
	}
	pdpte := c.space.PDPTE
	if c.cr0&x86.CR0PG != 0 && c.efer&x86.EFERLMA == 0 && v&x86.CR4PAE != 0 && changed&(x86.CR4PAE|x86.CR4PGE|x86.CR4PSE|x86.CR4SMEP) != 0 {
		var ok bool
		if pdpte, ok = mmu.LoadPDPTE(c.ram, c.cr3); !ok {
			return c.raiseCode(x86.GP, 0)
		}
	}
	c.cr4 = v
	c.spaceChanged(pdpte)
	if changed&(x86.CR4PSE|x86.CR4PAE|x86.CR4PGE|x86.CR4PCIDE|x86.CR4SMEP|x86.CR4SMAP|x86.CR4LA57) != 0 {
		c.tlbs.flushAll()
		pcid := uint16(0)
		if v&x86.CR4PCIDE != 0 {
			pcid = uint16(c.cr3 & 0xFFF)
		}
		c.tlbs.cur = c.tlbs.space(pcid)
	}
	c.selectTLB()
	c.vecChanged()
	return true
}

// spaceChanged derives how addresses are translated.
func (c *CPU) spaceChanged(pdpte [4]uint64) {
	c.space = mmu.NewSpace(c.cr0, c.cr3, c.cr4, c.efer)
	c.space.PDPTE = pdpte
}

// modeChanged derives what segment registers, CR0, EFER and CPL say about the code that follows. Who changes CPL has set it.
func (c *CPU) modeChanged() {
	c.long = c.efer&x86.EFERLMA != 0
	cs := &c.seg[x86.CS]
	switch {
	case c.real():
		c.cpl = 0
	case c.v86():
		c.cpl = 3
	}
	switch {
	case c.long && cs.Access&x86.SegLong != 0:
		c.mode = decode.Mode64
	case cs.Access&x86.SegBig != 0 && !c.v86():
		c.mode = decode.Mode32
	default:
		c.mode = decode.Mode16
	}
	c.flat = c.mode == decode.Mode64
	if c.mode == decode.Mode32 {
		c.flat = true
		for _, r := range [...]int{x86.CS, x86.DS, x86.ES, x86.SS} {
			s := &c.seg[r]
			c.flat = c.flat && s.Base == 0 && s.Limit == 0xFFFFFFFF && s.Access&(x86.SegPresent|x86.SegCode|x86.SegDown|x86.SegWritable) == x86.SegPresent|x86.SegWritable ||
				r == x86.CS && s.Base == 0 && s.Limit == 0xFFFFFFFF
		}
	}
	c.step = c.flags&x86.TF != 0 || c.dr[7]&0xFF != 0
	c.syncCode()
	c.selectTLB()
}

// Bits of DR6 and DR7.
const (
	dr6BD   = 1 << 13
	dr6BS   = 1 << 14
	dr6Ones = 0xFFFF0FF0
	dr7GD   = 1 << 13
	dr7Ones = 1 << 10
	dr7Bits = 0xFFFF23FF | dr7Ones // bits that can be set
)

// movDR is MOV to and from a debug register.
func movDR(c *CPU, o *op) bool {
	d, s := o.inst.Args[0], o.inst.Args[1]
	r := &s
	if d.Kind == decode.DReg {
		r = &d
	}
	n := r.Reg
	if n == 4 || n == 5 {
		if c.cr4&x86.CR4DE != 0 {
			return c.raise(x86.UD)
		}
		n += 2
	}
	if n > 7 {
		return c.raise(x86.UD)
	}
	if c.dr[7]&dr7GD != 0 {
		c.dr[6] |= dr6BD
		return c.raise(x86.DB)
	}
	size := 4
	if c.mode == decode.Mode64 {
		size = 8
	}
	if r == &s {
		c.setReg(d.Reg, size, c.dr[n])
		return true
	}
	v := c.getReg(s.Reg, size)
	switch n {
	case 6:
		if v>>32 != 0 {
			return c.raiseCode(x86.GP, 0)
		}
		v = v&0xE00F | dr6Ones
	case 7:
		if v>>32 != 0 {
			return c.raiseCode(x86.GP, 0)
		}
		v = v&dr7Bits | dr7Ones
	}
	c.dr[n] = v
	if n != 6 {
		c.tlbs.flushAll() // Pages with a watched byte are never remembered.
		c.modeChanged()
	}
	return true
}

// breakpoint is number i of the debug registers, where it is armed: what it waits for (0 execution, 1 writes, 2 ports, 3 reads and writes).
func (c *CPU) breakpoint(i int) (kind uint64, addr, size uint64, armed bool) {
	dr7 := c.dr[7]
	if dr7>>(2*i)&3 == 0 {
		return 0, 0, 0, false
	}
	kind = dr7 >> (16 + 4*i) & 3
	size = [4]uint64{1, 2, 8, 4}[dr7>>(18+4*i)&3]
	return kind, c.dr[i] &^ (size - 1), size, true
}

// watches tells whether the page of va has a byte that a data breakpoint watches.
func (c *CPU) watches(va uint64) bool {
	if c.dr[7]&0xFF == 0 {
		return false
	}
	for i := range 4 {
		if kind, addr, _, ok := c.breakpoint(i); ok && kind&1 != 0 && (addr^va)>>12 == 0 {
			return true
		}
	}
	return false
}

// watch notes which data breakpoints an access hits; the trap comes behind the instruction.
func (c *CPU) watch(va, n uint64, write bool) {
	if c.dr[7]&0xFF == 0 {
		return
	}
	for i := range 4 {
		kind, addr, size, ok := c.breakpoint(i)
		if ok && (kind == 3 || kind == 1 && write) && va < addr+size && addr < va+n {
			c.dbHits |= 1 << i
		}
	}
}

// watchPort likewise notes I/O breakpoints.
func (c *CPU) watchPort(port, n uint64) {
	if c.dr[7]&0xFF == 0 || c.cr4&x86.CR4DE == 0 {
		return
	}
	for i := range 4 {
		kind, addr, size, ok := c.breakpoint(i)
		if ok && kind == 2 && port < addr+size && addr < port+n {
			c.dbHits |= 1 << i
		}
	}
}

// beforeStep looks for instruction breakpoints, where c.step is set. It returns false with the #DB raised.
func (c *CPU) beforeStep() bool {
	c.dbHits, c.dbHeld = c.dbHeld, 0
	c.noTrap, c.tf = false, c.flags&x86.TF != 0
	if c.flags&x86.RF != 0 {
		c.flags &^= x86.RF
		return true
	}
	lin := c.rip
	if c.mode != decode.Mode64 {
		lin = (lin + c.seg[x86.CS].Base) & 0xFFFFFFFF
	}
	var hits uint64
	for i := range 4 {
		if kind, _, _, ok := c.breakpoint(i); ok && kind == 0 && c.dr[i] == lin {
			hits |= 1 << i
		}
	}
	if hits == 0 {
		return true
	}
	c.dr[6] = c.dr[6]&^0xF | hits | c.dbHits
	return c.raise(x86.DB)
}

// afterStep raises the debug trap that the instruction just executed has earned. It returns false with the #DB raised.
func (c *CPU) afterStep() bool {
	hits := c.dbHits
	if c.noTrap { // SDM vol. 3A 6.8.3
		c.dbHeld = hits
		return true
	}
	if c.tf {
		hits |= dr6BS
	}
	if hits == 0 {
		return true
	}
	c.dr[6] = c.dr[6]&^0xF | hits
	c.raise(x86.DB)
	c.fault.trap = true
	return false
}
