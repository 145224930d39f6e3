package guest

import (
	"errors"
	"io"
	"testing"

	"vitrine.dev/vitrine/internal/mem"
)

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
	node := f.new("inode", map[string]uint64{"i_size": size})
	space := f.new("address_space", map[string]uint64{"host": node})
	f.set("address_space", space, map[string]uint64{"i_pages": head(func(pfn, index uint64) uint64 {
		at := 0x40000 + pfn*f.structure("page").size
		f.set("page", direct+at, map[string]uint64{"index": index, "mapping": space})
		return fakeVmemmap + at
	})})
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

func TestPagesThatBecameAnothersAreNotRead(t *testing.T) {
	f := newFake(1 << 20)
	copy(f.m.ram[0x81000:], "secret")
	var at uint64
	file := fakeFile(f, mem.PageSize, func(page func(pfn, index uint64) uint64) uint64 {
		at = page(0x81, 0)
		return at
	})
	c, err := f.cached(file)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.ReadAt(make([]byte, 6), 0); n != 6 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	f.set("page", direct+at-fakeVmemmap, map[string]uint64{"mapping": direct + 0x100})
	if n, err := c.ReadAt(make([]byte, 6), 0); n != 0 || !errors.Is(err, ErrNotCached) {
		t.Errorf("of a page that another file has: %d bytes, %v", n, err)
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

// FuzzPageCache reads a file whose pages and their index hold what the fuzzer puts there.
func FuzzPageCache(f *testing.F) {
	k := newFake(1 << 19)
	fakeFile(k, 4*mem.PageSize, func(page func(pfn, index uint64) uint64) uint64 {
		n := k.new("xa_node", map[string]uint64{"shift": 6})
		put(k.m, k.where("xa_node", n, "slots")-direct, page(0x81, 0))
		return n | 2
	})
	f.Add(k.m.ram[0x7000:k.next], uint64(2), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, head uint64, off int64) {
		k := newFake(1 << 19)
		c, err := k.cached(fakeFile(k, 1<<40, func(func(pfn, index uint64) uint64) uint64 { return head }))
		if err != nil {
			t.Fatal(err)
		}
		copy(k.m.ram[k.next:], data)
		k.pointers(k.next)
		p := make([]byte, 3*mem.PageSize)
		if n, err := c.ReadAt(p, off); n > len(p) || n < len(p) && err == nil {
			t.Errorf("%d bytes without an error", n)
		}
	})
}
