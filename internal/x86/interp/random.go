package interp

import (
	"crypto/rand"
	"encoding/binary"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// bindRandom binds RDRAND and RDSEED: numbers of the host's generator, which is never exhausted, so that CF is always set.
func bindRandom(bd *builder, in *decode.Inst, o *op) handler {
	o.dst, o.size = reg(in.Args[0]), in.Args[0].Size
	return func(c *CPU, o *op) bool {
		var b [8]byte
		rand.Read(b[:]) // it never fails: it ends the program instead
		c.setReg(o.dst/8, int(o.size), binary.LittleEndian.Uint64(b[:]))
		c.setStatus(x86.CF)
		return true
	}
}
