package interp

import (
	"encoding/binary"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// VMASKMOV, VPMASKMOV and gathers touch only the elements that a mask's sign bits choose, each an access of its own, from the lowest on.

// bindMasked binds one of them.
func bindMasked(bd *builder, in *decode.Inst, o *op) handler {
	bd.keep(o)
	switch {
	case in.Flags&decode.VSIB != 0:
		return gather
	case in.Flags&decode.MemWrite != 0:
		return maskedStore
	}
	return maskedLoad
}

// elementSize is the bytes of an element of a masked move.
func elementSize(in *decode.Inst) uint64 {
	switch in.Op {
	case decode.VMASKMOVPD, decode.VPMASKMOVQ:
		return 8
	}
	return 4
}

// lane is the size bytes at offset off of v.
func lane(v *x86.YMM, off, size uint64) uint64 {
	return v[off>>3&3] >> (off & 7 * 8) & sizeMask(int(size))
}

func setLane(v *x86.YMM, off, size, x uint64) {
	sh := off & 7 * 8
	p, m := &v[off>>3&3], sizeMask(int(size))<<sh
	*p = *p&^m | x<<sh&m
}

// chosen tells whether the mask's element at off has its sign bit set.
func chosen(mask *x86.YMM, off, size uint64) bool { return lane(mask, off+size-1, 1)&0x80 != 0 }

func maskedLoad(c *CPU, o *op) bool {
	if !c.checkAVX() {
		return false
	}
	in := &o.inst.Inst
	mask, es := &c.fpu.Vec[in.Args[1].Reg&15], elementSize(in)
	base := c.offset(o)
	var v x86.YMM
	for off := uint64(0); off < uint64(in.Args[0].Size); off += es {
		if chosen(mask, off, es) {
			x, ok := c.loadElement(in, base+off, es)
			if !ok {
				return false
			}
			setLane(&v, off, es, x)
		}
	}
	c.fpu.Vec[in.Args[0].Reg&15] = v
	return true
}

// loadElement reads size bytes at offset off of in's segment.
func (c *CPU) loadElement(in *decode.Inst, off, size uint64) (uint64, bool) {
	va, ok := c.linear(in.Mem.Seg, off, size, false)
	if !ok {
		return 0, false
	}
	var p [8]byte
	if !c.loadN(va, p[:size]) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(p[:]), true
}

func maskedStore(c *CPU, o *op) bool {
	if !c.checkAVX() {
		return false
	}
	in := &o.inst.Inst
	mask, v, es := &c.fpu.Vec[in.Args[1].Reg&15], &c.fpu.Vec[in.Args[2].Reg&15], elementSize(in)
	base := c.offset(o)
	var at [8]uint64
	for i := range uint64(in.Args[0].Size) / es { // all or nothing
		if !chosen(mask, i*es, es) {
			continue
		}
		va, ok := c.linear(in.Mem.Seg, base+i*es, es, true)
		if !ok || !c.probeWrite(va, es) {
			return false
		}
		at[i&7] = va
	}
	for i := range uint64(in.Args[0].Size) / es {
		if chosen(mask, i*es, es) {
			var p [8]byte
			binary.LittleEndian.PutUint64(p[:], lane(v, i*es, es))
			if !c.storeN(at[i&7], p[:es]) {
				return false
			}
		}
	}
	return true
}

// gather loads an element from each of the addresses that a vector makes. What a fault leaves done is done: elements before it are in the destination and their
// masks are clear, so that the instruction can go on from there (SDM vol. 2 VPGATHERDD).
func gather(c *CPU, o *op) bool {
	if !c.checkAVX() {
		return false
	}
	in := &o.inst.Inst
	dst, index, mask := &c.fpu.Vec[in.Args[0].Reg&15], &c.fpu.Vec[in.Mem.Index&15], &c.fpu.Vec[in.Args[2].Reg&15]
	es, is := uint64(in.Args[1].Size), uint64(4)
	if in.Opcode&1 != 0 {
		is = 8
	}
	base := c.gatherBase(o)
	n := uint64(in.Args[0].Size) / es
	for i := range n {
		if chosen(mask, i*es, es) {
			x := uint64(signed(lane(index, i*is, is), uint8(is)))
			v, ok := c.loadElement(in, (base+x*uint64(in.Mem.Scale))&sizeMask(int(in.AddrSize)), es)
			if !ok {
				return false
			}
			setLane(dst, i*es, es, v)
		}
		setLane(mask, i*es, es, 0)
	}
	*mask = x86.YMM{}
	for i := n * es / 8; i < 4; i++ {
		dst[i&3] = 0
	}
	return true
}

// gatherBase is a gather's address without its index.
func (c *CPU) gatherBase(o *op) uint64 {
	m := &o.inst.Mem
	if m.Base == decode.NoReg {
		return uint64(m.Disp)
	}
	return uint64(m.Disp) + c.gpr[m.Base&15]
}
