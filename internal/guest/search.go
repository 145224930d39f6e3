package guest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/mem"
)

// Optional abilities of a Target.
type (
	// A Sparse target knows where it holds data: what is between is zeros, and reading it may cost memory.
	Sparse interface {
		// NextData gives the next run of bytes at or behind a that may not be zero; ok is false where there is none.
		NextData(a mem.Addr) (start mem.Addr, size uint64, ok bool)
	}
	// An Informed target brings the kernel's VMCOREINFO, as crash dumps do.
	Informed interface{ VMCoreInfo() []byte }
)

// ErrNoKernel is returned where no Linux kernel can be found in memory.
var ErrNoKernel = errors.New("guest: no Linux kernel found in its memory")

// search finds the running kernel without any register. Page tables tell where one is mapped; it must then prove itself: by page tables that lie
// where its own symbols say, and map it there. RAM may hold the remains of kernels that ran before a reboot; of several that prove themselves
// the one whose clock is latest is running.
func (c *Cache) search(t Target) (*Kernel, error) {
	if i, ok := t.(Informed); ok {
		if s, ok := parseVMCoreInfo(i.VMCoreInfo()).space(t); ok {
			if k, err := c.openIn(t, s); err == nil {
				return k, nil
			}
		}
	}
	var found []*Kernel
	looked := uint64(0)
	for _, s := range spaces(t) {
		_, size, err := s.Image()
		if looked += size; err != nil || looked > maxLooked {
			continue
		}
		if k, err := c.openIn(t, s); err == nil && k.prove() {
			found = append(found, k)
		}
	}
	return latest(found)
}

// Bounds of how much is looked at closely: places, and bytes of images.
const (
	maxCandidates = 256
	maxLooked     = 4 << 30
)

// prove tells whether the kernel's own page tables, where its symbols say they are, map it where it was found, and takes them for its space.
func (k *Kernel) prove() bool {
	pa, _, err := k.space.Translate(k.Text)
	if err != nil {
		return false
	}
	top := k.address("init_top_pgt")
	if top < k.Text || top-k.Text >= k.image.n {
		// Not among the symbols (CONFIG_KALLSYMS_ALL): that the kernel has symbols, begins where it is mapped, must do.
		return true
	}
	for _, levels := range []int{4, 5} {
		s := &Space{ram: k.t, root: pa + mem.Addr(top-k.Text), levels: levels}
		if s.maps(k.Text, pa) && s.maps(top, s.root) {
			k.space = s
			return true
		}
	}
	return false
}

// spaces finds page tables that map a kernel: one of each table of the image's range, which all processes' share.
func spaces(t Target) []*Space {
	var all []*Space
	seen := map[mem.Addr]bool{}
	regions := t.Regions()
	inRAM := func(a mem.Addr) bool {
		return slices.ContainsFunc(regions, func(r mem.Region) bool { return a >= r.Base && uint64(a-r.Base) < r.Size })
	}
	next := func(table mem.Addr, index mem.Addr) (mem.Addr, bool) {
		var b [8]byte
		if _, err := t.ReadPhys(b[:], table+8*index); err != nil {
			return 0, false
		}
		e := le.Uint64(b[:])
		a := mem.Addr(e & pteAddr)
		return a, isTable(e) && inRAM(a)
	}
	lastWords(t, func(page mem.Addr, word uint64) {
		if !isTable(word) || len(seen) >= maxCandidates {
			return
		}
		upper := mem.Addr(word & pteAddr)
		if !inRAM(upper) {
			return
		}
		middle, ok := next(upper, 510)
		if !ok || seen[middle] {
			return
		}
		if _, _, ok := imageIn(t, middle); ok {
			seen[middle] = true
			all = append(all, &Space{ram: t, root: page, levels: 4})
		}
	})
	return all
}

// isTable tells whether an entry may be of a table of the upper levels of the kernel's half: _KERNPG_TABLE, perhaps used or encrypted for.
func isTable(e uint64) bool {
	const writable, user, accessed, dirty = 1 << 1, 1 << 2, 1 << 5, 1 << 6
	return e&^(pteAddr|user|accessed|dirty) == ptePresent|writable && e&pteAddr != 0
}

