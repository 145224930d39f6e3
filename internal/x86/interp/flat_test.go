package interp

import (
	"errors"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// noIO is a machine without devices.
type noIO struct{ out []byte }

func (*noIO) ReadPort(uint16, []byte)             {}
func (n *noIO) WritePort(_ uint16, p []byte)      { n.out = append(n.out, p...) }
func (*noIO) ReadMMIO(mem.Addr, []byte)           {}
func (*noIO) WriteMMIO(mem.Addr, []byte)          {}
func (*noIO) ReadMSR(uint32) (uint64, error)      { return 0, errors.New("no MSR") }
func (*noIO) WriteMSR(msr uint32, v uint64) error { return errors.New("no MSR") }
func (*noIO) Pending() bool                       { return false }
func (*noIO) TakeNMI() bool                       { return false }
func (*noIO) Acknowledge() (uint8, bool)          { return 0, false }
func (*noIO) CR8() uint64                         { return 0 }
func (*noIO) SetCR8(uint64)                       {}

const (
	flatCode  = 0x200000 // where flat puts code
	flatStack = 0x1F0000
	flatSize  = 16 << 20
)

// flat makes a CPU in 64-bit mode at CPL 0, its memory mapped one to one by 4 KiB pages, at code.
func flat(tb testing.TB, code []byte) *CPU {
	tb.Helper()
	ram, err := mem.New(flatSize)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ram.Close() })
	c := NewVM(ram).NewCPU(0, &noIO{})
	const rw = 3
	ram.Store64(0x1000, 0x2000|rw)
	ram.Store64(0x2000, 0x3000|rw)
	for i := range uint64(flatSize >> 21) {
		ram.Store64(mem.Addr(0x3000+8*i), 0x10000+i<<12|rw)
		for j := range uint64(512) {
			ram.Store64(mem.Addr(0x10000+i<<12+8*j), i<<21+j<<12|rw)
		}
	}
	if err := ram.WriteAt(code, flatCode); err != nil {
		tb.Fatal(err)
	}
	var s x86.State
	c.State(&s)
	s.CR0 = x86.CR0PE | x86.CR0PG | x86.CR0WP | x86.CR0NE | x86.CR0ET
	s.CR3 = 0x1000
	s.CR4 = x86.CR4PAE | x86.CR4OSFXSR | x86.CR4OSXMMEXCPT
	s.EFER = x86.EFERLME | x86.EFERLMA | x86.EFERSCE | x86.EFERNXE
	data := x86.Segment{Selector: 0x10, Limit: 0xFFFFFFFF, Access: x86.SegPresent | x86.SegS | x86.SegWritable | x86.SegAccessed | x86.SegBig | x86.SegGran}
	for i := range s.Seg {
		s.Seg[i] = data
	}
	s.Seg[x86.CS] = x86.Segment{Selector: 8, Limit: 0xFFFFFFFF, Access: x86.SegPresent | x86.SegS | x86.SegCode | x86.SegWritable | x86.SegAccessed | x86.SegLong | x86.SegGran}
	s.GPR = [16]uint64{x86.RSP: flatStack}
	s.RIP, s.RFLAGS = flatCode, x86.Fixed
	if err := c.SetState(&s); err != nil {
		tb.Fatal(err)
	}
	return c
}

// untilHalt runs c until HLT.
func untilHalt(tb testing.TB, c *CPU) {
	tb.Helper()
	if exit := c.Run(); exit != hv.Halted {
		tb.Fatalf("Run returned %v at RIP %#x (vector %d, code %#x, CR2 %#x), want Halted", exit, c.rip, c.fault.vec, c.fault.code, c.cr2)
	}
}
