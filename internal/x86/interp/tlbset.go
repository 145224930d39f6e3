package interp

import (
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// Low bits of tlbEntry.pa.
const (
	tlbGlobal = 1 << iota // survives MOV to CR3
	tlbLarge              // part of a 2 or 4 MiB page
	tlbHuge               // part of a 1 GiB page
	tlbFlags  = 0xFFF
)

// The privileges that have translations of their own.
const (
	asUser     = iota
	asKernel   // also for implicit accesses to descriptor tables and the TSS, whatever the CPL (SDM vol. 3A 4.6)
	asKernelAC // SMAP, suspended by RFLAGS.AC
	privileges
)

// A bank is a tlb with what makes dropping from it cheap: Linux changes CR3 and flushes single pages thousands of times a second.
type bank struct {
	tlb
	log     [128]uint16 // entries filled with translations that are not global, since the last flush
	nlog    int         // how many; more than len(log): look at all
	globals bool        // it may hold global translations
	huge    bool        // it may hold parts of 1 GiB pages
	large   [8]uint64   // a hash of the 2 MiB regions that it may hold parts of large pages of
	wrote   [16]uint64  // a hash of the physical pages that it may hold write permission for
}

// A space is the translations of one PCID; without PCIDs there is one.
type space struct {
	pcid  uint16
	used  uint64 // by age, for replacement
	banks [privileges]bank
	gen   [2]uint64 // of code translations that are not global: user's, kernel's
}

// tlbSet is all that a CPU remembers of translations.
type tlbSet struct {
	cur    *space
	all    []*space // at most maxSpaces
	clock  uint64
	gens   uint64    // the last generation given out
	ggen   [2]uint64 // of global code translations: user's, kernel's
	access [privileges]mmu.Access
	now    int // privilege in use
	view   [2]codeView

	fetch [2][fetchEntries]fetchEntry
	code  [64]uint64 // a hash of the pages whose code translations are remembered, here or under a generation
	codeL [8]uint64  // likewise of 2 MiB regions, for large pages
	codeH bool       // likewise for 1 GiB pages

	none bank // always empty: where each access must be looked at (alignment checks)
}

const (
	maxSpaces    = 8
	fetchEntries = 256
)

type fetchEntry struct {
	va  uint64
	gen uint64
	pa  mem.Addr
}

// A codeView is how RIP becomes a linear address: code translations are remembered by RIP.
type codeView struct {
	mode  decode.Mode
	base  uint64
	limit uint32
}

func bloom(b []uint64, n uint64) bool {
	n *= 0x9E3779B97F4A7C15
	n >>= 40
	return b[n>>6&uint64(len(b)-1)]>>(n&63)&1 != 0
}

func bloomAdd(b []uint64, n uint64) {
	n *= 0x9E3779B97F4A7C15
	n >>= 40
	b[n>>6&uint64(len(b)-1)] |= 1 << (n & 63)
}

func (s *tlbSet) init() {
	s.access = [privileges]mmu.Access{mmu.User, 0, mmu.AC}
	s.none.clear()
	s.ggen[0], s.ggen[1] = s.newGen(), s.newGen()
	s.cur = s.space(0)
}

func (s *tlbSet) newGen() uint64 {
	s.gens++
	return s.gens
}

// space finds the translations of pcid, or makes room for them.
func (s *tlbSet) space(pcid uint16) *space {
	s.clock++
	var oldest *space
	for _, sp := range s.all {
		if sp.pcid == pcid {
			sp.used = s.clock
			return sp
		}
		if oldest == nil || sp.used < oldest.used {
			oldest = sp
		}
	}
	if len(s.all) < maxSpaces {
		oldest = new(space)
		s.all = append(s.all, oldest)
		for i := range oldest.banks {
			oldest.banks[i].clear()
		}
		oldest.gen[0], oldest.gen[1] = s.newGen(), s.newGen()
	} else {
		s.flushSpace(oldest, true)
	}
	oldest.pcid, oldest.used = pcid, s.clock
	return oldest
}

// flush empties the bank: of what is not global, or of all.
func (b *bank) flush(global bool) {
	switch {
	case b.nlog == 0 && (!global || !b.globals):
		return
	case b.nlog <= len(b.log) && (!global || !b.globals):
		for _, i := range b.log[:b.nlog] {
			b.drop(uint64(i))
		}
	case global || !b.globals:
		b.clear()
	default:
		for i := range b.e {
			if b.e[i].pa&tlbGlobal == 0 {
				b.drop(uint64(i))
			}
		}
	}
	b.nlog = 0
	if global || !b.globals {
		b.globals, b.huge = false, false
		b.large, b.wrote = [8]uint64{}, [16]uint64{}
	}
}

func (b *bank) drop(i uint64) {
	b.e[i].read, b.e[i].write, b.e[i].pa = invalidTag(i), invalidTag(i), 0
}

// dropPage drops what translates va.
func (b *bank) dropPage(va uint64) {
	i := va >> 12 & tlbMask
	if e := &b.e[i]; e.read == va&^tlbFlags || e.write == va&^tlbFlags {
		b.drop(i)
	}
	if b.huge || bloom(b.large[:], va>>21) || bloom(b.large[:], va>>22) {
		for i := range b.e {
			e := &b.e[i]
			if e.read != invalidTag(uint64(i)) && (e.pa&tlbLarge != 0 && (e.read^va)>>22 == 0 || e.pa&tlbHuge != 0 && (e.read^va)>>30 == 0) {
				b.drop(uint64(i))
			}
		}
	}
}

// dropWrite takes away write permission for physical page pa.
func (b *bank) dropWrite(pa mem.Addr) {
	if !bloom(b.wrote[:], uint64(pa>>12)) {
		return
	}
	for i := range b.e {
		if b.e[i].pa&^tlbFlags == pa {
			b.e[i].write = invalidTag(uint64(i))
		}
	}
}

func (s *tlbSet) flushSpace(sp *space, global bool) {
	for i := range sp.banks {
		sp.banks[i].flush(global)
	}
	sp.gen[0], sp.gen[1] = s.newGen(), s.newGen()
}

// flushAll drops all translations of all spaces, the global ones too.
func (s *tlbSet) flushAll() {
	for _, sp := range s.all {
		s.flushSpace(sp, true)
	}
	s.ggen[0], s.ggen[1] = s.newGen(), s.newGen()
	s.code, s.codeL, s.codeH = [64]uint64{}, [8]uint64{}, false
}

// flushPage drops what translates va, in all spaces: more than INVLPG must, and cheap.
func (s *tlbSet) flushPage(va uint64) {
	for _, sp := range s.all {
		for i := range sp.banks {
			sp.banks[i].dropPage(va)
		}
	}
	if s.codeH || bloom(s.code[:], va>>12) || bloom(s.codeL[:], va>>21) || bloom(s.codeL[:], va>>22) {
		for _, sp := range s.all {
			sp.gen[0], sp.gen[1] = s.newGen(), s.newGen()
		}
		s.ggen[0], s.ggen[1] = s.newGen(), s.newGen()
		s.code, s.codeL, s.codeH = [64]uint64{}, [8]uint64{}, false
	}
}

// dropWrites takes away write permission for physical page pa, everywhere.
func (s *tlbSet) dropWrites(pa mem.Addr) {
	for _, sp := range s.all {
		for i := range sp.banks {
			sp.banks[i].dropWrite(pa)
		}
	}
}

// selectTLB makes c.tlb, c.gen and c.ggen those of the privilege and address space in force.
func (c *CPU) selectTLB() {
	s := &c.tlbs
	k := 1
	switch {
	case c.cpl == 3:
		s.now, k = asUser, 0
	case c.space.SMAP && c.flags&x86.AC != 0:
		s.now = asKernelAC
	default:
		s.now = asKernel
	}
	v := codeView{mode: c.mode}
	if c.mode != decode.Mode64 {
		v.base, v.limit = c.seg[x86.CS].Base, c.seg[x86.CS].Limit
	}
	if v != s.view[k] {
		s.view[k] = v
		for _, sp := range s.all {
			sp.gen[k] = s.newGen()
		}
		s.ggen[k] = s.newGen()
	}
	c.gen, c.ggen = s.cur.gen[k], s.ggen[k]
	c.aligned = c.cpl == 3 && c.flags&x86.AC != 0 && c.cr0&x86.CR0AM != 0
	if c.aligned {
		c.tlb = &s.none.tlb
		return
	}
	c.tlb = &s.cur.banks[s.now].tlb
}

// fill remembers a translation of va for privilege as and gives the entry, or nil where t is not plain RAM or is being watched.
func (c *CPU) fill(va uint64, as int, t *mmu.Translation) *tlbEntry {
	pa := t.Phys &^ tlbFlags
	p := c.ram.Page(pa)
	if p == nil || c.watches(va) {
		return nil
	}
	b := &c.tlbs.cur.banks[as]
	i := va >> 12 & tlbMask
	e := &b.e[i]
	e.read, e.write, e.page, e.pa = va&^tlbFlags, invalidTag(i), p, pa
	if t.Global {
		e.pa |= tlbGlobal
		b.globals = true
	} else {
		if b.nlog < len(b.log) {
			b.log[b.nlog] = uint16(i)
		}
		b.nlog++
	}
	switch {
	case t.Size >= 1<<30:
		e.pa |= tlbHuge
		b.huge = true
	case t.Size > 4096:
		e.pa |= tlbLarge
		bloomAdd(b.large[:], va>>21)
		if t.Size > 2<<20 {
			bloomAdd(b.large[:], va>>22)
		}
	}
	// The hash comes before the question: who tracks the page after the answer posts to this CPU, and finds the entry.
	bloomAdd(b.wrote[:], uint64(pa>>12))
	if t.Write && !c.ram.Tracked(pa) {
		e.write = va &^ tlbFlags
	}
	return e
}

// fetchPage gives the physical page of the code at va, and the generation under which the translation may be remembered: it holds as
// long as gen is c.gen or c.ggen. It raises the page fault itself.
func (c *CPU) fetchPage(va uint64) (pa mem.Addr, gen uint64, ok bool) {
	s := &c.tlbs
	k := 1
	acc := mmu.Fetch
	if c.cpl == 3 {
		k, acc = 0, mmu.Fetch|mmu.User
	}
	e := &s.fetch[k][va>>12&(fetchEntries-1)]
	if e.va == va>>12 && (e.gen == c.gen || e.gen == c.ggen) {
		return e.pa, e.gen, true
	}
	if c.long && !c.canonical(va) {
		return 0, 0, c.raiseCode(x86.GP, 0)
	}
	c.stats.walks++
	t, code, ok := c.space.Walk(c.ram, va, acc)
	if !ok {
		return 0, 0, c.pageFault(va, code)
	}
	gen = c.gen
	if t.Global {
		gen = c.ggen
	}
	switch {
	case t.Size >= 1<<30:
		s.codeH = true
	case t.Size > 2<<20:
		bloomAdd(s.codeL[:], va>>22)
	case t.Size > 4096:
		bloomAdd(s.codeL[:], va>>21)
	default:
		bloomAdd(s.code[:], va>>12)
	}
	*e = fetchEntry{va >> 12, gen, t.Phys &^ tlbFlags}
	return e.pa, gen, true
}
