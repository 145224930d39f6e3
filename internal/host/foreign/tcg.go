package foreign

import (
	"cmp"
	"fmt"
	"slices"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host/vmm"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A heapSource has the registers of a QEMU's processors from QEMU's own memory, where no monitor tells: with TCG they are in a structure whose beginning has looked
// the same for many years (target/i386/cpu.h, CPUArchState). It is found by what only a Linux that runs has in it, and proves itself by that at each look.
// Nobody is stopped. The instruction pointer is where translated code stored it last, which is up to some blocks behind.
type heapSource struct {
	mem *memory
	ram mem.Reader // the guest's
	at  []uint64   // of each processor's structure
}

// Places in the structure. A segment is selector, padding, base, limit, flags.
const (
	envRIP     = 16 * 8
	envRFLAGS  = envRIP + 8
	envSegs    = 184
	envSegment = 24
	envLDT     = envSegs + 6*envSegment
	envTR      = envLDT + envSegment
	envGDT     = envTR + envSegment
	envIDT     = envGDT + envSegment
	envCR      = envIDT + envSegment
	envSize    = envCR + 5*8
)

// What Linux has in its table registers: both tables are read-only mappings in the area of CPU entries (arch/x86/include/asm/pgtable_64_types.h,
// asm/cpu_entry_area.h, Linux 4.15), and all 256 vectors are used.
const (
	linuxIDT      = 0xfffffe0000000000
	linuxIDTLimit = 0xfff
	entryArea     = 0xfffffe0000000000
	entryAreaEnd  = 0xfffffe8000000000
)

// maxHeap bounds how much of a QEMU is searched, in bytes.
const maxHeap = 4 << 30

// openHeap searches a QEMU without KVM for its processors.
func openHeap(g *vmm.Guest, m *memory, ram mem.Reader, maps []vmm.Mapping) (*heapSource, error) {
	if g.VMM != "qemu" || g.Accelerator != vmm.TCG {
		return nil, guest.ErrNoRegisters
	}
	s := &heapSource{mem: m, ram: ram}
	guests := g.RAMIn(maps)
	left := uint64(maxHeap)
	for _, r := range maps {
		isRAM := slices.ContainsFunc(guests, func(o vmm.Mapping) bool { return o.Start < r.End && r.Start < o.End })
		if r.Perms != "rw-p" || r.Inode != 0 || r.Path != "" && r.Path != "[heap]" || isRAM || r.Size() > left {
			continue
		}
		left -= r.Size()
		s.search(r.Start, r.End)
		if len(s.at) == max(g.CPUs, 1) {
			break
		}
	}
	if len(s.at) == 0 {
		return nil, fmt.Errorf("%w: QEMU's processors are not found in its memory", guest.ErrNoRegisters)
	}
	// The order of processors is that of their entry areas where those are not random; the kernel knows it better, but for which task runs where it does not matter.
	slices.SortFunc(s.at, func(a, b uint64) int {
		var x, y [envSize]byte
		m.copy(x[:], a)
		m.copy(y[:], b)
		return cmp.Compare(le.Uint64(x[envGDT+8:]), le.Uint64(y[envGDT+8:]))
	})
	return s, nil
}

// search looks at what QEMU has touched of a range.
func (s *heapSource) search(from, to uint64) {
	const chunk = 1 << 20
	buf := make([]byte, chunk+envSize)
	for from < to {
		start, size, ok := s.mem.present(from, to)
		if !ok {
			return
		}
		n := min(size, uint64(len(buf)))
		if got, err := s.mem.copy(buf[:n], start); err == nil {
			for i := 0; i+envSize <= got; i += 8 {
				if le.Uint64(buf[i+envIDT+8:]) == linuxIDT && proves(buf[i:]) && len(s.at) < maxCPUs && !slices.Contains(s.at, start+uint64(i)) {
					s.at = append(s.at, start+uint64(i))
				}
			}
		}
		if n == uint64(len(buf)) {
			n = chunk // the rest again: a structure may be cut in two
		}
		from = start + n
	}
}

// proves tells whether b begins as a processor that runs a 64-bit Linux.
func proves(b []byte) bool {
	gdt := le.Uint64(b[envGDT+8:])
	cr0, cr3, cr4 := le.Uint64(b[envCR:]), le.Uint64(b[envCR+24:]), le.Uint64(b[envCR+32:])
	const paging = x86.CR0PG | x86.CR0PE
	return le.Uint64(b[envIDT+8:]) == linuxIDT && le.Uint32(b[envIDT+16:]) == linuxIDTLimit &&
		gdt >= entryArea && gdt < entryAreaEnd && gdt%pageSize == 0 && le.Uint32(b[envGDT+16:]) == 0x7f &&
		cr0&paging == paging && cr4&x86.CR4PAE != 0 && cr3 != 0 && cr3 < 1<<52 && le.Uint64(b[envRFLAGS:])>>22 == 0
}

func (s *heapSource) read(i int, r *x86.Regs) (bool, error) {
	var b [envSize]byte
	if _, err := s.mem.copy(b[:], s.at[i]); err != nil {
		return false, err
	}
	if !proves(b[:]) {
		return false, fmt.Errorf("%w: QEMU has another processor's state there now", guest.ErrNoRegisters)
	}
	*r = x86.Regs{RIP: le.Uint64(b[envRIP:]), RFLAGS: le.Uint64(b[envRFLAGS:]) | x86.Fixed}
	for i := range r.GPR {
		r.GPR[i] = le.Uint64(b[8*i:])
	}
	segment := func(at int) x86.Segment {
		// Flags are a descriptor's upper word.
		return x86.Segment{
			Selector: uint16(le.Uint32(b[at:])), Base: le.Uint64(b[at+8:]), Limit: le.Uint32(b[at+16:]), Access: uint16(le.Uint32(b[at+20:])>>8) & 0xF0FF,
		}
	}
	for i := range r.Seg {
		r.Seg[i] = segment(envSegs + i*envSegment)
	}
	r.LDTR, r.TR = segment(envLDT), segment(envTR)
	gdt, idt := segment(envGDT), segment(envIDT)
	r.GDTR, r.IDTR = x86.Table{Base: gdt.Base, Limit: uint16(gdt.Limit)}, x86.Table{Base: idt.Base, Limit: uint16(idt.Limit)}
	r.CR0, r.CR2, r.CR3, r.CR4 = le.Uint64(b[envCR:]), le.Uint64(b[envCR+16:]), le.Uint64(b[envCR+24:]), le.Uint64(b[envCR+32:])
	r.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERSCE // it is a 64-bit Linux that runs
	return !s.halted(r), nil
}

// halted tells whether a processor waits: what it executed last is HLT, or MWAIT, in the kernel.
func (s *heapSource) halted(r *x86.Regs) bool {
	var code [3]byte
	if r.CPL() != 0 {
		return false
	}
	space, err := guest.KernelSpace(s.ram, r)
	if err != nil || space.ReadAt(code[:], r.RIP-uint64(len(code))) != nil {
		return false
	}
	return code[2] == 0xF4 || code == [3]byte{0x0F, 0x01, 0xC9}
}

func (s *heapSource) cpus() int    { return len(s.at) }
func (s *heapSource) how() string  { return "QEMU's memory" }
func (s *heapSource) close() error { return nil }
