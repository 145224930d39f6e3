package kvm

import (
	"fmt"
	"strings"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A Failure is a CPU that cannot go on: KVM could not emulate an instruction, or the processor refused the guest's state.
type Failure struct {
	CPU  int
	What string
	Regs x86.Regs // as far as they could be had
	Code []byte   // the bytes at RIP, as far as they are mapped
}

// Error is one line: what, where, and the instruction's bytes.
func (f *Failure) Error() string {
	return fmt.Sprintf("kvm: CPU %d: %s at %#x, code % x", f.CPU, f.What, f.Regs.RIP, f.Code)
}

// Report is the registers, some to a line.
func (f *Failure) Report() string {
	var b strings.Builder
	r := &f.Regs
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
	fmt.Fprintf(&b, "GDT %x+%x IDT %x+%x code % x", r.GDTR.Base, r.GDTR.Limit, r.IDTR.Base, r.IDTR.Limit, f.Code)
	return b.String()
}

// failure describes the CPU as it stands.
func (v *VCPU) failure(what string) error {
	f := &Failure{CPU: v.id, What: what}
	if err := v.readRegs(&f.Regs); err != nil {
		f.What += fmt.Sprintf(" (its registers cannot be had: %v)", err)
		return f
	}
	f.Code = v.code(f.Regs.Seg[x86.CS].Base + f.Regs.RIP)
	return f
}

// code is up to 15 bytes, an instruction's most, at a linear address. KVM_TRANSLATE walks the guest's page tables.
func (v *VCPU) code(linear uint64) []byte {
	var code []byte
	for len(code) < 15 {
		t := translation{linear: linear + uint64(len(code))}
		if _, err := ioctlAt(v.fd, translate, &t); err != nil || t.valid == 0 {
			break
		}
		n := min(15-len(code), int(mem.PageSize-t.physical%mem.PageSize))
		p := make([]byte, n)
		if v.vm.ram.ReadAt(p, mem.Addr(t.physical)) != nil {
			break
		}
		code = append(code, p...)
	}
	return code
}

// internalError is KVM's own failure (KVM_EXIT_INTERNAL_ERROR).
func (v *VCPU) internalError(e *internalExit) error {
	names := [...]string{0: "of an unknown kind", 1: "emulation failed", 2: "two exceptions at once", 3: "an event was delivered into an exit", 4: "an exit that KVM does not know"}
	what := fmt.Sprintf("of kind %d", e.suberror)
	if int(e.suberror) < len(names) {
		what = names[e.suberror]
	}
	return v.failure(fmt.Sprintf("KVM failed: %s, data %x", what, e.data[:min(e.n, 16)]))
}
