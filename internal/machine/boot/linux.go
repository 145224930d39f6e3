package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"vitrine.dev/vitrine/internal/kernel/decompress"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

const (
	kernelAlign = 2 << 20  // a page table's large page: a kernel's beginning is a multiple of it
	lowestBase  = 16 << 20 // LOAD_PHYSICAL_ADDR as every distribution has it
	entry64     = 0x200    // the 64-bit entry point in a bzImage's protected-mode part
)

// bzImage decompresses the payload and boots the vmlinux in it; where the payload is of a form not known here, the
// bzImage's own decompressor has to run.
func (l *loader) bzImage(h *setup) (*x86.State, error) {
	l.facts.Version = h.version
	if len(l.CommandLine) > h.cmdlineMax {
		return nil, fmt.Errorf("the command line has %d bytes, this kernel takes %d", len(l.CommandLine), h.cmdlineMax)
	}
	if h.payloadSize == 0 {
		return l.selfExtracting(h)
	}
	p := io.NewSectionReader(l.Kernel, h.payload, h.payloadSize)
	u, err := l.payload(p, l.Kernel.id)
	if errors.Is(err, decompress.ErrFormat) {
		return l.selfExtracting(h)
	}
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	defer u.Close()
	var head [9]byte
	if readFull(p, head[:], 0) == nil {
		f, _ := decompress.Detect(head[:])
		l.facts.Packed = f.Name
	}
	e, err := parseELF(u, u.size)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if e.machine != elfX86_64 || !e.class64 {
		return nil, errors.New("payload: not a 64-bit x86 kernel")
	}
	return l.vmlinux(e, h, l.relocs(e, u))
}

// relocs reads what follows the ELF file in a payload. Without a table that makes sense the kernel stays where it was linked.
func (l *loader) relocs(e *elfFile, u *unpacked) *relocTable {
	if e.end >= u.size || u.size-e.end > 64<<20 {
		return nil
	}
	p := make([]byte, u.size-e.end)
	err := readFull(u, p, e.end)
	if err == nil {
		var t *relocTable
		if t, err = parseRelocs(p); err == nil {
			return t
		}
	}
	if !errors.Is(err, errNoRelocs) {
		l.Log(fmt.Sprintf("kernel %s: %v; booting it without KASLR", l.Kernel.Name, err))
	}
	return nil
}

// vmlinux places an uncompressed kernel, at random where it can be, and enters it.
func (l *loader) vmlinux(e *elfFile, h *setup, relocs *relocTable) (*x86.State, error) {
	base, end, err := e.extent()
	if err != nil {
		return nil, err
	}
	size := end - base
	if size > kernelWindow {
		return nil, fmt.Errorf("it takes %s, Linux has a window of %s", mib(size), mib(kernelWindow))
	}
	initrd, err := l.placeInitrd(h, size)
	if err != nil {
		return nil, err
	}
	kaslr := relocs != nil && !l.option("nokaslr")
	phys, err := l.choosePhysical(base, size, h, initrd, kaslr)
	if err != nil {
		return nil, err
	}
	if err := e.place(l.ram, phys-base); err != nil {
		return nil, err
	}
	var delta uint64
	if relocs != nil {
		err := l.ram.WriteFunc(mem.Addr(phys), size, func(image []byte) error {
			if err := relocs.check(image, base); err != nil {
				l.Log(fmt.Sprintf("kernel %s: %v; booting it without KASLR", l.Kernel.Name, err))
				kaslr = false
			}
			if !kaslr {
				return nil
			}
			delta = l.chooseVirtual(base, size, h.align)
			return relocs.apply(image, base, delta)
		})
		if err != nil {
			return nil, err
		}
	}
	entry, ok := e.physical(e.entry)
	if !ok {
		return nil, fmt.Errorf("ELF: entry point %#x is in no segment", e.entry)
	}
	l.facts.Protocol, l.facts.Physical, l.facts.Size = Linux64, mem.Addr(phys), size
	l.facts.Virtual, l.facts.Offset = kernelMap+base+delta, delta
	if err := l.writeZeroPage(h, phys, initrd, kaslr); err != nil {
		return nil, err
	}
	s, err := enter64(l.ram, entry-base+phys, phys, phys+size, l.FiveLevels && h.fiveLevels && !l.option("no5lvl"))
	if err == nil {
		s.GPR[x86.RSI] = uint64(zeroPage)
	}
	return s, err
}

