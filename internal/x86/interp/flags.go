package interp

import (
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
)

// lazyFlags are the operands and the result of the last instruction that set the status flags, each sign-extended to 64 bits from the
// operation's size. So extended, one formula serves all sizes: sign extension keeps the order of unsigned numbers and puts the sign in bit 63.
type lazyFlags struct {
	res  uint64
	a, b uint64
	kind ccKind
}

// ccKind says how flags follow from lazyFlags.
type ccKind uint8

const (
	ccFlags ccKind = iota // all six are in b, as in RFLAGS
	ccRes                 // CF, AF and OF are in b; SF, ZF and PF are res's
	ccAdd                 // res = a + b
	ccAdc                 // res = a + b + 1
	ccSub                 // res = a - b
	ccSbb                 // res = a - b - 1
	ccInc                 // res = a + 1; CF is b's bit 0
	ccDec                 // res = a - 1; CF is b's bit 0
)

// rflags is RFLAGS, all of it.
func (c *CPU) rflags() uint64 { return c.flags | c.status() }

// setRflags sets all of RFLAGS. Bits that do not exist are dropped, bit 1 is set.
// Call refresh afterwards where TF or VM may have changed.
func (c *CPU) setRflags(v uint64) {
	const known = x86.Status | x86.TF | x86.IF | x86.DF | x86.IOPL | x86.NT | x86.RF | x86.VM | x86.AC | x86.VIF | x86.VIP | x86.ID
	c.flags = v&(known&^x86.Status) | x86.Fixed
	c.cc = lazyFlags{b: v & x86.Status}
}

// setStatus sets the six status flags to those of v.
func (c *CPU) setStatus(v uint64) {
	c.cc.kind = ccFlags
	c.cc.b = v & x86.Status
}

// status computes the six status flags.
func (c *CPU) status() uint64 {
	f := &c.cc
	if f.kind == ccFlags {
		return f.b
	}
	return f.szp() | c.coa()
}

// szp is SF, ZF and PF of the result.
func (f *lazyFlags) szp() uint64 {
	v := f.res >> 63 * x86.SF
	if f.res == 0 {
		v |= x86.ZF
	}
	if bits.OnesCount8(uint8(f.res))&1 == 0 {
		v |= x86.PF
	}
	return v
}

// coa is CF, OF and AF.
func (c *CPU) coa() uint64 {
	f := &c.cc
	var v, af, of uint64
	switch f.kind {
	case ccAdd:
		af, of = f.a^f.b^f.res, (f.a^f.res)&(f.b^f.res)
		if f.res < f.a {
			v = x86.CF
		}
	case ccAdc:
		af, of = f.a^f.b^f.res, (f.a^f.res)&(f.b^f.res)
		if f.res <= f.a {
			v = x86.CF
		}
	case ccSub:
		af, of = f.a^f.b^f.res, (f.a^f.b)&(f.a^f.res)
		if f.a < f.b {
			v = x86.CF
		}
	case ccSbb:
		af, of = f.a^f.b^f.res, (f.a^f.b)&(f.a^f.res)
		if f.a <= f.b {
			v = x86.CF
		}
	case ccInc:
		af, of, v = f.a^f.res^1, f.res&^f.a, f.b&1
	case ccDec:
		af, of, v = f.a^f.res^1, f.a&^f.res, f.b&1
	default:
		return f.b & (x86.CF | x86.AF | x86.OF)
	}
	return v | af&x86.AF | of>>63*x86.OF
}

// toBits puts CF, AF and OF into cc.b, so that single flags can be changed there.
func (c *CPU) toBits() {
	if c.cc.kind > ccRes {
		c.cc.b = c.coa()
		c.cc.kind = ccRes
	}
}

// setCF changes CF alone.
func (c *CPU) setCF(on bool) {
	c.toBits()
	c.cc.b &^= x86.CF
	if on {
		c.cc.b |= x86.CF
	}
}

// setCO changes CF and OF: those of v.
func (c *CPU) setCO(v uint64) {
	c.toBits()
	c.cc.b = c.cc.b&^(x86.CF|x86.OF) | v
}

func (c *CPU) cf() bool {
	f := &c.cc
	switch f.kind {
	case ccAdd:
		return f.res < f.a
	case ccAdc:
		return f.res <= f.a
	case ccSub:
		return f.a < f.b
	case ccSbb:
		return f.a <= f.b
	}
	return f.b&x86.CF != 0 // ccInc and ccDec have CF at its own place too
}

// cfBit is CF as a number.
func (c *CPU) cfBit() uint64 {
	if c.cf() {
		return 1
	}
	return 0
}

func (c *CPU) zf() bool {
	if c.cc.kind == ccFlags {
		return c.cc.b&x86.ZF != 0
	}
	return c.cc.res == 0
}

func (c *CPU) sf() bool {
	if c.cc.kind == ccFlags {
		return c.cc.b&x86.SF != 0
	}
	return int64(c.cc.res) < 0
}

func (c *CPU) pf() bool {
	if c.cc.kind == ccFlags {
		return c.cc.b&x86.PF != 0
	}
	return bits.OnesCount8(uint8(c.cc.res))&1 == 0
}

func (c *CPU) of() bool {
	f := &c.cc
	switch f.kind {
	case ccAdd, ccAdc:
		return int64((f.a^f.res)&(f.b^f.res)) < 0
	case ccSub, ccSbb:
		return int64((f.a^f.b)&(f.a^f.res)) < 0
	case ccInc:
		return int64(f.res&^f.a) < 0
	case ccDec:
		return int64(f.a&^f.res) < 0
	}
	return f.b&x86.OF != 0
}

func (c *CPU) below() bool { return c.cf() || c.zf() } // unsigned, or equal

func (c *CPU) less() bool {
	if c.cc.kind == ccSub {
		return int64(c.cc.a) < int64(c.cc.b)
	}
	return c.sf() != c.of()
}

func (c *CPU) lessEqual() bool {
	if c.cc.kind == ccSub {
		return int64(c.cc.a) <= int64(c.cc.b)
	}
	return c.zf() || c.sf() != c.of()
}

// cond tells whether condition cc (the low four bits of JCC's opcode, SDM vol. 2 appendix B) holds.
func (c *CPU) cond(cc uint8) bool {
	var v bool
	switch cc >> 1 & 7 {
	case 0:
		v = c.of()
	case 1:
		v = c.cf()
	case 2:
		v = c.zf()
	case 3:
		v = c.below()
	case 4:
		v = c.sf()
	case 5:
		v = c.pf()
	case 6:
		v = c.less()
	default:
		v = c.lessEqual()
	}
	return v != (cc&1 != 0)
}
