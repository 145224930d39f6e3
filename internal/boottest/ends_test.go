package boottest

import (
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine"
)

func TestEveryWayToEndEnds(t *testing.T) {
	ways := []struct {
		words     string
		want      machine.Exit
		console   string
		byDefault bool
	}{
		{"check.end=poweroff", machine.Exit{Reason: machine.PowerOff}, "reboot: Power down", false}, // TestKernelsRunPrograms ends so
		{"check.end=restart reboot=t", machine.Exit{Reason: machine.TripleFault}, "reboot: ", true},
		{"check.end=restart reboot=k", machine.Exit{Reason: machine.Reset}, "reboot: ", true},
		{"check.end=restart reboot=acpi", machine.Exit{Reason: machine.Reset}, "reboot: ", false},
		{"check.end=restart reboot=pci", machine.Exit{Reason: machine.Reset}, "reboot: ", false},
		{"check.end=restart", machine.Exit{Reason: machine.Reset}, "reboot: ", false},
		{"check.end=panic", machine.Exit{Reason: machine.Reset}, "Kernel panic - not syncing: Attempted to kill init!", true},
		{"check.end=panic reboot=t", machine.Exit{Reason: machine.TripleFault}, "Kernel panic - not syncing", false},
		{"check.end=exit", machine.Exit{Reason: machine.DebugExit, Status: 0x10*2 + 1}, "", true},
	}
	on(t, func(t *testing.T, b hv.Backend) {
		k := suiteKernel(t, "bookworm")
		for _, w := range ways {
			t.Run(w.words, func(t *testing.T) {
				if !w.byDefault {
					full(t)
				}
				cpus := 2
				g := linux(t, k, cpus, 256, quick+w.words)
				g.backend = b
				o := g.run(t)
				o.well(t)
				want := w.want
				want.CPU = o.CPU // whichever stopped the others
				if o.Exit != want {
					t.Errorf("it ended by %+v, want %+v\n%s", o.Exit, want, o.tail())
				}
				o.says(t, w.console)
			})
		}
	})
}

// quick are words for a guest that is not there for its checks.
const quick = "cryptomgr.notests check.only=cpus,memory,initrd,log "

func TestConsoleGoesBothWays(t *testing.T) {
	on(t, func(t *testing.T, b hv.Backend) {
		g := linux(t, suiteKernel(t, "bookworm"), 1, 256, quick+"check.end=echo")
		g.backend = b
		text := strings.Repeat("the quick brown fox ", 40) + "and 100%"
		g.answers = map[string]string{"check: say something": text + "\n"}
		o := g.run(t)
		o.well(t)
		o.says(t, "check: heard \""+text+"\", <nil>")
	})
}
