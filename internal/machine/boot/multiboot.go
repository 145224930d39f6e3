package boot

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Multiboot Specification 0.6.96, sections 3.1 to 3.3.
const (
	multibootSearch = 8192 // the header is in the file's first bytes
	multibootMagic  = 0x1BADB002
	multibootEAX    = 0x2BADB002

	mbPageAlign = 1 << 0 // modules begin on pages: they always do here
	mbMemory    = 1 << 1
	mbVideo     = 1 << 2  // wanted of a loader with a display; passed over, as QEMU does
	mbAddresses = 1 << 16 // the header says where what goes (the "a.out kludge")
	mbKnown     = mbPageAlign | mbMemory | mbVideo

	infoMemory  = 1 << 0
	infoBoot    = 1 << 1
	infoCmdline = 1 << 2
	infoModules = 1 << 3
	infoMap     = 1 << 6
	infoLoader  = 1 << 9

	maxModules = 64
)

// Where the information goes: to the end of conventional memory, so that images may be linked low, as real-mode programs are.
const (
	mbInfoAddr   mem.Addr = 0x90000
	mbListAddr   mem.Addr = 0x91000 // the modules, then the memory map
	mbStringAddr mem.Addr = 0x92000 // up to mbEnd
	mbEnd        mem.Addr = 0x9F000
	mbMaxStrings          = int(mbEnd - mbStringAddr)
	mbLowest              = gdtAddr + mem.PageSize
)

// A multibootHeader is the header and where it was found.
type multibootHeader struct {
	off   int64
	flags uint32
	// With mbAddresses:
	header, load, loadEnd, bssEnd, entry uint32
}

// findMultiboot looks for a header in a file's first bytes.
func findMultiboot(head []byte) (multibootHeader, bool) {
	le := binary.LittleEndian
	head = head[:min(len(head), multibootSearch)]
	for off := 0; off+12 <= len(head); off += 4 {
		h := head[off:]
		flags := le.Uint32(h[4:])
		if le.Uint32(h) != multibootMagic || uint32(multibootMagic)+flags+le.Uint32(h[8:]) != 0 {
			continue
		}
		m := multibootHeader{off: int64(off), flags: flags}
		if flags&mbAddresses != 0 {
			if len(h) < 32 {
				continue
			}
			m.header, m.load, m.loadEnd, m.bssEnd, m.entry = le.Uint32(h[12:]), le.Uint32(h[16:]), le.Uint32(h[20:]), le.Uint32(h[24:]), le.Uint32(h[28:])
		}
		return m, true
	}
	return multibootHeader{}, false
}

// multiboot loads the image, its modules behind it, and enters it in 32-bit mode.
func (l *loader) multiboot(h multibootHeader) (*x86.State, error) {
	if unknown := h.flags & 0xFFFF &^ mbKnown; unknown != 0 {
		return nil, fmt.Errorf("multiboot: it needs features %#x, which are not known", unknown)
	}
	var e *elfFile
	entry := uint64(h.entry)
	if h.flags&mbAddresses != 0 {
		s, err := h.segment(l.Kernel.Size)
		if err != nil {
			return nil, fmt.Errorf("multiboot: %w", err)
		}
		e = &elfFile{r: l.Kernel, loads: []segment{s}}
	} else {
		var err error
		if e, err = parseELF(l.Kernel, l.Kernel.Size); err != nil {
			return nil, fmt.Errorf("multiboot: no addresses in the header, and %w", err)
		}
		if e.class64 {
			if _, ok := e.note("Xen", notePhys32Entry); ok {
				return l.elf(e)
			}
			return nil, errors.New("multiboot: a 64-bit ELF; multiboot loads 32-bit ones")
		}
		var ok bool
		if entry, ok = e.physical(e.entry); !ok {
			return nil, fmt.Errorf("multiboot: entry point %#x is in no segment", e.entry)
		}
	}
	base, end, err := e.extent()
	if err != nil {
		return nil, err
	}
	if base < uint64(mbLowest) || base < layout.HighRAM && end > uint64(mbInfoAddr) {
		return nil, fmt.Errorf("multiboot: it is linked for addresses %#x to %#x, where the loader's tables are (below %#x, and %#x to 1 MiB)",
			base, end, uint64(mbLowest), uint64(mbInfoAddr))
	}
	if err := e.place(l.ram, 0); err != nil {
		return nil, err
	}
	if err := l.multibootInfo(max(end, layout.HighRAM)); err != nil {
		return nil, err
	}
	l.facts.Protocol, l.facts.Physical, l.facts.Size = Multiboot, mem.Addr(base), end-base
	s, err := enter32(l.ram, uint32(entry))
	if err == nil {
		s.GPR[x86.RAX] = multibootEAX
		s.GPR[x86.RBX] = uint64(mbInfoAddr)
	}
	return s, err
}

