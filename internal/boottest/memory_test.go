package boottest

import (
	"fmt"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/kernel"
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
