package dump

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A machine is two regions of memory and two CPUs, of which one has no registers.
type machine struct {
	low, high []byte
	regs      x86.Regs
}

const highBase = 1 << 32

func (m *machine) ReadPhys(p []byte, a mem.Addr) (int, error) {
	from := m.low
	if a >= highBase {
		from, a = m.high, a-highBase
	}
	if a >= mem.Addr(len(from)) {
		return 0, mem.ErrNotRAM
	}
	n := copy(p, from[a:])
	if n < len(p) {
		return n, mem.ErrNotRAM
	}
	return n, nil
}

func (m *machine) Regions() []mem.Region {
	return []mem.Region{{Base: 0, Size: uint64(len(m.low))}, {Base: highBase, Size: uint64(len(m.high))}}
}

func (m *machine) NumCPU() int { return 2 }

func (m *machine) CPU(i int, r *x86.Regs) error {
	if i == 1 {
		return guest.ErrNoRegisters
	}
	*r = m.regs
	return nil
}

func testMachine() *machine {
	m := &machine{low: make([]byte, 3<<20), high: make([]byte, 64<<10)}
	copy(m.low[0x5123:], "in the first page that is not zero")
	copy(m.low[3<<20-4:], "end.")
	copy(m.high[0x8000:], "above")
	m.regs = x86.Regs{
		RIP: 0xffffffff81000123, RFLAGS: 0x246, CR0: x86.CR0PG | x86.CR0PE, CR2: 0x7f00, CR3: 0x1234000, CR4: x86.CR4PAE,
		EFER: x86.EFERLME | x86.EFERLMA, KernelGSBase: 0xffff88800000, GDTR: x86.Table{Base: 0xfffffe0000001000, Limit: 0x7f},
	}
	for i := range m.regs.GPR {
		m.regs.GPR[i] = uint64(i) * 0x0101010101010101
	}
	for i := range m.regs.Seg {
		m.regs.Seg[i] = x86.Segment{Selector: uint16(i * 8), Base: uint64(i) << 32, Limit: 0xFFFFFFFF, Access: 0xA09B}
	}
	m.regs.TR.Access = 0x8B
	return m
}

// A mapped is a kernel of which the places in memory are known.
type mapped struct {
	info  string
	image guest.Mapping
}

func (m mapped) VMCoreInfo() []byte     { return []byte(m.info) }
func (m mapped) Mapping() guest.Mapping { return m.image }
func (m mapped) DirectMap() uint64      { return 0xffff888000000000 }

func write(t *testing.T, m guest.Target, k Kernel) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Write(f, m, k), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	m := testMachine()
	d, err := Open(write(t, m, mapped{info: "OSRELEASE=6.1\n"}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got, want := fmt.Sprint(len(d.Regions()), d.NumCPU(), string(d.VMCoreInfo())), "2 1OSRELEASE=6.1\n"; got != want {
		t.Errorf("regions, CPUs and information are %q, want %q", got, want)
	}
	var r x86.Regs
	if err := d.CPU(0, &r); err != nil || r != m.regs {
		t.Errorf("registers %+v, %v, want %+v", r, err, m.regs)
	}
	for _, want := range m.Regions() {
		p, q := make([]byte, want.Size), make([]byte, want.Size)
		m.ReadPhys(q, want.Base)
		if n, err := d.ReadPhys(p, want.Base); err != nil || n != len(p) || !bytes.Equal(p, q) {
			t.Errorf("memory at %#x: %d bytes, %v, equal: %v", uint64(want.Base), n, err, bytes.Equal(p, q))
		}
		// And in small pieces, across blocks.
		for off := uint64(blockSize - 7); off+16 < want.Size; off += blockSize {
			if n, err := d.ReadPhys(p[:16], want.Base+mem.Addr(off)); err != nil || n != 16 || !bytes.Equal(p[:16], q[off:off+16]) {
				t.Errorf("16 bytes at %#x: %d, %v", off, n, err)
			}
		}
	}
	if n, err := d.ReadPhys(make([]byte, 8), 3<<20-4); n != 4 || !errors.Is(err, mem.ErrNotRAM) {
		t.Errorf("beyond the end: %d bytes, %v, want 4 and ErrNotRAM", n, err)
	}
}

func TestHeadersSayWhereTheKernelHasItsMemory(t *testing.T) {
	m := testMachine()
	image := guest.Mapping{Virtual: 0xffffffff81000000, Physical: 1 << 20, Size: 1 << 20}
	path := write(t, m, mapped{image: image})
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type load struct{ virtual, physical, size uint64 }
	var got []load
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			got = append(got, load{p.Vaddr, p.Paddr, p.Filesz})
		}
		b, want := make([]byte, 16), make([]byte, 16)
		if p.Type == elf.PT_LOAD && p.Filesz > 16 {
			p.ReadAt(b, int64(p.Filesz)-16)
			if m.ReadPhys(want, mem.Addr(p.Paddr+p.Filesz-16)); !bytes.Equal(b, want) {
				t.Errorf("the segment at %#x ends in %q, memory has %q", p.Vaddr, b, want)
			}
		}
	}
	want := []load{
		{image.Virtual, 1 << 20, 1 << 20}, {0xffff888000000000, 0, 3 << 20}, {0xffff888000000000 + highBase, highBase, 64 << 10},
	}
	if !slices.Equal(got, want) {
		t.Errorf("segments %x, want %x", got, want)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Regions(); len(got) != 2 || got[0].Size != 3<<20 || got[1].Base != highBase {
		t.Errorf("regions %+v, want the machine's two", got)
	}
}

