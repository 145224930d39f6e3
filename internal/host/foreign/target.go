// Package foreign looks into guests of other programs: their memory where the VMM has it, their registers where they can be had. The VMM is not asked
// to help, but by QMP where it listens, and its guest goes on meanwhile.
package foreign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host/vmm"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Proc is where the host's processes are seen.
const Proc vmm.Proc = "/proc"

// A Target is another VMM's guest to look at: a guest.Target. Its methods may be called from any goroutine, but Kernel and Close, which are to be
// alone.
type Target struct {
	Guest vmm.Guest

	mem     *memory
	ways    [][]segment // in which its RAM may lie
	ram     []segment   // the way that is taken
	regions []mem.Region
	how     string // it is known where RAM lies
	regs    source // nil: none
	cpus    int
}

// A source gives registers. Its methods may be called from any goroutine.
type source interface {
	// read fills r with those of processor i, and tells whether it was at work.
	read(i int, r *x86.Regs) (running bool, err error)
	cpus() int
	how() string
	close() error
}

// Open begins to look at a guest. It fails where its memory may not be read, and says why and what would help.
func Open(g vmm.Guest) (*Target, error) {
	if g.Protected != "" {
		return nil, fmt.Errorf("%s: its memory is kept from the host (%s)", g.Name, g.Protected)
	}
	t := &Target{Guest: g, mem: openMemory(Proc, g.PID), cpus: g.CPUs}
	fail := func(err error) (*Target, error) {
		t.Close()
		return nil, err
	}
	if s, ok := Proc.Stat(g.PID); !ok || s.Started != g.Ticks {
		return fail(fmt.Errorf("%s: %w", g.Name, ErrGone))
	}
	maps, err := Proc.Maps(g.PID)
	if err != nil {
		return fail(fmt.Errorf("%s: %s", g.Name, refused(&g)))
	}
	if p, err := openPeek(Proc, &g); err == nil {
		t.regs = p
	}
	if q, err := dialQMP(Proc, &g); err == nil {
		if ram, err := ramByQMP(q, maps); err == nil {
			t.ways, t.how = [][]segment{t.mem.backed(Proc, ram, maps)}, "QMP"
		}
		if t.regs == nil {
			t.regs = newMonitorSource(q, "QMP", monitorFresh)
		} else {
			q.close() // for others to use
		}
	}
	if t.ways == nil {
		var ram []segment
		for _, r := range g.RAMIn(maps) {
			ram = append(ram, segment{size: r.Size(), host: r.Start})
		}
		t.ways, t.how = layouts(t.mem.backed(Proc, ram, maps), g.Holes()), "mappings"
	}
	if len(t.ways) == 0 || len(t.ways[0]) == 0 {
		return fail(fmt.Errorf("%s: none of its mappings looks like a guest's memory", g.Name))
	}
	t.take(t.ways[0])
	var b [1]byte
	if _, err := t.ReadPhys(b[:], t.ram[0].base); err != nil {
		if errors.Is(err, ErrGone) {
			return fail(fmt.Errorf("%s: %w", g.Name, ErrGone))
		}
		return fail(fmt.Errorf("%s: %s", g.Name, refused(&g)))
	}
	if t.regs == nil {
		if s, err := openHeap(&g, t.mem, t, maps); err == nil {
			t.regs = s
		}
	}
	return t, nil
}

// refused says why a guest may not be looked at.
func refused(g *vmm.Guest) string {
	return "its memory may not be read: " + vmm.EyesIn(Proc).WhyNot(g.UID, true)
}

// Close ends looking.
func (t *Target) Close() error {
	t.mem.close()
	if t.regs != nil {
		return t.regs.close()
	}
	return nil
}

func (t *Target) take(way []segment) {
	t.ram, t.regions = way, nil
	for _, s := range way {
		t.regions = append(t.regions, mem.Region{Base: s.base, Size: s.size})
	}
}

// Kernel finds the guest's kernel. Where RAM lies is then known for sure, if it was not before: the kernel says where it ends.
func (t *Target) Kernel(ctx context.Context) (*guest.Kernel, error) {
	var (
		first error
		best  *guest.Kernel
		way   []segment
	)
	for _, w := range t.ways {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		t.take(w)
		k, err := guest.Open(t)
		if err != nil && t.regs != nil {
			k, err = guest.Open(blind{t})
		}
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if len(t.ways) == 1 || t.confirms(k) {
			t.ways = [][]segment{w}
			t.debug(ctx, k)
			return k, nil
		}
		if best == nil {
			best, way = k, w
		}
	}
	if best != nil && t.Guest.MemoryBytes <= 1<<32-minHole {
		// All of it below 4 GiB holds the kernel: with "mem=" it takes what it likes.
		t.take(way)
		return best, nil
	}
	if best != nil {
		return nil, fmt.Errorf("%s: its kernel does not confirm where its memory lies: no layout known of %s fits", t.Guest.Name, t.Guest.VMM)
	}
	t.take(t.ways[0])
	return nil, first
}

// A blind target has no registers: where they lead nowhere, as in firmware, or are another moment's, memory may tell still.
type blind struct{ *Target }

// CPU has none.
func (blind) CPU(int, *x86.Regs) error { return guest.ErrNoRegisters }

// debug takes the debugger's stub for want of another way to registers, if the guest runs: one that stands still would go on afterwards.
func (t *Target) debug(ctx context.Context, k *guest.Kernel) {
	at := t.Guest.GDB()
	if t.regs != nil || len(at) == 0 {
		return
	}
	was := k.Uptime()
	for range 10 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		if k.Uptime() != was {
			if s := newMonitorSource(&gdbMonitor{Proc, t.Guest.PID, at[0]}, "gdbstub", gdbFresh); s.cpus() > 0 {
				t.regs = s
			}
			return
		}
	}
}

