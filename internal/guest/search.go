package guest

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

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
//
// To look at every page costs 0.1 ms and more a MiB. So kernels are looked for behind their banners first, and one whose clock is right is believed.
func (c *Cache) search(t Target) (*Kernel, error) {
	if i, ok := t.(Informed); ok {
		if s, ok := parseVMCoreInfo(i.VMCoreInfo()).space(t); ok {
			if k, err := c.openIn(t, s); err == nil {
				return k, nil
			}
		}
	}
	f := &finder{t: t, regions: t.Regions(), seen: map[mem.Addr]bool{}}
	var found []*Kernel
	for _, b := range banners(t) {
		for a, size := range pieces(t, b, b+bannerReach) {
			f.look(a, size)
			if k := f.proved(c); len(k) > 0 {
				found = append(found, k...)
				break
			}
		}
	}
	if k, err := latest(found); err == nil && k.isRunning() {
		return k, nil
	}
	for a, size := range pieces(t, 0, ^mem.Addr(0)) {
		f.look(a, size)
	}
	return latest(append(found, f.proved(c)...))
}

// isRunning tells whether the kernel's clock shows the time that it is, as that of remains does not. Of many guests that run it does not either.
func (k *Kernel) isRunning() bool {
	const most = 10 // seconds
	tk, ok := k.timekeeper()
	if !ok {
		return false
	}
	d := time.Now().Unix() - tk.int("xtime_sec")
	return d >= -most && d <= most
}

// Bounds of how much is looked at closely: places, and bytes of images.
const (
	maxCandidates = 256
	maxLooked     = 4 << 30
)

// Where a kernel's banner is: its read-only data begin at a multiple of 2 MiB (X86_ALIGN_RODATA_BEGIN, arch/x86/kernel/vmlinux.lds.S), and with them what is
// linked first has. Its page tables are in the data behind.
const (
	bannerRoom  = 1 << 10
	bannerReach = 64 << 20
	maxBanners  = 64
)

// banners gives the places that look like the beginning of a kernel's read-only data.
func banners(t Target) []mem.Addr {
	var all []mem.Addr
	text := []byte("Linux version ")
	for a, size := range pieces(t, 0, ^mem.Addr(0)) {
		for p := (a + imageSlot - 1) &^ (imageSlot - 1); p < a+mem.Addr(size) && len(all) < maxBanners; p += imageSlot {
			if bytes.Contains(look(t, p, bannerRoom), text) {
				all = append(all, p)
			}
		}
	}
	return all
}

// look gives n bytes at a, or fewer, in place where that can be.
func look(t Target, a mem.Addr, n uint64) []byte {
	if m, ok := t.(Mapped); ok {
		if b := m.View(a, n); uint64(len(b)) == n {
			return b
		}
	}
	b := make([]byte, n)
	got, _ := t.ReadPhys(b, a)
	return b[:got]
}

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

// A finder finds page tables that map a kernel: one of each table of the image's range, which all processes' share.
type finder struct {
	t       Target
	regions []mem.Region
	seen    map[mem.Addr]bool // tables of the image's range
	found   []*Space          // not yet opened
	looked  uint64            // bytes of images
}

// look looks at a piece of memory: at the last 8 bytes of each page. In the uppermost page tables, they are of the kernel's image.
func (f *finder) look(a mem.Addr, size uint64) {
	const at = mem.PageSize - 8
	b := look(f.t, a, size)
	for p := at; p+8 <= len(b); p += mem.PageSize {
		f.page(a+mem.Addr(p-at), le.Uint64(b[p:]))
	}
}

// page takes a page by its last 8 bytes.
func (f *finder) page(page mem.Addr, word uint64) {
	if !isTable(word) || len(f.seen) >= maxCandidates {
		return
	}
	upper := mem.Addr(word & pteAddr)
	if !f.inRAM(upper) {
		return
	}
	middle, ok := f.next(upper, 510)
	if !ok || f.seen[middle] {
		return
	}
	if _, _, ok := imageIn(f.t, middle); ok {
		f.seen[middle] = true
		f.found = append(f.found, &Space{ram: f.t, root: page, levels: 4})
	}
}

func (f *finder) inRAM(a mem.Addr) bool {
	return slices.ContainsFunc(f.regions, func(r mem.Region) bool { return a >= r.Base && uint64(a-r.Base) < r.Size })
}

// next is the table that an entry of a table leads to.
func (f *finder) next(table mem.Addr, index mem.Addr) (mem.Addr, bool) {
	var b [8]byte
	if _, err := f.t.ReadPhys(b[:], table+8*index); err != nil {
		return 0, false
	}
	e := le.Uint64(b[:])
	a := mem.Addr(e & pteAddr)
	return a, isTable(e) && f.inRAM(a)
}

// proved opens what was found, and gives the kernels that prove themselves.
func (f *finder) proved(c *Cache) []*Kernel {
	var all []*Kernel
	for _, s := range f.found {
		_, size, err := s.Image()
		if f.looked += size; err != nil || f.looked > maxLooked {
			continue
		}
		if k, err := c.openIn(f.t, s); err == nil && k.prove() {
			all = append(all, k)
		}
	}
	f.found = nil
	return all
}

// isTable tells whether an entry may be of a table of the upper levels of the kernel's half: _KERNPG_TABLE, perhaps used or encrypted for.
func isTable(e uint64) bool {
	const writable, user, accessed, dirty = 1 << 1, 1 << 2, 1 << 5, 1 << 6
	return e&^(pteAddr|user|accessed|dirty) == ptePresent|writable && e&pteAddr != 0
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

// pieces gives the pieces of the guest's memory from a on up to end that may hold anything but zeros: whole pages, at most 4 MiB.
func pieces(t Target, a, end mem.Addr) iter.Seq2[mem.Addr, uint64] {
	const most = 4 << 20
	const mask = mem.PageSize - 1
	sparse, _ := t.(Sparse)
	return func(yield func(mem.Addr, uint64) bool) {
		for _, r := range t.Regions() {
			end := min(end, r.Base+mem.Addr(r.Size)) &^ mask
			for a := (max(a, r.Base) + mask) &^ mask; a < end; {
				limit := end
				if sparse != nil { // to ask costs as much as the run is long
					start, length, ok := sparse.NextData(a)
					if !ok || start >= end {
						break
					}
					a = max(a, start&^mask)
					limit = min(end, max((start+mem.Addr(length)+mask)&^mask, a+mem.PageSize))
				}
				for ; a < limit; a += most {
					if !yield(a, uint64(min(limit-a, most))) {
						return
					}
				}
				a = limit
			}
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