// TestMemoryThatIsThereManyTimesIsReadOnce: QEMU's dumps with paging have a segment for each address that a page is mapped at.
func TestMemoryThatIsThereManyTimesIsReadOnce(t *testing.T) {
	d := &File{segments: []segment{{0x1000, 0x8000, 0x1000}}}
	for i := range 20 {
		d.segments = append(d.segments, segment{mem.Addr(0x1000 + i*0x100), 0x200, int64(0x100000 + i)})
	}
	d.segments = append(d.segments, segment{0x8800, 0x1000, 0x20000}, segment{0x9800, 0x800, 0x30000}, segment{0xb000, 1, 0x40000})
	d.flatten()
	if want := []mem.Region{{Base: 0x1000, Size: 0x9000, Offset: 0x1000}, {Base: 0xb000, Size: 1, Offset: 0x40000}}; !slices.Equal(d.regions, want) {
		t.Errorf("regions %x, want %x", d.regions, want)
	}
	for a, want := range map[mem.Addr]int64{0x1000: 0x1000, 0x2345: 0x2345, 0x8fff: 0x8fff, 0x9000: 0x20800, 0x97ff: 0x20fff, 0x9800: 0x30000, 0xb000: 0x40000} {
		if s, ok := d.find(a); !ok || s.at+int64(a-s.base) != want {
			t.Errorf("%#x is at %#x of the file (%v), want %#x", uint64(a), s.at+int64(a-s.base), ok, want)
		}
	}
	for _, a := range []mem.Addr{0, 0xfff, 0xa000, 0xafff, 0xb001} {
		if s, ok := d.find(a); ok {
			t.Errorf("%#x is in %x", uint64(a), s)
		}
	}
}

func TestZerosTakeNoRoom(t *testing.T) {
	path := write(t, testMachine(), nil)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	var used int64
	if f, err := os.Open(path); err == nil {
		defer f.Close()
		for at := int64(0); ; {
			from, err := f.Seek(at, 3) // SEEK_DATA
			if err != nil {
				break
			}
			at, _ = f.Seek(from, 4) // SEEK_HOLE
			used += at - from
		}
	}
	if used > 256<<10 || st.Size() < 3<<20 {
		t.Errorf("%d of %d bytes are data, want less than 256 KiB", used, st.Size())
	}
}

func TestWhatIsNoDumpIsRefused(t *testing.T) {
	for _, c := range []struct {
		what string
		head []byte
	}{
		{"nothing", nil}, {"text", bytes.Repeat([]byte("hello "), 100)}, {"a compressed kdump", append([]byte("KDUMP   "), make([]byte, 100)...)},
		{"an ELF program", append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 100)...)},
	} {
		if _, err := New(bytes.NewReader(c.head), int64(len(c.head))); err == nil {
			t.Errorf("%s is taken for a dump", c.what)
		}
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a directory is taken for a dump")
	}
}

func TestCutOffDumpHasWhatIsThere(t *testing.T) {
	b, err := os.ReadFile(write(t, testMachine(), nil))
	if err != nil {
		t.Fatal(err)
	}
	b = b[:1<<20]
	d, err := New(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8)
	if n, err := d.ReadPhys(p, 0x5123); err != nil || string(p) != "in the f" {
		t.Errorf("%q, %d, %v", p, n, err)
	}
	if n, err := d.ReadPhys(p, 2<<20); err == nil {
		t.Errorf("behind the cut: %d bytes", n)
	}
}

func FuzzDump(f *testing.F) {
	head := make([]byte, ehdrSize+2*phdrSize)
	copy(head, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(head[16:], etCore)
	le.PutUint16(head[18:], emX8664)
	le.PutUint64(head[32:], ehdrSize)
	le.PutUint16(head[54:], phdrSize)
	le.PutUint16(head[56:], 2)
	for i, kind := range []uint32{ptNote, ptLoad} {
		p := head[ehdrSize+i*phdrSize:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], uint64(len(head)))
		le.PutUint64(p[32:], 500)
	}
	var notes bytes.Buffer
	note(&notes, "QEMU", 0, encodeQEMU(&testMachine().regs))
	f.Add(append(head, notes.Bytes()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := New(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		p := make([]byte, 64)
		total := uint64(0)
		for _, r := range d.Regions() {
			total += r.Size
			d.ReadPhys(p, r.Base)
			d.ReadPhys(p, r.Base+mem.Addr(r.Size)-1)
		}
		if total > uint64(len(b))*uint64(len(b)) {
			t.Errorf("%d bytes of memory in %d of file", total, len(b))
		}
		var r x86.Regs
		for i := range d.NumCPU() + 1 {
			d.CPU(i, &r)
		}
		if _, err := guest.Open(d); err == nil {
			t.Error("a kernel is found")
		}
	})
}