// segment is what the header's addresses say of a file of size bytes.
func (h *multibootHeader) segment(size int64) (segment, error) {
	if h.header < h.load || int64(h.header-h.load) > h.off {
		return segment{}, fmt.Errorf("header at %#x is not within what is loaded from %#x on", h.header, h.load)
	}
	s := segment{off: h.off - int64(h.header-h.load), phys: uint64(h.load)}
	s.size = size - s.off
	if h.loadEnd != 0 {
		if h.loadEnd < h.load || int64(h.loadEnd-h.load) > s.size {
			return segment{}, fmt.Errorf("load end %#x for %d bytes from %#x on: %w", h.loadEnd, s.size, h.load, errTruncated)
		}
		s.size = int64(h.loadEnd - h.load)
	}
	s.memSize = uint64(s.size)
	if h.bssEnd != 0 && uint64(h.bssEnd) > s.phys+s.memSize {
		s.memSize = uint64(h.bssEnd) - s.phys
	}
	if s.memSize == 0 {
		return segment{}, errors.New("nothing to load")
	}
	return s, nil
}

// multibootInfo writes the information structure, and the modules to pages from free on.
func (l *loader) multibootInfo(free uint64) error {
	le := binary.LittleEndian
	if len(l.Initrd) > maxModules {
		return fmt.Errorf("multiboot: %d modules, at most %d are passed on", len(l.Initrd), maxModules)
	}
	var strings []byte
	text := func(s string) (uint32, error) {
		at := uint32(mbStringAddr) + uint32(len(strings))
		strings = append(append(strings, s...), 0)
		if len(strings) > mbMaxStrings {
			return 0, fmt.Errorf("multiboot: command line and module names have more than %d bytes", mbMaxStrings)
		}
		return at, nil
	}
	cmdline := l.Kernel.Line
	if l.CommandLine != "" {
		cmdline += " " + l.CommandLine
	}
	cmdlineAt, err := text(cmdline)
	if err != nil {
		return err
	}
	loaderAt, _ := text("vitrine")

	var mods []byte
	for _, im := range l.Initrd {
		start := (free + mem.PageSize - 1) &^ (mem.PageSize - 1)
		size := uint64(im.Size)
		if start+size > uint64(mem.HoleStart) || !l.ram.Contains(mem.Addr(start), size) {
			return fmt.Errorf("initrd %s is %s, guest memory %s: use --memory %s", im.Name, mib(size), mib(l.ram.Size()), enough(start+size))
		}
		if err := l.ram.Fill(mem.Addr(start), size, func(p []byte, off int64) error { return readFull(im, p, off) }); err != nil {
			return fmt.Errorf("initrd %s: %w", im.Name, err)
		}
		name, err := text(im.Line)
		if err != nil {
			return err
		}
		for _, w := range []uint32{uint32(start), uint32(start + size), name, 0} {
			mods = le.AppendUint32(mods, w)
		}
		free = start + size
	}

	var mmap []byte
	for _, m := range layout.E820(l.ram.Size()) {
		mmap = le.AppendUint32(mmap, 20) // the size does not count itself
		mmap = le.AppendUint64(mmap, m.Base)
		mmap = le.AppendUint64(mmap, m.Size)
		mmap = le.AppendUint32(mmap, m.Type)
	}
	info := make([]byte, 120)
	flags := uint32(infoMemory | infoBoot | infoCmdline | infoMap | infoLoader)
	if len(mods) > 0 {
		flags |= infoModules
	}
	low := min(l.ram.Size(), uint64(mem.HoleStart))
	for i, w := range []uint32{
		flags,
		layout.EBDA >> 10,                         // KiB from 0 on
		uint32((low - layout.HighRAM) >> 10),      // KiB from 1 MiB on
		0x8000FFFF,                                // the boot device: the first disk, no partition (as QEMU has it)
		cmdlineAt,                                 //
		uint32(len(l.Initrd)), uint32(mbListAddr), // modules
		0, 0, 0, 0, // symbols
		uint32(len(mmap)), uint32(mbListAddr) + uint32(len(mods)),
		0, 0, 0, // drives, configuration table
		loaderAt,
	} {
		le.PutUint32(info[4*i:], w)
	}
	for _, w := range []struct {
		p []byte
		a mem.Addr
	}{{info, mbInfoAddr}, {append(mods, mmap...), mbListAddr}, {strings, mbStringAddr}} {
		if err := l.ram.WriteAt(w.p, w.a); err != nil {
			return err
		}
	}
	return nil
}
