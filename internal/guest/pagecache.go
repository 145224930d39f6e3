package guest

import (
	"errors"
	"fmt"
	"io"

	"vitrine.dev/vitrine/internal/mem"
)

// ErrNotCached is returned for a part of a file that is not in the guest's page cache.
var ErrNotCached = errors.New("guest: not in the page cache")

// A cachedFile reads a file of the guest's from its page cache: the file system is not asked. It implements io.ReaderAt.
type cachedFile struct {
	k       *Kernel
	mapping uint64 // address of its struct address_space
	tree    uint64 // of the struct xarray in that
	size    int64
}

// cached makes one of a struct file.
func (k *Kernel) cached(file uint64) (*cachedFile, error) {
	f, err := k.load("file", file)
	if err != nil {
		return nil, err
	}
	space, err := k.load("address_space", f.uint("f_mapping"))
	if err != nil {
		return nil, err
	}
	node, err := k.load("inode", space.uint("host"))
	if err != nil {
		return nil, err
	}
	size := node.int("i_size")
	if !space.has("i_pages") || size < 0 {
		return nil, fmt.Errorf("guest: file of %d bytes: %w", size, ErrNotCached)
	}
	return &cachedFile{k, space.addr, space.at("i_pages"), size}, nil
}

// ReadAt implements io.ReaderAt.
func (c *cachedFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	n := 0
	for n < len(p) && off < c.size {
		pa, page, err := c.page(uint64(off) / mem.PageSize)
		if err != nil {
			return n, err
		}
		in := uint64(off) % mem.PageSize
		want := min(len(p)-n, mem.PageSize-int(in), int(min(c.size-off, mem.PageSize)))
		got, err := c.k.t.ReadPhys(p[n:n+want], pa+mem.Addr(in))
		if err == nil && !c.owns(page) {
			return n, ErrNotCached
		}
		n, off = n+got, off+int64(got)
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// page finds a page in the xarray (include/linux/xarray.h): nodes of 64 slots are marked by 2 in the lowest bits, what was evicted by 1, and
// small numbers with 2 refer to another slot of their node.
func (c *cachedFile) page(index uint64) (pa mem.Addr, page uint64, err error) {
	k := c.k
	node := k.structure("xa_node")
	slots, ok := node.field("slots")
	shiftAt, ok2 := node.field("shift")
	head, ok3 := k.structure("xarray").field("xa_head")
	if !ok || !ok2 || !ok3 {
		return 0, 0, errNoBTF
	}
	e, err := k.space.Uint64(c.tree + head.Off)
	if err != nil {
		return 0, 0, err
	}
	for depth := 0; e&3 == 2 && e > 4096; depth++ {
		var shift [1]byte
		at := e &^ 3
		if err := k.space.ReadAt(shift[:], at+shiftAt.Off); err != nil {
			return 0, 0, err
		}
		if depth > 11 || shift[0] > 60 || depth == 0 && index>>shift[0] > 63 {
			return 0, 0, ErrNotCached
		}
		slot := index >> shift[0] & 63
		for range 2 {
			if e, err = k.space.Uint64(at + slots.Off + 8*slot); err != nil {
				return 0, 0, err
			}
			if e&3 != 2 || e >= 256 {
				break
			}
			slot = e >> 2 // a sibling
		}
	}
	if e < kernelHalf || e&3 != 0 {
		return 0, 0, ErrNotCached
	}
	pa, err = c.frame(e, index)
	return pa, e, err
}

// owns tells whether a page is the file's still, or again. What was read of one that is not may be anything's.
func (c *cachedFile) owns(page uint64) bool {
	f, ok := c.k.structure("folio").field("mapping") // of what begins with a page, since 7b230db3b8d3 (v5.16)
	if !ok {
		if f, ok = c.k.structure("page").field("mapping"); !ok {
			return true
		}
	}
	m, err := c.k.space.Uint64(page + f.Off)
	return err == nil && m == c.mapping
}

// frame is where the page of an index is whose struct page, or that of the folio it is in, is at page.
func (c *cachedFile) frame(page, index uint64) (mem.Addr, error) {
	k := c.k
	base := k.variable("vmemmap_base")
	size := k.structure("page").size
	if base == 0 || size == 0 || page < base {
		return 0, ErrNotCached
	}
	p, err := k.load("page", page)
	if err != nil {
		return 0, err
	}
	pfn := (page - base) / size
	// Since v5.17 the cache holds folios: the first page's index tells which this is.
	first := p.uint("index", "__folio_index")
	if index > first && index-first < 1<<18 {
		pfn += index - first
	}
	if pfn > 1<<40 {
		return 0, ErrNotCached
	}
	return mem.Addr(pfn * mem.PageSize), nil
}
