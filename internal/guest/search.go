package guest

import (
	"bytes"
	"errors"
	"fmt"
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

// search finds the running kernel without any register. Each place that may be a kernel's must prove itself: by page tables that lie where
// the kernel's own symbols say, and map the kernel there. RAM may hold the remains of kernels that ran before a reboot; of several that
// prove themselves the one whose clock is latest is running.
func search(t Target) (*Kernel, error) {
	if i, ok := t.(Informed); ok {
		if s, ok := parseVMCoreInfo(i.VMCoreInfo()).space(t); ok {
			if k, err := openIn(t, s); err == nil {
				return k, nil
			}
		}
	}
	var found []*Kernel
	tried := map[mem.Addr]bool{}
	try := func(s *Space) {
		if tried[s.root] || len(tried) > maxCandidates {
			return
		}
		tried[s.root] = true
		if k, err := openIn(t, s); err == nil {
			found = append(found, k)
		}
	}
	tables := []mem.Addr{}
	scan(t, func(chunk []byte, a mem.Addr) {
		for p := 0; p+mem.PageSize <= len(chunk); p += mem.PageSize {
			if page := chunk[p : p+mem.PageSize]; bytes.HasPrefix(page, infoPrefix) {
				if s, ok := parseVMCoreInfo(page).space(t); ok {
					try(s)
				}
			}
		}
		for p := 0; len(tables) < maxCandidates; {
			i := bytes.Index(chunk[p:], digits)
			if i < 0 {
				break
			}
			tables = append(tables, a+mem.Addr(p+i))
			p += i + 1
		}
	})
	if len(found) == 0 { // no VMCOREINFO: by the symbol table itself
		for _, at := range tables {
			if s, ok := spaceBySymbols(t, at); ok {
				try(s)
			}
		}
	}
	return latest(found)
}

// maxCandidates bounds how many places in memory are looked at closely.
const maxCandidates = 256

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

// scan calls fn with the guest's memory, in chunks that begin at a page; they overlap a little, so that nothing short is cut in two.
func scan(t Target, fn func(chunk []byte, a mem.Addr)) {
	const size, overlap = 4 << 20, mem.PageSize
	buf := make([]byte, size+overlap)
	sparse, _ := t.(Sparse)
	for _, r := range t.Regions() {
		end := r.Base + mem.Addr(r.Size)
		for a := r.Base; a < end; {
			limit := end
			if sparse != nil {
				start, length, ok := sparse.NextData(a)
				if !ok || start >= end {
					break
				}
				a = max(a, start&^(mem.PageSize-1))
				limit = min(end, max(start+mem.Addr(length), a+1))
			}
			got, _ := t.ReadPhys(buf[:min(uint64(end-a), uint64(limit-a)+overlap, uint64(len(buf)))], a)
			fn(buf[:got], a)
			a += (min(limit-a, size) + mem.PageSize - 1) &^ (mem.PageSize - 1)
		}
	}
}

// around reads the memory up to n bytes before and behind at, as far as it is in one piece with it.
func around(t Target, at mem.Addr, n uint64) (b []byte, from mem.Addr) {
	for _, r := range t.Regions() {
		if at >= r.Base && uint64(at-r.Base) < r.Size {
			from = r.Base
			if uint64(at-r.Base) > n {
				from = (at - mem.Addr(n)) &^ (mem.PageSize - 1)
			}
			b = make([]byte, min(uint64(at-from)+n, uint64(r.Base)+r.Size-uint64(from)))
			got, _ := t.ReadPhys(b, from)
			return b[:got], from
		}
	}
	return nil, at
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

// spaceBySymbols finds the kernel whose symbol table has its tokens at physical address at. Decoded, it says where the banner and the page
// tables are; the banner's own place ties virtual to physical addresses.
func spaceBySymbols(t Target, at mem.Addr) (*Space, bool) {
	// The digits alone are found in other places too: look closely before looking far.
	if image, from := around(t, at, 16<<10); tokensAt(image, int(at-from)) == nil {
		return nil, false
	}
	image, from := around(t, at, 96<<20)
	table := tokensAt(image, int(at-from))
	if table == nil {
		return nil, false
	}
	names, ok := table.findNames(image)
	if !ok {
		return nil, false
	}
	// Addresses that are relative to their own place come out physical.
	addrs, ok := names.findAddresses(image, table, 0, uint64(from))
	if !ok {
		return nil, false
	}
	symbols := NewSymbols(names.expand(image, table, addrs))
	banner, err := symbols.Lookup("linux_banner")
	if err != nil {
		return nil, false
	}
	top, err := symbols.Lookup("init_top_pgt")
	if err != nil {
		return nil, false
	}
	const slot = 2 << 20 // the kernel lies at a multiple of it, in both
	for p := 0; ; p++ {
		i := bytes.Index(image[p:], []byte("Linux version "))
		if i < 0 {
			return nil, false
		}
		p += i
		delta := uint64(from) + uint64(p) - banner.Addr // physical - decoded
		if delta%slot != 0 {
			continue
		}
		root := mem.Addr(top.Addr + delta)
		for _, levels := range []int{4, 5} {
			s := &Space{ram: t, root: root, levels: levels}
			text, _, err := s.Image()
			if err != nil {
				continue
			}
			// The image maps its own page tables, at the distance from its start that the symbols say.
			pa, _, err := s.Translate(text)
			if err == nil && s.maps(text+uint64(root-pa), root) {
				return s, true
			}
		}
	}
}
