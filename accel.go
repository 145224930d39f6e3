package vitrine

import (
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/hv/kvm"
	"vitrine.dev/vitrine/internal/hv/soft"
)

// errNoKVMBackend is why KVM is not used even where it is good.
var errNoKVMBackend = errors.New("works here, but its backend is not built yet")

// chooseBackend gives what runs the processors, and the line that tells the user which it is and why.
func chooseBackend(accel string) (hv.Backend, string, error) {
	if accel == Soft {
		return soft.Backend{}, "using the CPU engine, as asked (slower than KVM)", nil
	}
	err := kvm.Probe()
	if err == nil {
		err = errNoKVMBackend
	}
	if accel == KVM {
		return nil, "", fmt.Errorf("--accel kvm: %w: use --accel soft", err)
	}
	return soft.Backend{}, fmt.Sprintf("kvm: %v, using the CPU engine (slower)", err), nil
}
