package interp

import (
	"encoding/binary"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// IN, OUT, INS and OUTS (SDM vol. 1 chapter 19).

// portAllowed checks CPL against IOPL and then the TSS's I/O bitmap. It raises the #GP(0) itself.
func (c *CPU) portAllowed(port uint64, size int) bool {
	if c.real() || c.iopl() && !c.v86() {
		return true
	}
	if c.tr.Access&0xD != sysTSS { // only 32- and 64-bit TSSs have a bitmap
		return c.raiseCode(x86.GP, 0)
	}
	if c.tr.Limit < 103 {
		return c.raiseCode(x86.GP, 0)
	}
	at, ok := c.sysLoad(c.tr.Base+102, 2)
	if !ok {
		return false
	}
	at += port / 8
	if at+1 > uint64(c.tr.Limit) {
		return c.raiseCode(x86.GP, 0)
	}
	w, ok := c.sysLoad(c.tr.Base+at, 2)
	if !ok {
		return false
	}
	if w>>(port&7)&(1<<size-1) != 0 {
		return c.raiseCode(x86.GP, 0)
	}
	return true
}

func (c *CPU) readPort(port uint16, p []byte) {
	c.stats.ports++
	c.watchPort(uint64(port), uint64(len(p)))
	c.park()
	c.io.ReadPort(port, p)
	c.unpark()
}

func (c *CPU) writePort(port uint16, p []byte) {
	c.stats.ports++
	c.watchPort(uint64(port), uint64(len(p)))
	c.park()
	c.io.WritePort(port, p)
	c.unpark()
	c.checkPending()
}

// port is the operand of IN and OUT that is not rAX.
func (c *CPU) port(a decode.Arg, imm int64) uint64 {
	if a.Kind == decode.Imm {
		return uint64(imm) & 0xFF
	}
	return c.gpr[x86.RDX] & 0xFFFF
}

func portIn(c *CPU, o *op) bool {
	size := int(o.inst.Args[0].Size)
	port := c.port(o.inst.Args[1], o.inst.Imm)
	if !c.portAllowed(port, size) {
		return false
	}
	var b [8]byte
	c.readPort(uint16(port), b[:size])
	c.setReg(x86.RAX, size, binary.LittleEndian.Uint64(b[:]))
	return true
}

func portOut(c *CPU, o *op) bool {
	size := int(o.inst.Args[1].Size)
	port := c.port(o.inst.Args[0], o.inst.Imm)
	if !c.portAllowed(port, size) {
		return false
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], c.gpr[x86.RAX])
	c.writePort(uint16(port), b[:size])
	return true
}

// repeat runs body once, or as often as rCX says where there is a REP prefix, and stops between two elements for events.
func (c *CPU) repeat(o *op, body func() bool) bool {
	in := o.inst
	if in.Prefix&(decode.RepE|decode.RepNE) == 0 {
		return body()
	}
	size := int(in.AddrSize)
	for {
		n := c.getReg(x86.RCX, size)
		if n == 0 {
			return true
		}
		if !body() {
			return false
		}
		c.setReg(x86.RCX, size, n-1)
		if n == 1 {
			return true
		}
		if c.step || c.poll.Load() != 0 {
			c.stop = stopAgain
			return false
		}
	}
}

// advanceIO moves rSI or rDI by one element.
func (c *CPU) advanceIO(reg uint8, o *op, size int) {
	n := int(o.inst.AddrSize)
	d := uint64(size)
	if c.flags&x86.DF != 0 {
		d = -d
	}
	c.setReg(reg, n, c.getReg(reg, n)+d)
}

func ins(c *CPU, o *op) bool {
	size := int(o.inst.Size)
	port := c.gpr[x86.RDX] & 0xFFFF
	if !c.portAllowed(port, size) {
		return false
	}
	return c.repeat(o, func() bool {
		va, ok := c.linear(x86.ES, c.getReg(x86.RDI, int(o.inst.AddrSize)), uint64(size), true)
		// The port is read once: what can fault comes first.
		if !ok || !c.probeWrite(va, uint64(size)) {
			return false
		}
		var b [8]byte
		c.readPort(uint16(port), b[:size])
		if !c.storeN(va, b[:size]) {
			return false
		}
		c.advanceIO(x86.RDI, o, size)
		return true
	})
}

func outs(c *CPU, o *op) bool {
	size := int(o.inst.Size)
	port := c.gpr[x86.RDX] & 0xFFFF
	if !c.portAllowed(port, size) {
		return false
	}
	return c.repeat(o, func() bool {
		va, ok := c.linear(o.inst.Seg, c.getReg(x86.RSI, int(o.inst.AddrSize)), uint64(size), false)
		if !ok {
			return false
		}
		var b [8]byte
		if !c.loadN(va, b[:size]) {
			return false
		}
		c.writePort(uint16(port), b[:size])
		c.advanceIO(x86.RSI, o, size)
		return true
	})
}
