package guesttest

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/perf"
	"vitrine.dev/vitrine/internal/x86"
)

// burners are two programs that share one processor: by their weights, the first has 1024 of 1359 (kernel/sched/core.c, sched_prio_to_weight).
const burners = `
perl -e '$i++ while 1' &
echo $! first
nice -n 5 sh -c 'while :; do :; done' &
echo $! second
echo "=== end"
echo
wait
`

func TestSharesOfTwoBurners(t *testing.T) {
	out := newCollector()
	m, err := vitrine.Start(t.Context(), vitrine.Config{CPUs: 1, Memory: 512 << 20, Command: []string{"sh", "-c", burners}, Stdout: out, Stderr: &bytes.Buffer{},
		Env: os.Environ(), BootTimeout: 2 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		m.Wait()
	})
	select {
	case <-out.done:
	case <-time.After(time.Minute):
		t.Fatal("the guest does not begin")
	}
	time.Sleep(time.Second) // until they run what they are to
	k, err := guest.Open(live{m})
	if err != nil {
		t.Fatal(err)
	}
	top := perf.NewTop(m.Name(), k)
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for range 800 {
		<-ticks.C
		var r x86.Regs
		running := m.Sample(0, &r)
		top.Add(perf.Sample{Running: running, RIP: r.RIP, CR3: r.CR3, CPL: r.CPL()})
	}
	report := top.Report()
	shares := map[int]float64{}
	for _, p := range report.Processes {
		shares[p.PID] = p.Share
	}
	const first, tolerance = 1024. / 1359, 0.1
	for line := range strings.Lines(out.said()[""]) {
		number, what, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		pid, _ := strconv.Atoi(number)
		want := map[string]float64{"first": first, "second": 1 - first}[what]
		if got := shares[pid]; got < want-tolerance || got > want+tolerance {
			t.Errorf("process %d has %.1f %%, want %.1f %%: %+v", pid, 100*got, 100*want, report.Processes)
		}
	}
	// Perl's interpreter has its functions in the dynamic symbols.
	perl := 0.0
	for _, f := range report.Functions {
		if f.Mode == perf.UserMode && strings.HasPrefix(f.Name, "Perl_") {
			perl += f.Share
		}
	}
	if perl < first/2 {
		t.Errorf("functions of perl have %.1f %%: %+v", 100*perl, report.Functions[:min(8, len(report.Functions))])
	}
}