// selfExtracting loads a bzImage as any boot loader does: it decompresses itself, and does its own KASLR.
func (l *loader) selfExtracting(h *setup) (*x86.State, error) {
	image := l.Kernel.Size - h.protected
	if image <= entry64 {
		return nil, errTruncated
	}
	size := max(h.initSize, uint64(image))
	initrd, err := l.placeInitrd(h, size)
	if err != nil {
		return nil, err
	}
	phys, err := l.choosePhysical(max(h.preferred, lowestBase), size, h, initrd, false)
	if err != nil {
		return nil, err
	}
	err = l.ram.Fill(mem.Addr(phys), uint64(image), func(p []byte, off int64) error { return readFull(l.Kernel, p, h.protected+off) })
	if err != nil {
		return nil, err
	}
	l.facts.Protocol, l.facts.Physical, l.facts.Size = BzImage64, mem.Addr(phys), size
	if err := l.writeZeroPage(h, phys, initrd, false); err != nil {
		return nil, err
	}
	s, err := enter64(l.ram, phys+entry64, phys, phys+size, false) // it sees to that itself
	if err == nil {
		s.GPR[x86.RSI] = uint64(zeroPage)
	}
	return s, err
}

// A span is [base, base+size) of guest memory.
type span struct{ base, size uint64 }

// option tells whether the kernel's command line has a word, or a word that begins so where the name ends in "=".
func (l *loader) option(name string) bool {
	for _, w := range strings.Fields(l.CommandLine) {
		if w == name || strings.HasSuffix(name, "=") && strings.HasPrefix(w, name) {
			return true
		}
	}
	return false
}

// choosePhysical says where the kernel linked for base goes. Linux's own decompressor does it the same way
// (arch/x86/boot/compressed/kaslr.c): any aligned place in RAM that is free, none below where the kernel is linked.
// mem= and memmap= make parts of RAM unusable that are not known here, so with them it goes to the lowest.
func (l *loader) choosePhysical(base, size uint64, h *setup, initrd span, random bool) (uint64, error) {
	if base >= 1<<52 { // no physical address; nothing below wraps around then
		return 0, noRoom(base, size, l.ram)
	}
	align := h.align
	if !h.relocatable {
		if !free(l.ram, span{base, size}, initrd) {
			return 0, noRoom(base, size, l.ram)
		}
		return base, nil
	}
	if base%kernelAlign != 0 {
		return 0, fmt.Errorf("it is linked for address %#x, not a multiple of 2 MiB", base)
	}
	if random && (l.option("mem=") || l.option("memmap=")) {
		random = false
	}
	type run struct{ first, n uint64 }
	var runs []run
	var total uint64
	for _, r := range gaps(l.ram, initrd) {
		first := (max(r.base, base) + align - 1) &^ (align - 1)
		if end := r.base + r.size; first < end && end-first >= size {
			n := (end-first-size)/align + 1
			runs = append(runs, run{first, n})
			total += n
		}
	}
	if total == 0 {
		return 0, fmt.Errorf("it needs %s of memory from %s on, guest memory is %s: use --memory %s",
			mib(size), mib(base), mib(l.ram.Size()), enough(size+base+initrd.size))
	}
	slot := uint64(0)
	if random {
		slot = l.Random(total)
	}
	for _, r := range runs {
		if slot < r.n {
			return r.first + slot*align, nil
		}
		slot -= r.n
	}
	panic("BUG: Random gave a number out of its range")
}

// chooseVirtual gives the offset at which the kernel linked for base runs: any aligned place in its window, from base on.
func (l *loader) chooseVirtual(base, size, align uint64) uint64 {
	if base+size > kernelWindow {
		return 0
	}
	return l.Random((kernelWindow-base-size)/align+1) * align
}

// gaps lists the RAM above 1 MiB without what is taken.
func gaps(ram *mem.Memory, taken span) []span {
	var out []span
	for _, e := range layout.E820(ram.Size()) {
		if e.Type != layout.RAM || e.Base < layout.HighRAM {
			continue
		}
		end := e.Base + e.Size
		if taken.size == 0 || taken.base >= end || taken.base+taken.size <= e.Base {
			out = append(out, span{e.Base, e.Size})
			continue
		}
		if taken.base > e.Base {
			out = append(out, span{e.Base, taken.base - e.Base})
		}
		if t := taken.base + taken.size; t < end {
			out = append(out, span{t, end - t})
		}
	}
	return out
}

func free(ram *mem.Memory, s, taken span) bool {
	for _, g := range gaps(ram, taken) {
		if s.base >= g.base && s.size <= g.size && s.base-g.base <= g.size-s.size {
			return true
		}
	}
	return false
}

