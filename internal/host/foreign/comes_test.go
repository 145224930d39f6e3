package foreign

import (
	"os/exec"
	"sync"
	"testing"

	"vitrine.dev/vitrine/internal/host/vmm"
)

// TestAGuestIsListedOnceWhileProcessesComeAndGo lists while others fork without pause.
func TestAGuestIsListedOnceWhileProcessesComeAndGo(t *testing.T) {
	g := startVictim(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					exec.Command("true").Run()
				}
			}
		})
	}
	for i := range 30 {
		all, err := vmm.Scan(Proc, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, o := range all {
			if o.PID == g.PID && o.Ticks == g.Ticks && o.Accelerator == vmm.KVM && o.CPUs == 1 {
				n++
			}
			if o.VMM == "true" {
				t.Errorf("%+v is listed", o)
			}
		}
		if n != 1 {
			t.Errorf("listing %d has it %d times", i, n)
		}
	}
	close(stop)
	wg.Wait()
}
