package guesttest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/guest"
)

// restless is a guest's script: processes that stay, each with mappings and files, and others that come and go without pause.
const restless = `
for i in 0 1 2 3 4 5 6 7 8 9; do
	sleep 10000$i &
	echo $! 10000$i
done
(while :; do (:); done) &
echo $! forks
(while :; do /bin/true; done) &
echo $! runs
(while :; do sh -c 'sleep 0 & sleep 0 & wait'; done) &
echo $! nests
echo "=== end"
echo
wait
`

// TestRestlessGuest looks at a guest that forks without pause, 50 times a second for VITRINE_SOAK (5 s by default; ./dev soak-ps: 10 minutes). Who stays is
// there each time, once, and as it is; who comes and goes is nobody else; and to look leaves nothing behind.
func TestRestlessGuest(t *testing.T) {
	length := 5 * time.Second
	if s := os.Getenv("VITRINE_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("VITRINE_SOAK: %v", err)
		}
	}
	runtime.MemProfileRate = 1 << 10 // of all that is allocated from here on
	g, stay := bootRestless(t)
	k, err := guest.Open(g)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{stay: stay}
	var held, most int64
	began := time.Now()
	ticks := time.NewTicker(time.Second / 50)
	defer ticks.Stop()
	for time.Since(began) < length {
		<-ticks.C
		w.look(t, k)
		if w.looks%1500 == 250 { // each half a minute, the first after some seconds: tables have grown to what they need
			now := heldByGuest()
			if held == 0 {
				held = now
			}
			most = max(most, now)
			t.Logf("after %v: %d looks, which hold %d KiB; %v", time.Since(began).Round(time.Second), w.looks, now>>10, w)
		}
	}
	if held > 0 && most > held+256<<10 {
		t.Errorf("what looks hold grew from %d to %d KiB", held>>10, most>>10)
	}
	t.Logf("%d looks; %v", w.looks, w)
	if w.looks < int(length.Seconds())*5 || w.passing < w.looks || w.numbers < 50 {
		t.Errorf("%d looks in %v saw %d short-lived processes, numbers up to %d: that is no load", w.looks, length, w.passing, w.numbers)
	}
	if w.failed > w.looks/1000 {
		t.Errorf("%d of %d looks failed, the last: %v", w.failed, w.looks, w.last)
	}
}

// heldByGuest is how much memory is in use that package guest allocated, in bytes. The machine, which is in this process too, has its own.
func heldByGuest() int64 {
	runtime.GC()
	runtime.GC() // the profile is as of the one before
	all := make([]runtime.MemProfileRecord, 1<<16)
	n, ok := runtime.MemProfile(all, false)
	if !ok {
		return -1
	}
	held := int64(0)
	for _, r := range all[:n] {
		for frames := runtime.CallersFrames(r.Stack()); ; {
			f, more := frames.Next()
			if strings.HasPrefix(f.Function, "vitrine.dev/vitrine/internal/guest.") {
				held += r.InUseBytes()
				break
			}
			if !more {
				break
			}
		}
	}
	return held
}

// bootRestless starts the guest, and gives its processes that stay, by number: the last argument of their command, or what they do.
func bootRestless(t *testing.T) (live, map[int]string) {
	t.Helper()
	out := newCollector()
	m, err := vitrine.Start(t.Context(), vitrine.Config{CPUs: 2, Memory: 512 << 20, Command: []string{"sh", "-c", restless}, Stdout: out, Stderr: &bytes.Buffer{},
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
	case <-m.Done():
		_, err := m.Wait()
		t.Fatalf("the guest ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the guest does not begin")
	}
	stay := map[int]string{}
	for line := range strings.Lines(out.said()[""]) {
		if number, what, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			pid, err := strconv.Atoi(number)
			if err != nil {
				t.Fatalf("the guest says %q", line)
			}
			stay[pid] = what
		}
	}
	if len(stay) != 13 {
		t.Fatalf("the guest says %q", out.said()[""])
	}
	time.Sleep(time.Second) // until they all run what they are to
	return live{m}, stay
}

// A watcher compares look by look.
type watcher struct {
	stay    map[int]string
	was     map[int]guest.Process // those that stay, at the first look
	looks   int
	passing int // short-lived processes seen
	numbers int // the largest process number
	failed  int // looks that gave an error
	last    error
}

func (w *watcher) String() string {
	return fmt.Sprintf("%d stay, %d came and went before our eyes, of numbers up to %d; %d looks failed", len(w.stay), w.passing, w.numbers, w.failed)
}

// look lists the processes and judges each.
func (w *watcher) look(t *testing.T, k *guest.Kernel) {
	w.looks++
	all, err := k.Processes(false)
	if err != nil {
		w.failed, w.last = w.failed+1, err
		return
	}
	by := make(map[int]guest.Process, len(all))
	for _, p := range all {
		if _, twice := by[p.PID]; twice {
			t.Errorf("look %d: process %d is listed twice", w.looks, p.PID)
		}
		by[p.PID] = p
		w.numbers = max(w.numbers, p.PID)
	}
	if w.was == nil {
		w.was = map[int]guest.Process{}
		for pid := range w.stay {
			w.was[pid] = by[pid]
		}
	}
	for pid, what := range w.stay {
		p, ok := by[pid]
		was := w.was[pid]
		switch {
		case !ok:
			t.Errorf("look %d: process %d (%s) is missing", w.looks, pid, what)
		case p.Task != was.Task || p.PPID != was.PPID || p.Comm != was.Comm || p.Cmdline != was.Cmdline || p.Started != was.Started || p.TGID != pid || p.UID != 0 ||
			p.CPUSeconds < was.CPUSeconds || p.Namespaces != was.Namespaces || p.Cgroup != was.Cgroup || p.Threads != 1:
			t.Errorf("look %d: process %d (%s) is %+v, was %+v", w.looks, pid, what, p, was)
		case strings.HasPrefix(what, "10000") && (p.Cmdline != "sleep "+what || p.State != "S" || p.RSSBytes != was.RSSBytes):
			t.Errorf("look %d: process %d is %+v, not sleep %s", w.looks, pid, p, what)
		}
	}
	for pid, p := range by {
		if _, stays := w.stay[pid]; stays || p.Kernel || pid == 1 || p.PPID == 1 && strings.HasPrefix(p.Cmdline, "sh -c") {
			continue
		}
		w.passing++
		if wrong := w.misread(p); wrong != "" {
			t.Errorf("look %d: %s: %+v", w.looks, wrong, p)
		}
	}
}

// misread says what cannot be of a process that comes and goes.
func (w *watcher) misread(p guest.Process) string {
	name, _, _ := strings.Cut(p.Cmdline, " ")
	switch {
	case p.PID <= 0 || p.TGID != p.PID || p.UID != 0 || p.Started.IsZero() || p.Threads < 1:
		return "no process is like this"
	case p.Comm != "sh" && p.Comm != "true" && p.Comm != "sleep":
		return "nothing of this name runs"
	case name != "" && name != "sh" && name != "/bin/true" && name != "sleep":
		return "nothing with this command runs"
	case p.Comm == "true" && name == "sleep", p.Comm == "sleep" && name == "/bin/true":
		return "it has another's command"
	case p.Comm == "sleep" && name == "sleep" && p.Cmdline != "sleep 0":
		return "it has the command of one that stays"
	}
	return ""
}