// confirms tells whether the kernel that was found sees RAM end where this way ends it, which says where the hole is: at max_pfn
// (arch/x86/kernel/setup.c), or before it by what firmware keeps there.
func (t *Target) confirms(k *guest.Kernel) bool {
	const kept = 64 << 20
	s, err := k.Symbols.Lookup("max_pfn")
	if err != nil {
		return true // nothing is said against it
	}
	var b [8]byte
	if k.ReadAt(b[:], s.Addr) != nil {
		return false
	}
	last := t.regions[len(t.regions)-1]
	at, end := le.Uint64(b[:])<<12, uint64(last.Base)+last.Size
	return at <= end && at+kept >= end
}

// Regions lists the guest's RAM.
func (t *Target) Regions() []mem.Region { return t.regions }

// NumCPU is how many processors the guest has, as far as is known.
func (t *Target) NumCPU() int { return t.cpus }

// CPU fills r with the registers of processor i as they are now, or were when it last left its guest.
func (t *Target) CPU(i int, r *x86.Regs) error {
	_, err := t.read(i, r)
	return err
}

func (t *Target) read(i int, r *x86.Regs) (running bool, err error) {
	if t.regs == nil || i >= t.regs.cpus() {
		return false, guest.ErrNoRegisters
	}
	return t.regs.read(i, r)
}

// Sample is CPU for a processor that is at work; of one that sleeps it only says so, and lets it sleep.
func (t *Target) Sample(i int, r *x86.Regs) (running bool, err error) {
	if p, ok := t.regs.(*peek); ok && i < p.cpus() && p.idle(i) {
		return false, nil
	}
	return t.read(i, r)
}

// Registers tells whether there is a way to any.
func (t *Target) Registers() bool { return t.regs != nil }

// How says by what the guest's memory and registers are known: "mappings" and "none", or better.
func (t *Target) How() (memory, registers string) {
	if t.regs == nil {
		return t.how, "none"
	}
	return t.how, t.regs.how()
}

// ReadPhys implements mem.Reader.
func (t *Target) ReadPhys(p []byte, a mem.Addr) (int, error) {
	n := 0
next:
	for n < len(p) {
		for i := range t.ram {
			s := &t.ram[i]
			if a >= s.base && uint64(a-s.base) < s.size {
				o := uint64(a - s.base)
				got, err := t.mem.read(p[n:n+int(min(uint64(len(p)-n), s.size-o))], s, o)
				n, a = n+got, a+mem.Addr(got)
				if err != nil {
					return n, err
				}
				continue next
			}
		}
		return n, fmt.Errorf("%w: %#x", mem.ErrNotRAM, uint64(a))
	}
	return n, nil
}

// NextData gives the next run of memory at or behind a that the guest has touched: what it has not is zeros.
func (t *Target) NextData(a mem.Addr) (start mem.Addr, size uint64, ok bool) {
	for i := range t.ram {
		s := &t.ram[i]
		if a >= s.base+mem.Addr(s.size) {
			continue
		}
		from := max(a, s.base)
		if o, size, ok := t.mem.next(s, uint64(from-s.base)); ok {
			return s.base + mem.Addr(o), size, true
		}
	}
	return 0, 0, false
}

// ramByQMP gives a QEMU's RAM as QEMU itself has it.
func ramByQMP(q *qmp, maps []vmm.Mapping) ([]segment, error) {
	text, err := q.monitor("info mtree -f")
	if err != nil {
		return nil, err
	}
	var ram []segment
	for _, s := range parseMemoryTree(text) {
		text, err := q.monitor(fmt.Sprintf("gpa2hva %#x", uint64(s.base)))
		if err != nil {
			return nil, err
		}
		host, err := parseHostAddress(text)
		if err != nil {
			return nil, err
		}
		if !mapped(maps, host, s.size) {
			return nil, fmt.Errorf("QMP: %d bytes at %#x are not mapped", s.size, host)
		}
		ram = append(ram, segment{base: s.base, size: s.size, host: host})
	}
	if len(ram) == 0 {
		return nil, errors.New("QMP: no RAM in the memory tree")
	}
	return ram, nil
}

// mapped tells whether all of a range is.
func mapped(maps []vmm.Mapping, at, size uint64) bool {
	end := at + size
	for _, m := range maps {
		if at >= end {
			break
		}
		if m.Start <= at && at < m.End {
			at = m.End
		}
	}
	return at >= end && end > size
}

// backed cuts segments at the ends of mappings, and adds the files behind those that are shared.
func (m *memory) backed(proc vmm.Proc, ram []segment, maps []vmm.Mapping) []segment {
	var all []segment
	for _, s := range ram {
		for i := range maps {
			r := &maps[i]
			if s.size == 0 || s.host < r.Start || s.host >= r.End {
				continue
			}
			if r.Perms[3] != 's' || r.Inode == 0 {
				continue
			}
			if f := m.share(proc, r); f != nil {
				n := min(s.size, r.End-s.host)
				shared := part(s, 0, n)
				shared.file, shared.off = f, int64(r.Offset+s.host-r.Start)
				all = append(all, shared)
				s = part(s, n, s.size-n)
				s.base += mem.Addr(n)
			}
		}
		if s.size > 0 {
			all = append(all, s)
		}
	}
	return all
}