// placeInitrd reads the initial RAM disks, one after the other, each at a multiple of 4 bytes, to the end of the RAM below 3 GiB,
// or of that above if they do not fit there.
func (l *loader) placeInitrd(h *setup, kernel uint64) (span, error) {
	var size uint64
	for _, im := range l.Initrd {
		size = (size+3)&^3 + uint64(im.Size)
	}
	if size == 0 {
		return span{}, nil
	}
	const page = mem.PageSize
	need := (size + page - 1) &^ (page - 1)
	at := uint64(0)
	for _, r := range l.ram.Regions() {
		end := uint64(r.Base) + r.Size
		if !h.above4G {
			end = min(end, (h.initrdMax+1)&^(page-1))
		}
		lowest := max(uint64(r.Base), layout.HighRAM)
		if end > lowest && end-lowest >= need && (at == 0 || at < lowestBase+kernel) {
			at = end - need
		}
	}
	if at == 0 {
		return span{}, fmt.Errorf("the initrd is %s, guest memory %s: use --memory %s",
			mib(size), mib(l.ram.Size()), enough(2*size+kernel+lowestBase))
	}
	var off uint64
	for _, im := range l.Initrd {
		off = (off + 3) &^ 3
		if im.Size == 0 {
			continue
		}
		err := l.ram.Fill(mem.Addr(at+off), uint64(im.Size), func(p []byte, off int64) error { return readFull(im, p, off) })
		if err != nil {
			return span{}, fmt.Errorf("initrd %s: %w", im.Name, err)
		}
		off += uint64(im.Size)
	}
	return span{at, size}, nil
}

// enough is the power of two that holds n bytes, as --memory takes it.
func enough(n uint64) string {
	m := uint64(64)
	for m < 1<<40 && m<<20 < n {
		m *= 2
	}
	if m >= 1024 {
		return fmt.Sprintf("%dG", m/1024)
	}
	return fmt.Sprintf("%dM", m)
}

// Offsets in the zero page besides the header's (zero-page.rst).
const (
	zpRSDP        = 0x070
	zpExtRamdisk  = 0x0C0
	zpExtRamSize  = 0x0C4
	zpE820Entries = 0x1E8
	zpE820        = 0x2D0
	e820Max       = 128
)

// writeZeroPage fills struct boot_params, the command line, and a seed for the guest's random numbers.
func (l *loader) writeZeroPage(h *setup, phys uint64, initrd span, kaslr bool) error {
	le := binary.LittleEndian
	z := make([]byte, mem.PageSize)
	copy(z[hdrStart:hdrEnd], h.raw[hdrStart:hdrEnd])
	z[hdrLoader] = 0xFF // a loader without a number
	if kaslr {
		z[hdrLoadFlags] |= loadKASLR
	}
	le.PutUint32(z[hdrCode32:], uint32(phys))
	le.PutUint16(z[0x1FA:], 0xFFFF) // vid_mode: normal
	le.PutUint32(z[hdrSubarch:], 0)
	le.PutUint32(z[hdrRamdisk:], uint32(initrd.base))
	le.PutUint32(z[zpExtRamdisk:], uint32(initrd.base>>32))
	le.PutUint32(z[hdrRamdiskSize:], uint32(initrd.size))
	le.PutUint32(z[zpExtRamSize:], uint32(initrd.size>>32))
	le.PutUint64(z[zpRSDP:], uint64(l.RSDP))
	le.PutUint32(z[hdrCmdline:], uint32(cmdlineAddr))

	e820 := layout.E820(l.ram.Size())
	if len(e820) > e820Max {
		panic("BUG: more memory ranges than the zero page holds")
	}
	z[zpE820Entries] = byte(len(e820))
	for i, e := range e820 {
		p := z[zpE820+20*i:]
		le.PutUint64(p, e.Base)
		le.PutUint64(p[8:], e.Size)
		le.PutUint32(p[16:], e.Type)
	}

	// SETUP_RNG_SEED, 68b8e9713c8e (v6.0); older kernels pass over it. The kernel clears it once it is used.
	const seed = 32
	setup := make([]byte, 16+seed)
	le.PutUint32(setup[8:], 9)
	le.PutUint32(setup[12:], seed)
	for i := range seed / 8 {
		le.PutUint64(setup[16+8*i:], l.Random(1<<63)<<1|l.Random(2))
	}
	le.PutUint64(z[hdrSetupData:], uint64(seedAddr))
	if err := l.ram.WriteAt(setup, seedAddr); err != nil {
		return err
	}
	if err := l.ram.WriteAt(append([]byte(l.CommandLine), 0), cmdlineAddr); err != nil {
		return err
	}
	return l.ram.WriteAt(z, zeroPage)
}
