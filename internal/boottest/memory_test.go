package boottest

import (
	"fmt"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/machine/boot"
	"vitrine.dev/vitrine/internal/mem"
)

func TestMemoryOfAllSizes(t *testing.T) {
	sizes := []struct {
		mib       uint64
		byDefault bool
	}{{128, false}, {256, false}, {3072, false}, {3073, false}, {5 << 10, true}, {16 << 10, false}}
	on(t, func(t *testing.T, b hv.Backend) {
		eachKernel(t, func(t *testing.T, k *kernel.Kernel) {
			for _, s := range sizes {
				t.Run(fmt.Sprint(s.mib, " MiB"), func(t *testing.T) {
					if !s.byDefault {
						full(t)
					}
					g := linux(t, k, 2, s.mib, quick)
					g.backend = b
					o := g.run(t)
					o.well(t)
					t.Logf("%s: %.1f CPU seconds to its first process", k.Release, o.toInit.Seconds())
				})
			}
		})
	})
}

func TestSmallestMemory(t *testing.T) {
	const mib = 64
	on(t, func(t *testing.T, b hv.Backend) {
		t.Run("5.10 fits", func(t *testing.T) {
			full(t)
			g := linux(t, suiteKernel(t, "bullseye"), 1, mib, quick)
			g.backend = b
			g.run(t).well(t)
		})
	})
	t.Run("6.1 says what it needs", func(t *testing.T) {
		g := linux(t, suiteKernel(t, "bookworm"), 1, mib, quick)
		ram, err := mem.New(mib << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer ram.Close()
		_, _, err = boot.Load(ram, boot.Config{Kernel: g.kernel, Initrd: g.initrd, CommandLine: g.append})
		if err == nil || !strings.Contains(err.Error(), "use --memory 128M") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line that says how much to give", err)
		}
	})
}
