package guesttest

import (
	"bytes"
	"context"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/guest"
)

// sh runs a script in the guest and gives its output.
func (l live) sh(t *testing.T, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	p, err := l.Exec(ctx, vitrine.Command{Args: []string{"sh", "-c", script}, Stdout: &out})
	if err == nil {
		_, err = p.Wait()
	}
	return out.String(), err
}

// compareSystem compares what holds for the whole guest. It goes on meanwhile: figures may be off a little.
func compareSystem(t *testing.T, g live, k *guest.Kernel) {
	text, err := g.sh(t, "echo 64 >/proc/sys/kernel/tainted; cat /proc/sys/kernel/tainted /proc/sys/kernel/hostname /proc/sys/kernel/osrelease /proc/loadavg /proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(text, "\n")
	s := k.System()
	mask, _ := strconv.ParseUint(lines[0], 10, 64)
	if mask&64 == 0 || !strings.Contains(s.Taint, "U") || len(s.Taint) != len(s.Tainted) || strings.Contains(s.Taint, "D") {
		t.Errorf("tainted %q by %q, the guest says %#x", s.Taint, s.Tainted, mask)
	}
	if s.Hostname != lines[1] || s.Release != lines[2] {
		t.Errorf("%q runs %q, the guest says %q and %q", s.Hostname, s.Release, lines[1], lines[2])
	}
	for i, word := range strings.Fields(lines[3])[:3] {
		want, _ := strconv.ParseFloat(word, 64)
		if len(s.Load) != 3 || math.Abs(s.Load[i]-want) > 0.2+want/5 {
			t.Errorf("load %v, the guest says %s", s.Load, lines[3])
		}
	}
	said := map[string]uint64{}
	for _, line := range lines[4:] {
		if f := strings.Fields(line); len(f) > 1 {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			said[strings.TrimSuffix(f[0], ":")] = kib << 10
		}
	}
	for _, v := range s.Memory {
		want, ok := said[v.Name]
		const slack = 3 << 20 // a command has ended since
		if off := math.Abs(float64(v.Bytes) - float64(want)); !ok || off > slack || v.Name == "MemTotal" && off != 0 {
			t.Errorf("%s is %d, the guest says %d", v.Name, v.Bytes, want)
		}
	}
	if len(s.Memory) < 20 {
		t.Errorf("memory: %v", s.Memory)
	}
	if s.Panic != "" || len(s.Oops) != 0 {
		t.Errorf("all is well, and yet %q and %q", s.Panic, s.Oops)
	}
}

// panics lets the guest panic, and demands that it is seen. The guest is of no use afterwards.
func panics(t *testing.T, g live, k *guest.Kernel) {
	go g.sh(t, "echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger")
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if s := k.System(); s.Panic == "sysrq triggered crash" {
			return
		} else if time.Now().After(end) {
			t.Fatalf("panic %q after a minute", s.Panic)
		}
	}
}
