package x86

import (
	"fmt"
	"strings"
)

// Dump is the registers for people to read: some to a line, each line ended.
func (r *Regs) Dump() string {
	var b strings.Builder
	names := [16]string{"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"}
	for i, name := range names {
		end := byte(' ')
		if i%4 == 3 {
			end = '\n'
		}
		fmt.Fprintf(&b, "%-3s %016x%c", name, r.GPR[i], end)
	}
	fmt.Fprintf(&b, "RIP %016x RFLAGS %08x EFER %x CR0 %08x CR2 %016x CR3 %x CR4 %x CR8 %x XCR0 %x\n",
		r.RIP, r.RFLAGS, r.EFER, r.CR0, r.CR2, r.CR3, r.CR4, r.CR8, r.XCR0)
	for i, name := range [...]string{"ES", "CS", "SS", "DS", "FS", "GS"} {
		s := r.Seg[i]
		fmt.Fprintf(&b, "%s %04x base %x limit %x access %04x\n", name, s.Selector, s.Base, s.Limit, s.Access)
	}
	fmt.Fprintf(&b, "GDT %x+%x IDT %x+%x\n", r.GDTR.Base, r.GDTR.Limit, r.IDTR.Base, r.IDTR.Limit)
	return b.String()
}
