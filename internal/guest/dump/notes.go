package dump

import (
	"bytes"

	"vitrine.dev/vitrine/internal/x86"
)

// readNotes takes what is of use: QEMU's notes, which have all registers, and the kernel's own.
func (d *File) readNotes(b []byte) {
	for len(b) >= 12 {
		nameSize, size, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[12:]
		at := (nameSize + 3) &^ 3
		if at > uint64(len(b)) || size > uint64(len(b))-at {
			return
		}
		name, desc := string(bytes.TrimRight(b[:nameSize], "\x00")), b[at:at+size]
		b = b[min(at+(size+3)&^3, uint64(len(b))):]
		switch {
		case name == "QEMU" && kind == 0 && len(d.regs) < maxCPUs:
			d.regs = append(d.regs, decodeQEMU(desc))
		case name == "VMCOREINFO":
			d.info = bytes.Clone(desc)
		}
	}
}

// QEMU's state of a CPU: struct QEMUCPUState of target/i386/arch_dump.c, version 1.
const (
	qemuVersion  = 1
	qemuSize     = 440
	qemuGPR      = 8
	qemuRIP      = qemuGPR + 16*8
	qemuRFLAGS   = qemuRIP + 8
	qemuSegments = qemuRFLAGS + 8
	qemuSegment  = 24 // selector, limit, flags, padding, base
	qemuCR       = qemuSegments + 10*qemuSegment
	qemuKernelGS = qemuCR + 5*8
)

// The orders in which it has the registers.
var (
	qemuGPRs = [16]int{x86.RAX, x86.RBX, x86.RCX, x86.RDX, x86.RSI, x86.RDI, x86.RSP, x86.RBP,
		x86.R8, x86.R9, x86.R10, x86.R11, x86.R12, x86.R13, x86.R14, x86.R15}
	qemuSegs = [6]int{x86.CS, x86.DS, x86.ES, x86.FS, x86.GS, x86.SS}
)

// decodeQEMU gives nil for a state that is not as expected, or of a CPU that does not run in pages yet.
func decodeQEMU(b []byte) *x86.Regs {
	if len(b) < qemuKernelGS || le.Uint32(b) != qemuVersion {
		return nil
	}
	r := &x86.Regs{RIP: le.Uint64(b[qemuRIP:]), RFLAGS: le.Uint64(b[qemuRFLAGS:])}
	for i, n := range qemuGPRs {
		r.GPR[n] = le.Uint64(b[qemuGPR+8*i:])
	}
	segment := func(i int) x86.Segment {
		s := b[qemuSegments+i*qemuSegment:]
		// Flags are the upper word of a descriptor.
		return x86.Segment{Selector: uint16(le.Uint32(s)), Limit: le.Uint32(s[4:]), Access: uint16(le.Uint32(s[8:])>>8) & 0xF0FF, Base: le.Uint64(s[16:])}
	}
	for i, n := range qemuSegs {
		r.Seg[n] = segment(i)
	}
	r.LDTR, r.TR = segment(6), segment(7)
	gdt, idt := segment(8), segment(9)
	r.GDTR = x86.Table{Base: gdt.Base, Limit: uint16(gdt.Limit)}
	r.IDTR = x86.Table{Base: idt.Base, Limit: uint16(idt.Limit)}
	r.CR0, r.CR2, r.CR3, r.CR4 = le.Uint64(b[qemuCR:]), le.Uint64(b[qemuCR+16:]), le.Uint64(b[qemuCR+24:]), le.Uint64(b[qemuCR+32:])
	if len(b) >= qemuSize {
		r.KernelGSBase = le.Uint64(b[qemuKernelGS:])
	}
	if r.CR0&x86.CR0PG == 0 {
		return nil
	}
	if r.CR4&x86.CR4PAE != 0 {
		r.EFER = x86.EFERLME | x86.EFERLMA // not in the note; the file's machine is x86-64
	}
	return r
}

func encodeQEMU(r *x86.Regs) []byte {
	b := make([]byte, qemuSize)
	le.PutUint32(b, qemuVersion)
	le.PutUint32(b[4:], qemuSize)
	for i, n := range qemuGPRs {
		le.PutUint64(b[qemuGPR+8*i:], r.GPR[n])
	}
	le.PutUint64(b[qemuRIP:], r.RIP)
	le.PutUint64(b[qemuRFLAGS:], r.RFLAGS)
	segment := func(i int, s x86.Segment) {
		p := b[qemuSegments+i*qemuSegment:]
		le.PutUint32(p, uint32(s.Selector))
		le.PutUint32(p[4:], s.Limit)
		le.PutUint32(p[8:], uint32(s.Access)<<8)
		le.PutUint64(p[16:], s.Base)
	}
	for i, n := range qemuSegs {
		segment(i, r.Seg[n])
	}
	segment(6, r.LDTR)
	segment(7, r.TR)
	segment(8, x86.Segment{Base: r.GDTR.Base, Limit: uint32(r.GDTR.Limit)})
	segment(9, x86.Segment{Base: r.IDTR.Base, Limit: uint32(r.IDTR.Limit)})
	for i, v := range []uint64{r.CR0, 0, r.CR2, r.CR3, r.CR4} {
		le.PutUint64(b[qemuCR+8*i:], v)
	}
	le.PutUint64(b[qemuKernelGS:], r.KernelGSBase)
	return b
}

// The kernel's struct elf_prstatus of x86-64 (include/linux/elfcore.h): what crash and gdb read.
const (
	prstatusSize = 336
	prstatusPID  = 32
	prstatusRegs = 112
)

func encodePRStatus(cpu int, r *x86.Regs) []byte {
	b := make([]byte, prstatusSize)
	le.PutUint32(b[prstatusPID:], uint32(cpu+1))
	g := &r.GPR
	for i, v := range []uint64{ // struct user_regs_struct
		g[x86.R15], g[x86.R14], g[x86.R13], g[x86.R12], g[x86.RBP], g[x86.RBX], g[x86.R11], g[x86.R10], g[x86.R9], g[x86.R8],
		g[x86.RAX], g[x86.RCX], g[x86.RDX], g[x86.RSI], g[x86.RDI], g[x86.RAX], r.RIP, uint64(r.Seg[x86.CS].Selector), r.RFLAGS,
		g[x86.RSP], uint64(r.Seg[x86.SS].Selector), r.Seg[x86.FS].Base, r.Seg[x86.GS].Base, uint64(r.Seg[x86.DS].Selector),
		uint64(r.Seg[x86.ES].Selector), uint64(r.Seg[x86.FS].Selector), uint64(r.Seg[x86.GS].Selector),
	} {
		le.PutUint64(b[prstatusRegs+8*i:], v)
	}
	return b
}
