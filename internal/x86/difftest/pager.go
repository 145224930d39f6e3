package difftest

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"vitrine.dev/vitrine/internal/mem"
)

// A pager is what a kernel does behind a program's back: it gives pages when they are touched, takes them away again, and interrupts. Nothing of it may be
// seen in how a case ends.
type pager struct {
	ram *mem.Memory
	rng *rand.Rand // of the case that runs
	irq atomic.Bool

	Faults, Interrupts uint64 // that the monitor dealt with
}

// Ports by which the monitor asks the pager, and where the code that does so is.
const (
	faultPort = 0xF5
	irqPort   = 0xF6
	atFault   = 0x700
	atIRQ     = 0x780
	atSettled = 0x160 // in the state page: not zero where a fault was the pager's
)

// pages are the user pages: where their entry is, and what it is for a program.
var pages = [...]struct {
	va, pte uint64
	entry   mem.Addr
}{
	{codeVA, physCode | 5, physTables + 0x3000},
	{codeVA + pageSize, physSecond | 7, physTables + 0x3008},
	{dataVA, physData | 7 | 1<<63, physTables + 0x4008},
	{dataVA + pageSize, physData + pageSize | 7 | 1<<63, physTables + 0x4010},
	{roVA, physData + 2*pageSize | 5 | 1<<63, physTables + 0x4018},
}

// map_ gives all pages.
func (p *pager) map_() {
	for _, m := range pages {
		p.ram.Store64(m.entry, m.pte)
	}
}

// begin prepares for a case: half of them find pages missing, or not writable yet.
func (p *pager) begin(seed uint64) {
	p.rng = rand.New(rand.NewPCG(seed, 0x9A6E))
	p.map_()
	if seed&1 != 0 {
		for i := range pages {
			p.take(i)
		}
	}
}

// take may take page i away, or the right to write it.
func (p *pager) take(i int) {
	switch m := &pages[i]; p.rng.IntN(4) {
	case 0:
		p.ram.Store64(m.entry, m.pte&^1)
	case 1:
		p.ram.Store64(m.entry, m.pte&^2)
	}
}

// fault settles a page fault if the page was taken away.
func (p *pager) fault() {
	var b [9]byte
	if err := p.ram.ReadAt(b[:8], physMon+pageSize+atCR2); err != nil {
		return
	}
	va := binary.LittleEndian.Uint64(b[:])
	b[8] = 0
	const accessed = 0x60
	for _, m := range pages {
		if va-m.va < pageSize && p.ram.Load64(m.entry)&^accessed != m.pte {
			p.ram.Store64(m.entry, m.pte)
			b[8] = 1
			p.Faults++
		}
	}
	_ = p.ram.WriteAt(b[8:], physMon+pageSize+atSettled)
	if p.rng.IntN(8) == 0 {
		p.irq.Store(true) // as soon as IRET allows it
	}
}

// interrupted takes a page away.
func (p *pager) interrupted() {
	p.Interrupts++
	p.take(p.rng.IntN(len(pages)))
}

// rain interrupts the guest at random moments, until quit is closed.
func (g *Guest) rain(quit chan struct{}) {
	for {
		select {
		case <-quit:
			return
		case <-time.After(time.Duration(20+rand.IntN(200)) * time.Microsecond):
			g.irq.Store(true)
			g.cpu.Kick()
		}
	}
}

// reload is MOV RAX, CR3; MOV CR3, RAX: the processor forgets what it knows of page tables.
var reload = []byte{0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8}

// pagerCode appends the monitor's handlers of page faults and interrupts.
func pagerCode(b []byte, common int) []byte {
	state := func(off uint32) []byte {
		a := stateVA & 0xFFFFFFFF
		return binary.LittleEndian.AppendUint32(nil, uint32(a)+off)
	}
	pad := func(to int) {
		for len(b) < to {
			b = append(b, 0xCC)
		}
	}
	pad(atFault)
	b = append(b, 0x50, 0x0F, 0x20, 0xD0)                                   // PUSH RAX; MOV RAX, CR2
	b = append(append(b, 0x48, 0x89, 0x04, 0x25), state(atCR2)...)          // MOV [], RAX
	b = append(b, 0x58, 0xE6, faultPort)                                    // POP RAX; OUT
	b = append(append(append(b, 0x80, 0x3C, 0x25), state(atSettled)...), 0) // CMP BYTE PTR [], 0
	b = append(b, 0x74, 6, 0x48, 0x83, 0xC4, 8, 0x48, 0xCF)                 // JE +6; ADD RSP, 8; IRETQ
	b = jump(append(b, 0x6A, 14), common)
	pad(atIRQ)
	b = append(append(b, 0x50, 0xE6, irqPort), reload...)
	return append(b, 0x58, 0x48, 0xCF) // POP RAX; IRETQ
}
