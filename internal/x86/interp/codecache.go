package interp

import (
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// A block is a run of instructions of one physical page that is entered at its start only.
type block struct {
	term terminator
	ops  []op
	last op        // what term executes, if it executes an instruction
	link [2]*block // where execution goes next, inside of this page: 0 not taken or straight on, 1 taken
	to   [2]uint64 // those places as offsets from the page's first byte; noLink where there is none
	n    uint32    // instructions
	off  uint16    // offset of the first byte in the page
	end  uint16    // offset behind the last byte; above pageSize if it straddles
	key  blockKey
	dead bool      // its bytes changed
	heat uint32    // how often it was executed by the interpreter, up to hot
	code uintptr   // its translation, or 0
	host *hostCode // likewise, or nil
	page *codePage // the page it begins in
	next *block    // the next in the page's list of this granule
}

// noLink is an offset that no block has.
const noLink = ^uint64(0)

// A terminator ends a block: it returns the block to go on with and has set gpr[regBase] for it, or nil, with c.rip set or c.stop saying why not.
type terminator func(c *CPU, b *block) *block

// blockKey is all that decides what bytes mean, besides the bytes.
type blockKey uint8

const (
	keySingle  blockKey = 1 << 4 // one instruction only, not fused with another
	keyLimited blockKey = 1 << 5 // CS has a limit below 4 GiB: no links, so that each entry is checked
)

func (k blockKey) mode() decode.Mode { return decode.Mode(k & 15) }

// Granules are the units in which a page knows where its code is.
const (
	granShift = 6
	granules  = pageSize >> granShift
	// maxBlock is the longest a block may be in bytes, in granules rounded up.
	maxBlockInsns = 64
	maxBlockGrans = (maxBlockInsns*15)>>granShift + 1
)

// A codePage is what one CPU knows of the code in a page.
type codePage struct {
	pa   mem.Addr
	code uint64           // a bit a granule that holds decoded bytes
	head [granules]*block // by the granule of the first byte
	tail []*block         // blocks of the page before that end in this one
}

// A codeCache holds the decoded blocks of one CPU by physical address.
type codeCache struct {
	dir   map[mem.Addr]*codePage
	ops   int            // in all blocks since the last flush, dead ones too
	empty []mem.Addr     // pages to look at in tidy
	poll  *atomic.Uint32 // the CPU's
	host  *native        // translations of the blocks; nil: there are none
}

// A VM's caches are bounded by totalOps, shared equally, but a CPU may have minOps: an op takes 48 bytes, a block some 150 (counted as two ops
// here). A Linux boot decodes 400,000.
const (
	totalOps = 800_000
	minOps   = 100_000
)

// written kills the blocks that have a byte in [a, a+n), inside one page.
func (cc *codeCache) written(a mem.Addr, n int) {
	p := cc.dir[a&^(pageSize-1)]
	if p == nil || n <= 0 {
		return
	}
	lo := int(a & (pageSize - 1))
	hi := lo + n
	g0, g1 := lo>>granShift, (hi-1)>>granShift
	touched := ^uint64(0) >> (63 - uint(g1)) &^ (1<<uint(g0) - 1)
	if p.code&touched == 0 {
		return
	}
	for g := max(0, g0-maxBlockGrans); g <= g1; g++ {
		for at := &p.head[g]; *at != nil; {
			b := *at
			if int(b.off) < hi && int(b.end) > lo {
				cc.kill(b)
				*at = b.next
			} else {
				at = &b.next
			}
		}
	}
	tail := p.tail[:0]
	for _, b := range p.tail {
		if !b.dead && int(b.end)-pageSize > lo {
			cc.kill(b)
		}
		if !b.dead {
			tail = append(tail, b)
		}
	}
	clear(p.tail[len(tail):])
	p.tail = tail
	if p.recount(); p.code == 0 {
		cc.empty = append(cc.empty, p.pa)
		cc.poll.Or(pollTidy)
	}
}

// recount finds the granules that hold code.
func (p *codePage) recount() {
	p.code = 0
	for _, b := range p.head {
		for ; b != nil; b = b.next {
			if !b.dead {
				p.mark(int(b.off), min(int(b.end), pageSize))
			}
		}
	}
	for _, b := range p.tail {
		p.mark(0, int(b.end)-pageSize)
	}
}

func (p *codePage) mark(lo, hi int) {
	if lo < hi {
		p.code |= ^uint64(0) >> (63 - uint(hi-1)>>granShift) &^ (1<<(uint(lo)>>granShift) - 1)
	}
}

// kill makes b unreachable: links to it are not followed, and if it is running it is left before its next op.
func (cc *codeCache) kill(b *block) {
	if b.host != nil {
		cc.host.kill(b)
	}
	b.dead = true
	b.link = [2]*block{}
	for i := range b.ops {
		b.ops[i].fn = leaveDead
	}
	b.term = termDead
}

func leaveDead(c *CPU, o *op) bool {
	c.stop = stopRetry
	return false
}

func termDead(c *CPU, b *block) *block {
	c.rip = c.ipOf(&b.last)
	return nil
}

// find is the block at pa, or nil.
func (cc *codeCache) find(pa mem.Addr, key blockKey) *block {
	p := cc.dir[pa&^(pageSize-1)]
	if p == nil {
		return nil
	}
	off := uint16(pa & (pageSize - 1))
	for at := &p.head[off>>granShift]; *at != nil; {
		b := *at
		switch {
		case b.dead: // killed by a write to the page that it ends in
			*at = b.next
			continue
		case b.off == off && b.key == key:
			return b
		}
		at = &b.next
	}
	return nil
}

// codePage is the page of pa, made and watched for writes if it is new.
func (c *CPU) codePage(pa mem.Addr) *codePage {
	pa &^= pageSize - 1
	p := c.codes.dir[pa]
	if p == nil {
		if c.codes.dir == nil {
			c.codes.dir, c.codes.poll = map[mem.Addr]*codePage{}, &c.poll
		}
		p = &codePage{pa: pa}
		c.codes.dir[pa] = p
		c.vm.holders.hold(c, pa)
	}
	return p
}

// holders counts the CPUs that have code of a page, so that tracking can end when there are none. A page that once held code and is data now
// would else be slow to write for ever.
type holders struct {
	mu sync.Mutex // a CPU parks before it takes it: MarkCode waits for the others
	n  map[mem.Addr]int
}

func (h *holders) hold(c *CPU, pa mem.Addr) {
	c.park()
	h.mu.Lock()
	if h.n == nil {
		h.n = map[mem.Addr]int{}
	}
	h.n[pa]++
	c.ram.MarkCode(pa)
	h.mu.Unlock()
	c.unpark()
}

func (h *holders) release(c *CPU, pages []mem.Addr) {
	c.park()
	h.mu.Lock()
	for _, pa := range pages {
		if h.n[pa]--; h.n[pa] == 0 {
			delete(h.n, pa)
			c.ram.ClearCode(pa)
		}
	}
	h.mu.Unlock()
	c.unpark()
}

// tidy gives up the pages whose last block died.
func (c *CPU) tidy() {
	c.poll.And(^uint32(pollTidy))
	cc := &c.codes
	var pages []mem.Addr
	for _, pa := range cc.empty {
		if p := cc.dir[pa]; p != nil && p.code == 0 {
			delete(cc.dir, pa)
			pages = append(pages, pa)
		}
	}
	cc.empty = cc.empty[:0]
	c.vm.holders.release(c, pages)
}

// pollTidy is a reason in CPU.poll: codeCache.empty is not empty.
const pollTidy = 1 << 31

// insert makes b findable.
func (cc *codeCache) insert(b *block, second *codePage) {
	g := b.off >> granShift
	b.next = b.page.head[g]
	b.page.head[g] = b
	b.page.mark(int(b.off), min(int(b.end), pageSize))
	if second != nil {
		second.tail = append(second.tail, b)
		second.mark(0, int(b.end)-pageSize)
	}
	cc.ops += len(b.ops) + 2
}

// flushCode drops all blocks.
func (c *CPU) flushCode() {
	var pages []mem.Addr
	for pa, p := range c.codes.dir {
		pages = append(pages, pa)
		for _, b := range p.head {
			for ; b != nil; b = b.next {
				c.codes.kill(b)
			}
		}
	}
	if c.native != nil {
		c.native.reset()
	}
	c.codes.dir, c.codes.ops, c.codes.empty = nil, 0, nil
	c.vm.holders.release(c, pages)
	c.jc = jumpCache{}
	c.stats.flushes++
}

// A jumpCache finds blocks by RIP, for jumps that leave a page or come from a register.
type jumpCache struct {
	e [jumpEntries]jumpEntry
}

type jumpEntry struct {
	rip uint64
	gen uint64 // valid where it is CPU.gen or CPU.ggen
	b   *block
}

const jumpEntries = 2048

func (j *jumpCache) entry(rip uint64) *jumpEntry { return &j.e[(rip^rip>>11)%jumpEntries] }

// jump goes to rip: to its block where that is known, else it sets c.rip and returns nil. A target that is not canonical or beyond CS's limit
// is a fault of the jump.
func (c *CPU) jump(rip uint64) *block {
	e := c.jc.entry(rip)
	if e.rip == rip && (e.gen == c.gen || e.gen == c.ggen) && !e.b.dead {
		c.gpr[regBase] = rip - uint64(e.b.off)
		return e.b
	}
	if !c.goodTarget(rip) {
		c.raiseCode(x86.GP, 0)
		return nil
	}
	c.rip = rip
	return nil
}

// goodTarget tells whether a near jump may go to rip.
func (c *CPU) goodTarget(rip uint64) bool {
	if c.mode == decode.Mode64 {
		return c.canonical(rip)
	}
	return rip <= uint64(c.seg[x86.CS].Limit)
}
