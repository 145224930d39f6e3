package boot

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

const (
	notePhys32Entry = 18         // XEN_ELFNOTE_PHYS32_ENTRY
	startInfoMagic  = 0x336EC578 // XEN_HVM_START_MAGIC_VALUE
	maxCmdline      = int(seedAddr-cmdlineAddr) - 1
)

// elf boots an ELF file: by its PVH entry, or as an uncompressed Linux kernel by the 64-bit boot protocol.
func (l *loader) elf(e *elfFile) (*x86.State, error) {
	if len(l.CommandLine) > maxCmdline {
		return nil, fmt.Errorf("the command line has %d bytes, at most %d fit", len(l.CommandLine), maxCmdline)
	}
	desc, ok := e.note("Xen", notePhys32Entry)
	switch {
	case ok && len(desc) >= 4:
		return l.pvh(e, binary.LittleEndian.Uint32(desc)) // 8 bytes in 64-bit kernels; the entry is below 4 GiB all the same
	case !e.class64 || e.machine != elfX86_64:
		return nil, errors.New("a 32-bit ELF without a PVH entry or a multiboot header")
	}
	return l.vmlinux(e, bareSetup(), nil)
}

// bareSetup is the header that a vmlinux lacks, as its bzImage would have it.
func bareSetup() *setup {
	le := binary.LittleEndian
	h := &setup{raw: make([]byte, hdrEnd), cmdlineMax: maxCmdline, align: kernelAlign, above4G: true}
	le.PutUint16(h.raw[hdrBootFlag:], 0xAA55)
	copy(h.raw[hdrMagic:], "HdrS")
	le.PutUint16(h.raw[hdrVersion:], 0x20C)
	h.raw[hdrLoadFlags] = 1 // LOADED_HIGH
	le.PutUint32(h.raw[hdrAlign:], kernelAlign)
	le.PutUint32(h.raw[hdrCmdlineSize:], uint32(maxCmdline))
	le.PutUint16(h.raw[hdrXLoadFlags:], xlfKernel64|xlfAbove4G)
	return h
}

// pvh loads the segments where they are linked, and enters in 32-bit mode with the start information (start_info.h, version 1).
func (l *loader) pvh(e *elfFile, entry uint32) (*x86.State, error) {
	base, end, err := e.extent()
	if err != nil {
		return nil, err
	}
	if base < layout.HighRAM {
		return nil, fmt.Errorf("it is linked for address %#x, below 1 MiB", base)
	}
	if !free(l.ram, span{base, end - base}, span{}) {
		return nil, noRoom(base, end-base, l.ram)
	}
	h := bareSetup()
	h.above4G = false
	h.initrdMax = 1<<32 - 1
	initrd, err := l.placeInitrd(h, end-base)
	if err != nil {
		return nil, err
	}
	if !free(l.ram, span{base, end - base}, initrd) {
		return nil, fmt.Errorf("the kernel (%s) and the initrd (%s) do not fit: guest memory is %s: use --memory %s",
			mib(end-base), mib(initrd.size), mib(l.ram.Size()), enough(end+2*initrd.size))
	}
	if err := e.place(l.ram, 0); err != nil {
		return nil, err
	}

	le := binary.LittleEndian
	var list []byte // the module list, one entry, then the memory map
	info := make([]byte, 56)
	le.PutUint32(info, startInfoMagic)
	le.PutUint32(info[4:], 1)
	if initrd.size > 0 {
		le.PutUint32(info[12:], 1)
		le.PutUint64(info[16:], uint64(infoAddr))
		list = le.AppendUint64(list, initrd.base)
		list = le.AppendUint64(list, initrd.size)
		list = append(list, make([]byte, 16)...) // no command line
	}
	le.PutUint64(info[24:], uint64(cmdlineAddr))
	le.PutUint64(info[32:], uint64(l.RSDP))
	le.PutUint64(info[40:], uint64(infoAddr)+uint64(len(list)))
	e820 := layout.E820(l.ram.Size())
	le.PutUint32(info[48:], uint32(len(e820)))
	for _, m := range e820 {
		list = le.AppendUint64(list, m.Base)
		list = le.AppendUint64(list, m.Size)
		list = le.AppendUint64(list, uint64(m.Type)) // the types are E820's
	}
	for _, w := range []struct {
		p []byte
		a mem.Addr
	}{{info, zeroPage}, {list, infoAddr}, {append([]byte(l.CommandLine), 0), cmdlineAddr}} {
		if err := l.ram.WriteAt(w.p, w.a); err != nil {
			return nil, err
		}
	}
	l.facts.Protocol, l.facts.Physical, l.facts.Size = PVH, mem.Addr(base), end-base
	s, err := enter32(l.ram, entry)
	if err == nil {
		s.GPR[x86.RBX] = uint64(zeroPage)
	}
	return s, err
}
