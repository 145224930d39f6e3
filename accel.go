package vitrine

import (
	"fmt"
	"slices"
	"strings"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/hv/kvm"
	"vitrine.dev/vitrine/internal/hv/soft"
	"vitrine.dev/vitrine/internal/x86/model"
)

// A backend is what runs processors, and the rate of their time stamp counters.
type backend interface {
	hv.Backend
	TSCHz() uint64
	Flags() model.Set   // what processors can have
	SetModel(model.Set) // what they are to have
}

// openKVM is KVM where that can run stock kernels.
func openKVM() (backend, error) {
	b, err := kvm.Open()
	if err == nil {
		err = b.Stock()
	}
	return b, err
}

// chooseBackend gives what runs the processors, and the line that tells the user which it is and why.
func chooseBackend(accel string, open func() (backend, error)) (backend, string, error) {
	if accel == Soft {
		return &soft.Backend{}, "using the CPU engine, as asked (slower than KVM)", nil
	}
	b, err := open()
	switch {
	case err == nil:
		return b, "using KVM", nil
	case accel == KVM:
		return nil, "", fmt.Errorf("--accel kvm: %w: use --accel soft", err)
	}
	return &soft.Backend{}, fmt.Sprintf("kvm: %v, using the CPU engine (slower)", err), nil
}

// setModel gives the processors of b the model that the user asked for.
func setModel(b backend, spec string) error {
	if spec == model.Max {
		return nil
	}
	what := "KVM on this host"
	if b.Name() == Soft {
		what = "the CPU engine on this host"
	}
	s, err := model.Parse(spec, b.Flags(), what)
	if err == nil {
		b.SetModel(s)
	}
	return err
}

// wantsFiveLevels tells whether a processor is asked for its 5-level page tables: they cost a level of each walk, and are of use from 64 TiB on.
func wantsFiveLevels(spec string) bool { return slices.Contains(strings.Split(spec, ","), "+la57") }

// CPUModels are the models that Config.CPU knows, the richest first.
func CPUModels() []string { return model.Models }

// CPUFlags are all flags that Config.CPU knows, whether a host has them or not.
func CPUFlags() []string { return model.Flags() }
