package interp

// Loads and stores of linear addresses. The handlers that matter for speed have the hit inlined (alu_gen.go); all else calls these.

func (c *CPU) load8(va uint64) (uint8, bool) {
	e := c.tlb.entry(va)
	if off := va - e.read; off <= pageSize-1 {
		return *e.at8(off), true
	}
	v, ok := c.slowLoad(va, 1)
	return uint8(v), ok
}

func (c *CPU) load16(va uint64) (uint16, bool) {
	e := c.tlb.entry(va)
	if off := va - e.read; off <= pageSize-2 {
		return *e.at16(off), true
	}
	v, ok := c.slowLoad(va, 2)
	return uint16(v), ok
}

func (c *CPU) load32(va uint64) (uint32, bool) {
	e := c.tlb.entry(va)
	if off := va - e.read; off <= pageSize-4 {
		return *e.at32(off), true
	}
	v, ok := c.slowLoad(va, 4)
	return uint32(v), ok
}

func (c *CPU) load64(va uint64) (uint64, bool) {
	e := c.tlb.entry(va)
	if off := va - e.read; off <= pageSize-8 {
		return *e.at64(off), true
	}
	return c.slowLoad(va, 8)
}

func (c *CPU) store8(va uint64, v uint8) bool {
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-1 {
		*e.at8(off) = v
		return true
	}
	return c.slowStore(va, uint64(v), 1)
}

func (c *CPU) store16(va uint64, v uint16) bool {
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-2 {
		*e.at16(off) = v
		return true
	}
	return c.slowStore(va, uint64(v), 2)
}

func (c *CPU) store32(va uint64, v uint32) bool {
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-4 {
		*e.at32(off) = v
		return true
	}
	return c.slowStore(va, uint64(v), 4)
}

func (c *CPU) store64(va uint64, v uint64) bool {
	e := c.tlb.entry(va)
	if off := va - e.write; off <= pageSize-8 {
		*e.at64(off) = v
		return true
	}
	return c.slowStore(va, v, 8)
}

// load reads size bytes (1, 2, 4, 8), zero-extended.
func (c *CPU) load(va, size uint64) (uint64, bool) {
	switch size {
	case 1:
		v, ok := c.load8(va)
		return uint64(v), ok
	case 2:
		v, ok := c.load16(va)
		return uint64(v), ok
	case 4:
		v, ok := c.load32(va)
		return uint64(v), ok
	}
	return c.load64(va)
}

// store writes the low size bytes (1, 2, 4, 8) of v.
func (c *CPU) store(va, v, size uint64) bool {
	switch size {
	case 1:
		return c.store8(va, uint8(v))
	case 2:
		return c.store16(va, uint16(v))
	case 4:
		return c.store32(va, uint32(v))
	}
	return c.store64(va, v)
}

// loadN fills p from va.
func (c *CPU) loadN(va uint64, p []byte) bool {
	e := c.tlb.entry(va)
	if off := va - e.read; off < pageSize && off+uint64(len(p)) <= pageSize {
		copy(p, e.bytes(off, uint64(len(p))))
		return true
	}
	return c.slowLoadN(va, p)
}

// storeN writes p at va, all of it or (a fault) nothing.
func (c *CPU) storeN(va uint64, p []byte) bool {
	e := c.tlb.entry(va)
	if off := va - e.write; off < pageSize && off+uint64(len(p)) <= pageSize {
		copy(e.bytes(off, uint64(len(p))), p)
		return true
	}
	return c.slowStoreN(va, p)
}