// lastWords calls fn with the last 8 bytes of each page of memory that may not be zero: in the uppermost page tables, they are of the kernel's image.
func lastWords(t Target, fn func(page mem.Addr, word uint64)) {
	const at = mem.PageSize - 8
	mapped, _ := t.(Mapped)
	scan(t, func(a mem.Addr, size uint64) {
		if mapped != nil {
			if b := mapped.View(a, size); uint64(len(b)) == size {
				for p := uint64(at); p < size; p += mem.PageSize {
					if w := le.Uint64(b[p:]); w&ptePresent != 0 {
						fn(a+mem.Addr(p-at), w)
					}
				}
				return
			}
		}
		b := make([]byte, size)
		n, _ := t.ReadPhys(b, a)
		for p := at; p+8 <= n; p += mem.PageSize {
			fn(a+mem.Addr(p-at), le.Uint64(b[p:]))
		}
	})
}

// latest chooses among kernels that all prove themselves.
func latest(found []*Kernel) (*Kernel, error) {
	if len(found) == 0 {
		return nil, ErrNoKernel
	}
	best, bestTime, ties := found[0], int64(-1), 0
	for _, k := range found {
		now := int64(0)
		if tk, ok := k.timekeeper(); ok {
			now = tk.int("xtime_sec")
		}
		switch {
		case now > bestTime:
			best, bestTime, ties = k, now, 0
		case now == bestTime && k.Text != best.Text:
			ties++
		}
	}
	if ties > 0 {
		return nil, fmt.Errorf("guest: its memory holds %d kernels, and nothing tells which of them runs", len(found))
	}
	return best, nil
}

// scan calls fn with the pieces of the guest's memory that may hold anything but zeros: whole pages, at most 4 MiB.
func scan(t Target, fn func(a mem.Addr, size uint64)) {
	const most = 4 << 20
	const mask = mem.PageSize - 1
	sparse, _ := t.(Sparse)
	for _, r := range t.Regions() {
		end := (r.Base + mem.Addr(r.Size)) &^ mask
		for a := (r.Base + mask) &^ mask; a < end; {
			limit := end
			if sparse != nil {
				start, length, ok := sparse.NextData(a)
				if !ok || start >= end {
					break
				}
				a = max(a, start&^mask)
				limit = min(end, max((start+mem.Addr(length)+mask)&^mask, a+mem.PageSize))
			}
			size := min(limit-a, most)
			fn(a, uint64(size))
			a += size
		}
	}
}

// coreInfo is VMCOREINFO: lines of NAME=VALUE that the kernel keeps for who reads its dumps (kernel/vmcore_info.c).
type coreInfo map[string]string

var infoPrefix = []byte("OSRELEASE=")

func parseVMCoreInfo(b []byte) coreInfo {
	if !bytes.HasPrefix(b, infoPrefix) {
		return nil
	}
	if n := bytes.IndexByte(b, 0); n >= 0 {
		b = b[:n]
	}
	info := coreInfo{}
	for line := range strings.Lines(string(b[:min(len(b), mem.PageSize)])) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			info[name] = value
		}
	}
	return info
}

func (c coreInfo) number(name string, base int) (uint64, bool) {
	v, err := strconv.ParseUint(c[name], base, 64)
	if err != nil {
		n, err2 := strconv.ParseInt(c[name], base, 64) // phys_base can be negative
		v, err = uint64(n), err2
	}
	return v, err == nil
}

// space is the kernel's address space as VMCOREINFO has it, if the page tables agree.
func (c coreInfo) space(t Target) (*Space, bool) {
	root, ok := c.number("SYMBOL(swapper_pg_dir)", 16)
	base, ok2 := c.number("NUMBER(phys_base)", 10)
	if !ok || !ok2 {
		return nil, false
	}
	s := &Space{ram: t, root: mem.Addr(root - imageStart + base), levels: 4}
	if v, _ := c.number("NUMBER(pgtable_l5_enabled)", 10); v == 1 {
		s.levels = 5
	}
	return s, s.maps(root, s.root)
}

// maps tells whether va is where it should be.
func (s *Space) maps(va uint64, want mem.Addr) bool {
	pa, _, err := s.Translate(va)
	return err == nil && pa == want
}
