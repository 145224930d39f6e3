package guesttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/guest/dump"
)

// drgnScript prints what drgn finds: each task's number and name, then how many mounts the first process sees.
const drgnScript = `
from drgn.helpers.linux.pid import for_each_task, find_task
from drgn.helpers.linux.fs import for_each_mount
for t in for_each_task(prog):
    print(t.pid.value_(), t.comm.string_().decode())
print("mounts", len(list(for_each_mount(find_task(prog, 1).nsproxy.mnt_ns))))
prog.stack_trace(1)
`

// TestCrashAndDrgnOpenACore opens a core of a guest with those programs. They want the kernel's debug information, a vmlinux of 600 MB, that
// VITRINE_TEST_VMLINUX names (./dev test-crash fetches it).
func TestCrashAndDrgnOpenACore(t *testing.T) {
	vmlinux := os.Getenv("VITRINE_TEST_VMLINUX")
	if vmlinux == "" {
		t.Skip("VITRINE_TEST_VMLINUX is not set (./dev test-crash)")
	}
	g, _ := boot(t, "", ways[0])
	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	k, err := guest.Open(g)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := dump.Write(f, g, k); err != nil {
		t.Fatal(err)
	}
	t.Run("crash", func(t *testing.T) {
		c := exec.CommandContext(t.Context(), "crash", "-s", vmlinux, path)
		c.Stdin = strings.NewReader("sys\nmod\nlog\nquit\n")
		raw, err := c.CombinedOutput()
		out := string(raw)
		if err != nil {
			t.Fatalf("%v: %.4000s", err, out)
		}
		modules, err := k.Modules()
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"RELEASE: " + strings.Fields(k.Banner)[2] + "\n", fmt.Sprintf("CPUS: %d\n", g.NumCPU()), "NODENAME: " + g.Name() + "\n"}
		for _, m := range modules {
			want = append(want, fmt.Sprintf(" %s ", m.Name))
		}
		log := strings.Split(strings.TrimSpace(logOf(t, k)), "\n")
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("crash does not show %q", line)
			}
		}
		if last := log[len(log)-1]; !strings.Contains(out, last[strings.Index(last, "]"):]) {
			t.Errorf("crash does not show the log's last line, %q", last)
		}
	})
	t.Run("drgn", func(t *testing.T) {
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, []byte(drgnScript), 0o600); err != nil {
			t.Fatal(err)
		}
		raw, err := exec.CommandContext(t.Context(), "drgn", "-q", "-c", path, "-s", vmlinux, script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, raw)
		}
		tasks, err := k.Processes(true)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, p := range tasks {
			name := p.Comm // drgn shows what is in comm: no more than fits, and not what workers work on
			if i := strings.IndexAny(name, "+-"); i > 0 && strings.HasPrefix(name, "kworker/") && !strings.HasPrefix(name, "kworker/R-") {
				name = name[:i]
			}
			want = append(want, fmt.Sprintf("%d %.15s", p.PID, name))
		}
		mounts, err := k.Mounts(tasks[0].Task)
		if err != nil {
			t.Fatal(err)
		}
		text, count, _ := strings.Cut(string(raw), "mounts ")
		if n, err := strconv.Atoi(strings.TrimSpace(count)); err != nil || n < len(mounts) || n > len(mounts)+5 { // some are below no process's root
			t.Errorf("drgn sees %q mounts, a process %d", count, len(mounts))
		}
		got := strings.Split(strings.TrimSpace(text), "\n")
		slices.Sort(got)
		slices.Sort(want)
		same(t, strings.Join(got, "\n"), strings.Join(want, "\n"))
	})
}
