package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"testing"

	"vitrine.dev/vitrine/internal/mem"
)

// testProgram is an ELF program with functions one and two at 0x401000 and 0x401040, each of 16 bytes, in .symtab at the end of the file
// and, as dyn, in the dynamic symbols. Its text is at offset 0x1000.
func testProgram() []byte {
	const size = 0x3000
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint64(b[32:], 64)     // program headers
	le.PutUint64(b[40:], 0x2800) // section headers
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 2)
	program := func(i int, kind elf.ProgType, off, vaddr, n uint64) {
		p := b[64+56*i:]
		le.PutUint32(p, uint32(kind))
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], vaddr)
		le.PutUint64(p[32:], n)
	}
	program(0, elf.PT_LOAD, 0, 0x400000, 0x2000)
	program(1, elf.PT_DYNAMIC, 0x200, 0x400200, 64)
	symbol := func(at int, name uint32, value uint64) {
		le.PutUint32(b[at:], name)
		b[at+4] = byte(elf.STT_FUNC)
		le.PutUint16(b[at+6:], 1)
		le.PutUint64(b[at+8:], value)
		le.PutUint64(b[at+16:], 16)
	}
	symbol(0x300, 1, 0x401000)
	copy(b[0x318:], "\x00dyn\x00")
	for i, d := range [][2]uint64{{uint64(elf.DT_SYMTAB), 0x400300}, {uint64(elf.DT_STRTAB), 0x400318}, {uint64(elf.DT_STRSZ), 5}} {
		le.PutUint64(b[0x200+16*i:], d[0])
		le.PutUint64(b[0x208+16*i:], d[1])
	}
	symbol(0x2000, 5, 0x401040)
	symbol(0x2018, 1, 0x401000)
	copy(b[0x2100:], "\x00one\x00tw\x1bo\x00")
	section := func(i int, kind elf.SectionType, off, n uint64, link uint32) {
		s := b[0x2800+64*i:]
		le.PutUint32(s[4:], uint32(kind))
		le.PutUint64(s[24:], off)
		le.PutUint64(s[32:], n)
		le.PutUint32(s[40:], link)
	}
	section(0, elf.SHT_SYMTAB, 0x2000, 48, 1)
	section(1, elf.SHT_STRTAB, 0x2100, 10, 0)
	return b
}

// A cut is a file whose end cannot be read.
type cut struct {
	io.ReaderAt
	end int64
}

func (c cut) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > c.end {
		return 0, ErrNotCached
	}
	return c.ReaderAt.ReadAt(p, off)
}

func TestFunctionsOfAProgram(t *testing.T) {
	whole := bytes.NewReader(testProgram())
	for _, c := range []struct {
		what string
		file io.ReaderAt
		off  uint64
		want string
	}{
		{"the whole file", whole, 0x1008, "one"}, {"the whole file", whole, 0x1040, "tw?o"},
		{"between functions", whole, 0x1020, ""}, {"outside of what is loaded", whole, 0x2500, ""},
		{"the file's end is not in memory", cut{whole, 0x2000}, 0x1008, "dyn"},
	} {
		p, err := readProgram(c.file)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if got, ok := p.function(c.off); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: at %#x is %q, %v, want %q", c.what, c.off, got, ok, c.want)
		}
	}
	if _, err := readProgram(cut{whole, 32}); !errors.Is(err, ErrNotCached) {
		t.Errorf("without its first page: %v", err)
	}
}

func FuzzProgram(f *testing.F) {
	f.Add(testProgram(), uint64(0x1008))
	f.Fuzz(func(t *testing.T, b []byte, off uint64) {
		p, err := readProgram(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(p.functions) > len(b)/24 {
			t.Errorf("%d functions in %d bytes", len(p.functions), len(b))
		}
		p.function(off)
	})
}

const fakeVmemmap = 0xffffea0000000000

// fakeFile makes a file whose pages are those of the array's entries; it gives the struct file's address. vmemmap itself is mapped at page 0x40 of
// physical memory.
func fakeFile(f *fake, size uint64, head func(page func(pfn, index uint64) uint64) uint64) uint64 {
	put(f.m, 0x1000+8*(fakeVmemmap>>39&511), 0x6000|ptePresent) // below it, one page of 1 GiB from physical 0 on
	put(f.m, 0x6000, ptePresent|pteLarge)
	f.next = max(f.next, 0x7000)
	base := f.alloc(8)
	put(f.m, base-direct, fakeVmemmap+0x40000)
	f.symbol("vmemmap_base", base)
	entry := head(func(pfn, index uint64) uint64 {
		at := 0x40000 + pfn*f.structure("page").size
		f.set("page", direct+at, map[string]uint64{"index": index})
		return fakeVmemmap + at
	})
	node := f.new("inode", map[string]uint64{"i_size": size})
	space := f.new("address_space", map[string]uint64{"host": node, "i_pages": entry})
	return f.new("file", map[string]uint64{"f_mapping": space})
}

func TestFilesAreReadFromThePageCache(t *testing.T) {
	f := newFake(1 << 20)
	copy(f.m.ram[0x81ff8:], "boundary") // page 0x81 and the two behind
	copy(f.m.ram[0x82000:], "!second!")
	copy(f.m.ram[0x83000:], "third")
	file := fakeFile(f, 4*mem.PageSize+3, func(page func(pfn, index uint64) uint64) uint64 {
		n := f.new("xa_node", map[string]uint64{"shift": 0})
		slots := f.where("xa_node", n, "slots") - direct
		put(f.m, slots, page(0x81, 0))
		put(f.m, slots+8, page(0x82, 1)) // a folio of two pages
		put(f.m, slots+16, 1<<2|2)       // its second: the sibling of slot 1
		put(f.m, slots+24, 0x123<<1|1)   // evicted
		return n | 2
	})
	c, err := f.cached(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		off  int64
		text string
	}{{mem.PageSize - 8, "boundary!second!"}, {2 * mem.PageSize, "third"}} {
		p := make([]byte, len(want.text))
		if n, err := c.ReadAt(p, want.off); err != nil || string(p) != want.text {
			t.Errorf("at %#x: %q, %d, %v, want %q", want.off, p, n, err, want.text)
		}
	}
	for _, off := range []int64{3 * mem.PageSize, 4 * mem.PageSize} {
		if n, err := c.ReadAt(make([]byte, 2), off); !errors.Is(err, ErrNotCached) {
			t.Errorf("at %#x, which is not in memory: %d, %v", off, n, err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 2), 5*mem.PageSize); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
}

func TestPageCacheThatLeadsInCirclesEnds(t *testing.T) {
	f := newFake(1 << 20)
	file := fakeFile(f, 1<<40, func(func(pfn, index uint64) uint64) uint64 {
		n := f.new("xa_node", map[string]uint64{"shift": 6})
		put(f.m, f.where("xa_node", n, "slots")-direct, n|2)
		return n | 2
	})
	c, err := f.cached(file)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.ReadAt(make([]byte, 2), 0); !errors.Is(err, ErrNotCached) {
		t.Errorf("%d, %v", n, err)
	}
}
