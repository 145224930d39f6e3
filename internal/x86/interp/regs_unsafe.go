package interp

// The invariants of this file: gpr is CPU's first field and 256 bytes long, so that a byte offset below 249 names eight bytes of it;
// an op is part of an array in which another follows.

import (
	"unsafe"

	"vitrine.dev/vitrine/internal/x86"
)

func (c *CPU) r64(i uint8) *uint64 { return (*uint64)(unsafe.Add(unsafe.Pointer(c), uintptr(i))) }
func (c *CPU) r32(i uint8) *uint32 { return (*uint32)(unsafe.Add(unsafe.Pointer(c), uintptr(i))) }
func (c *CPU) r16(i uint8) *uint16 { return (*uint16)(unsafe.Add(unsafe.Pointer(c), uintptr(i))) }
func (c *CPU) r8(i uint8) *uint8   { return (*uint8)(unsafe.Add(unsafe.Pointer(c), uintptr(i))) }

// The writers follow x86's rule: 32 bits clear the upper half, 8 and 16 leave the rest.
func (c *CPU) w64(i uint8, v uint64) { *c.r64(i) = v }
func (c *CPU) w32(i uint8, v uint32) { *c.r64(i) = uint64(v) }
func (c *CPU) w16(i uint8, v uint16) { *c.r16(i) = v }
func (c *CPU) w8(i uint8, v uint8)   { *c.r8(i) = v }

// getReg is the low size bytes of general register reg.
func (c *CPU) getReg(reg uint8, size int) uint64 { return c.gpr[reg&15] & sizeMask(size) }

// setReg writes the low size bytes of general register reg.
func (c *CPU) setReg(reg uint8, size int, v uint64) {
	r := &c.gpr[reg&15]
	switch size {
	case 1:
		*r = *r&^0xFF | v&0xFF
	case 2:
		*r = *r&^0xFFFF | v&0xFFFF
	case 4:
		*r = v & 0xFFFFFFFF
	default:
		*r = v
	}
}

// loc reads the size bytes at byte offset i of the registers (AH to BH have one of their own); setLoc writes them.
func (c *CPU) loc(i uint8, size int) uint64 { return *c.r64(i &^ 1) >> (i & 1 * 8) & sizeMask(size) }

func (c *CPU) setLoc(i uint8, size int, v uint64) {
	if size == 1 {
		*c.r8(i) = uint8(v)
		return
	}
	c.setReg(i/8, size, v)
}

// sizeMask has the low 8*size bits set.
func sizeMask(size int) uint64 { return ^uint64(0) >> (64 - 8*uint(size)) }

const (
	offRAX = x86.RAX * 8
	offRCX = x86.RCX * 8
	offRDX = x86.RDX * 8
)

// after is the op behind o.
func (o *op) after() *op { return (*op)(unsafe.Add(unsafe.Pointer(o), unsafe.Sizeof(*o))) }

// first is b's first op, or where it would be.
func (b *block) first() *op { return unsafe.SliceData(b.ops) }
