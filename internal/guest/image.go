package guest

import "vitrine.dev/vitrine/internal/mem"

// A Mapped target can show memory in place: nothing is copied.
type Mapped interface {
	// View gives up to n bytes at a, or nil. The guest may change them at any time: who looks twice may see two things.
	View(a mem.Addr, n uint64) []byte
}

// A ramImage is a kernel's image in a guest's memory. It implements image.
type ramImage struct {
	t    Target
	from mem.Addr
	n    uint64
	buf  []byte
}

func (r *ramImage) size() uint64 { return r.n }

func (r *ramImage) view(off, n uint64) []byte {
	if off >= r.n {
		return nil
	}
	n = min(n, r.n-off)
	if m, ok := r.t.(Mapped); ok {
		if b := m.View(r.from+mem.Addr(off), n); b != nil {
			return b
		}
	}
	if uint64(len(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	got, _ := r.t.ReadPhys(r.buf[:n], r.from+mem.Addr(off))
	return r.buf[:got]
}

func (r *ramImage) read(off, n uint64) []byte {
	if off >= r.n {
		return nil
	}
	b := make([]byte, min(n, r.n-off))
	got, _ := r.t.ReadPhys(b, r.from+mem.Addr(off))
	return b[:got]
}
