package difftest

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
)

// interesting is a number that is a corner for something: integers of all widths, floats of both, packed ones.
func interesting(rng *rand.Rand) uint64 {
	switch rng.IntN(8) {
	case 0:
		return corner64[rng.IntN(len(corner64))]
	case 1:
		return uint64(int64(int8(rng.Uint32())))
	case 2:
		return corner64[rng.IntN(len(corner64))]&0xFFFFFFFF | uint64(floats32[rng.IntN(len(floats32))])<<32
	case 3:
		return uint64(floats32[rng.IntN(len(floats32))]) | uint64(rng.Uint32())<<32
	case 4:
		return math.Float64bits(float64(int32(rng.Uint32())) / float64(1+rng.IntN(1000)))
	case 5:
		return rng.Uint64() >> rng.IntN(64)
	}
	return rng.Uint64()
}

var corner64 = []uint64{
	0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, ^uint64(0),
	0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF0000000000001, 0x7FEFFFFFFFFFFFFF, 1, 0x0010000000000000, 0x000FFFFFFFFFFFFF,
	0x3FF0000000000000, 0xBFF0000000000000, 0x4340000000000000, 0xC3E0000000000000, 0x41DFFFFFFFC00000, 0x3FE0000000000000, 0x7FF4DEADBEEF0001,
}

var floats32 = []uint32{
	0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFA00000, 0x7F7FFFFF, 0x00800000, 0x007FFFFF, 1, 0x80000001,
	0x4F000000, 0xCF000000, 0x4EFFFFFF, 0x5F000000, 0x3F000000, 0x3FC00000, 0x40490FDB, 0x33800000, 0x0C000000,
}

// float80 is an 80-bit number: sign and exponent, significand.
func float80(rng *rand.Rand) (uint16, uint64) {
	se, m := uint16(rng.Uint32()), rng.Uint64()|1<<63
	switch rng.IntN(10) {
	case 0:
		return se & 0x8000, 0
	case 1:
		return se&0x8000 | 0x7FFF, 1 << 63
	case 2:
		return se | 0x7FFF, m // NaN, quiet or not
	case 3:
		return se & 0x8000, m &^ (1 << 63) >> rng.IntN(40) // denormal
	case 4:
		if rng.IntN(4) == 0 {
			return se, m &^ (1 << 63) // no number at all
		}
	case 5:
		return se&0x8000 | 0x3FFF, 1 << 63
	case 6:
		return se&0x8000 | uint16(0x3FFF+rng.IntN(66)), m & (^uint64(0) << rng.IntN(64))
	}
	return se&0x8000 | uint16(0x3FFF-40+rng.IntN(80)), m
}

// RandomState fills in the registers of a case: pointers into the data where memory operands and strings want them.
func (c *Case) randomState(rng *rand.Rand) {
	c.Seed = rng.Uint64()
	for i := range 16 {
		c.Regs[i] = interesting(rng)
	}
	for _, r := range pointers {
		c.Regs[r] = dataAddress(rng)
	}
	if rng.IntN(4) != 0 {
		c.Regs[1] = uint64(rng.IntN(70)) // rCX counts
	}
	c.Regs[4] = dataVA + 0x800 + uint64(rng.IntN(0x100))*16
	c.Regs[regFlags] = 0x202 | uint64(rng.Uint32())&0x8D5
	if rng.IntN(4) == 0 {
		c.Regs[regFlags] |= 0x400
	}
	c.Regs[regFS], c.Regs[regGS] = uint64(rng.IntN(64)), uint64(rng.IntN(4))*16
	if c.Bits == 32 {
		c.Regs[regFS], c.Regs[regGS] = 0, 0
		for i := range 8 {
			c.Regs[i] &= 0xFFFFFFFF
		}
	}
	c.randomFX(rng)
}

// pointers are the registers that begin as addresses of data.
var pointers = []int{3, 5, 6, 7, 8, 13}

func dataAddress(rng *rand.Rand) uint64 {
	switch rng.IntN(16) {
	case 0:
		switch rng.IntN(5) {
		case 0: // into what cannot be written
			return roVA - uint64(rng.IntN(32))
		case 1:
			return roVA + uint64(rng.IntN(pageSize))
		case 2:
			return roVA + pageSize - uint64(rng.IntN(32))
		case 3:
			return dataVA - uint64(rng.IntN(32))
		}
		fallthrough
	case 1: // across pages
		return dataVA + pageSize - uint64(rng.IntN(32))
	case 2, 3, 4:
		return dataVA + uint64(rng.IntN(2*pageSize-64))
	}
	return dataVA + uint64(rng.IntN(2*pageSize-64))&^15
}

func (c *Case) randomFX(rng *rand.Rand) {
	le := binary.LittleEndian
	fcw, mxcsr := uint16(0x37F), uint32(0x1F80)
	if rng.IntN(3) == 0 {
		fcw |= uint16(rng.Uint32()) & 0xF00
	}
	if rng.IntN(10) == 0 {
		fcw &^= uint16(rng.Uint32()) & 0x3F
	}
	if rng.IntN(2) == 0 {
		mxcsr |= rng.Uint32() & 0xE07F // rounding, FTZ, DAZ, flags
	}
	if rng.IntN(12) == 0 {
		mxcsr &^= rng.Uint32() & 0x1F80
		mxcsr &^= 0x3F
	}
	le.PutUint16(c.FX[0:], fcw)
	le.PutUint16(c.FX[2:], uint16(rng.IntN(8))<<11|uint16(rng.Uint32())&0x4700)
	c.FX[4] = uint8(rng.Uint32() | rng.Uint32())
	le.PutUint32(c.FX[24:], mxcsr)
	le.PutUint32(c.FX[28:], 0xFFFF)
	for i := range 8 {
		se, m := float80(rng)
		le.PutUint64(c.FX[32+16*i:], m)
		le.PutUint16(c.FX[40+16*i:], se)
	}
	for i := range 16 {
		word := func() uint64 { return interesting(rng) }
		switch rng.IntN(6) {
		case 0: // small numbers: indices and counts
			word = func() uint64 { return uint64(rng.Uint32())&0x3F | uint64(rng.Uint32())&0x3F<<32*uint64(rng.IntN(2)) }
		case 1: // masks
			word = func() uint64 {
				return uint64(rng.IntN(2))<<63 | uint64(rng.IntN(2))<<31 | rng.Uint64()&0x7FFFFFFF7FFFFFFF
			}
		}
		le.PutUint64(c.FX[160+16*i:], word())
		le.PutUint64(c.FX[168+16*i:], word())
		if components()&4 != 0 {
			le.PutUint64(c.YMM[16*i:], word())
			le.PutUint64(c.YMM[16*i+8:], word())
		}
	}
}
