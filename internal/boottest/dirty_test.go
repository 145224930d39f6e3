package boottest

import (
	"encoding/binary"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/mem"
)

// sums are numbers that a page's change is very unlikely not to change.
func sums(t *testing.T, ram *mem.Memory) map[mem.Addr]uint64 {
	all := map[mem.Addr]uint64{}
	for _, r := range ram.Regions() {
		for a := r.Base; a < r.Base+mem.Addr(r.Size); a += mem.PageSize {
			p, err := ram.Slice(a, mem.PageSize)
			if err != nil {
				t.Error(err)
				return nil
			}
			var sum uint64
			for ; len(p) > 0; p = p[8:] {
				sum = (sum ^ binary.LittleEndian.Uint64(p)) * 0x9E3779B97F4A7C15
				sum ^= sum >> 29
			}
			all[a] = sum
		}
	}
	return all
}

// TestDirtyLogFindsEveryPageThatAGuestWrote looks at all memory of a guest at work several times: what has changed since the last time is in the log.
func TestDirtyLogFindsEveryPageThatAGuestWrote(t *testing.T) {
	on(t, func(t *testing.T, b hv.Backend) {
		g := linux(t, suiteKernel(t, "bookworm"), 2, 256, "")
		g.backend = b
		var before map[mem.Addr]uint64
		changed, logged, looks := 0, 0, 0
		look := func(m *machine.Machine) {
			m.Pause()
			defer m.Resume()
			log, ram := m.DirtyLogger(), m.RAM()
			if before == nil {
				if err := log.StartDirtyLog(); err != nil {
					t.Error(err)
					return
				}
				before = sums(t, ram)
				return
			}
			looks++
			dirty := map[mem.Addr]bool{}
			if err := log.TakeDirtyLog(func(a mem.Addr) { dirty[a] = true }); err != nil {
				t.Error(err)
				return
			}
			after := sums(t, ram)
			missed := 0
			for a, sum := range after {
				if sum == before[a] {
					continue
				}
				changed++
				if !dirty[a] {
					if missed++; missed <= 10 {
						t.Errorf("look %d: the page at %#x was written and is not in the log", looks, uint64(a))
					}
				}
			}
			before, logged = after, logged+len(dirty)
		}
		turn := make(chan bool, 1) // looks take turns
		for _, text := range []string{"check: up", "check: compute is well", "check: goroutines is well", "check: faults is well", "check: processes is well"} {
			g.cues = append(g.cues, cue{text, func(m *machine.Machine) {
				turn <- true
				look(m)
				<-turn
			}})
		}
		g.run(t).well(t)
		turn <- true
		if looks < 3 || changed < 100 || logged >= looks*(256<<20/mem.PageSize) {
			t.Errorf("%d looks found %d changes and %d pages in logs: that shows nothing", looks, changed, logged)
		}
		t.Logf("%d looks: %d pages had changed, %d were in the logs", looks, changed, logged)
	})
}
