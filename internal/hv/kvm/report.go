package kvm

import (
	"fmt"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// failure describes the CPU as it stands.
func (v *VCPU) failure(fault hv.Fault, what string) error {
	f := &hv.Failure{CPU: v.id, Fault: fault, What: what}
	if err := v.readRegs(&f.Regs); err != nil {
		f.What += fmt.Sprintf(" (its registers cannot be had: %v)", err)
		return f
	}
	f.Code = mmu.Code(v.vm.ram, &f.Regs)
	return f
}

// suberrors are the kinds of KVM_EXIT_INTERNAL_ERROR.
var suberrors = [...]string{
	0: "of an unknown kind", 1: "an instruction could not be emulated", 2: "two exceptions at once", 3: "an event was delivered into an exit",
	4: "an exit that KVM does not know",
}

const suberrorEmulation = 1

// internalError is KVM's own failure (KVM_EXIT_INTERNAL_ERROR).
func (v *VCPU) internalError(e *internalExit) error {
	what := fmt.Sprintf("of kind %d", e.suberror)
	if int(e.suberror) < len(suberrors) {
		what = suberrors[e.suberror]
	}
	fault := hv.Internal
	if e.suberror == suberrorEmulation {
		fault = hv.Emulation
	}
	return v.failure(fault, fmt.Sprintf("KVM failed: %s (data %x)", what, e.data[:min(e.n, 16)]))
}
