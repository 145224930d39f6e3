package vitrine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/hv/kvm"
	"vitrine.dev/vitrine/internal/hv/soft"
)

// usable is a KVM that serves.
type usable struct{ *soft.Backend }

func (usable) Name() string { return "kvm" }

func TestAcceleratorIsChosenAndExplainedInALine(t *testing.T) {
	broken := fmt.Errorf("%w (popcnt)", kvm.ErrBroken)
	absent := errors.New("no /dev/kvm here")
	for _, c := range []struct {
		accel string
		err   error // KVM's
		want  string
		says  string
	}{
		{Auto, nil, "kvm", "using KVM"},
		{Auto, absent, "soft", "no /dev/kvm here, using the CPU engine"},
		{Auto, broken, "soft", "cannot run a stock kernel (popcnt), using the CPU engine"},
		{KVM, nil, "kvm", "using KVM"},
		{KVM, absent, "", "--accel kvm: no /dev/kvm here: use --accel soft"},
		{KVM, broken, "", "--accel kvm: /dev/kvm cannot run a stock kernel"},
		{Soft, nil, "soft", "as asked"},
	} {
		opened := false
		b, line, err := chooseBackend(c.accel, func() (backend, error) { opened = true; return usable{&soft.Backend{}}, c.err })
		name := ""
		if b != nil {
			name = b.Name()
		}
		if err != nil {
			line = err.Error()
		}
		if name != c.want || (err != nil) != (c.want == "") || !strings.Contains(line, c.says) || strings.Contains(line, "\n") {
			t.Errorf("--accel %s with %v: %q, %q; want %q, %q in one line", c.accel, c.err, name, line, c.want, c.says)
		}
		if c.accel == Soft && opened {
			t.Error("KVM was opened though the CPU engine was asked for")
		}
	}
}
