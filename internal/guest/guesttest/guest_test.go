package guesttest

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/guest/dump"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/unwind"
	"vitrine.dev/vitrine/internal/x86"
)

//go:embed truth.sh
var truthScript string

func TestMain(m *testing.M) {
	vitrine.GuestMain()
	os.Exit(m.Run())
}

// A live is a guest that runs in this process.
type live struct{ *vitrine.Machine }

func (l live) ReadPhys(p []byte, a mem.Addr) (int, error) { return l.Memory().ReadPhys(p, a) }
func (l live) Regions() []mem.Region                      { return l.Memory().Regions() }

func (l live) CPU(i int, r *x86.Regs) error { return l.Registers(i, r) }

// A said is what a guest says of itself: its output by parts.
type said map[string]string

// A collector takes a guest's output until it has said all.
type collector struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	done chan struct{}
}

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p)
	if bytes.HasSuffix(c.buf.Bytes(), []byte("=== end\n\n")) {
		close(c.done)
	}
	return len(p), nil
}

// boot starts a guest on a kernel (empty: the one that vitrine finds) and lets it speak.
func boot(t *testing.T, kernelPath, modules, words string) (live, said) {
	t.Helper()
	out := &collector{done: make(chan struct{})}
	var errors bytes.Buffer
	m, err := vitrine.Start(t.Context(), vitrine.Config{
		CPUs: 2, Memory: 512 << 20, Command: []string{"sh", "-s"}, Stdin: strings.NewReader(truthScript), Stdout: out, Stderr: &errors, Env: os.Environ(),
		KernelPath: kernelPath, ModulesDir: modules, Append: words, BootTimeout: 2 * time.Minute, Log: func(l string) { t.Log(l) },
	})
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
	case <-time.After(4 * time.Minute):
		t.Fatalf("the guest does not say all: %s", errors.String())
	}
	parts := said{}
	for part := range strings.SplitSeq(out.buf.String(), "=== ") {
		name, text, _ := strings.Cut(part, "\n")
		parts[name] = text
	}
	return live{m}, parts
}

func TestMemorySaysWhatTheGuestSays(t *testing.T) {
	t.Run("default", func(t *testing.T) { compare(t, "", "", "") })
	if os.Getenv("VITRINE_TEST_FULL") != "1" {
		return
	}
	t.Run("pti, nokaslr", func(t *testing.T) { compare(t, "", "", "pti=on nokaslr") })
	for _, suite := range []string{"bullseye", "bookworm", "trixie", "bookworm-backports", "trixie-backports"} {
		t.Run(suite, func(t *testing.T) {
			k, err := kernel.FetchSuite(context.Background(), kernel.SuiteOptions{Suite: suite, Progress: func(l string) { t.Log(l) }})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, k.Path, "", "")
		})
	}
}

func compare(t *testing.T, kernelPath, modules, words string) {
	g, said := boot(t, kernelPath, modules, words)
	k, err := guest.Open(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(k.Banner)
	t.Run("kallsyms", func(t *testing.T) { same(t, kallsyms(k), said["kallsyms"]) })
	t.Run("modules", func(t *testing.T) { same(t, modulesOf(t, k), firstFields(said["modules"], 6)) })
	t.Run("mounts", func(t *testing.T) { same(t, mountsOf(t, k), firstFields(said["self/mountinfo"], 6)) })
	t.Run("log", func(t *testing.T) {
		log := logOf(t, k) // it may have grown
		same(t, log[:min(len(log), len(said["dmesg"]))], said["dmesg"])
	})
	t.Run("uptime", func(t *testing.T) {
		was, _, _ := strings.Cut(said["uptime"], " ")
		s, _ := strconv.ParseFloat(was, 64)
		if up := k.Uptime().Seconds(); up < s || up > s+120 {
			t.Errorf("up for %.2f s, the guest said %.2f", up, s)
		}
	})
	t.Run("processes", func(t *testing.T) { compareProcesses(t, k, said) })
	t.Run("stacks", func(t *testing.T) { compareStacks(t, k, said) })
	t.Run("maps", func(t *testing.T) { compareMaps(t, k, said) })
	t.Run("a second look", func(t *testing.T) {
		dir := t.TempDir()
		for look := range 2 {
			cached, err := guest.NewCache(dir).Open(g)
			if err != nil {
				t.Fatal(err)
			}
			same(t, kallsyms(cached), said["kallsyms"])
			if cached.BTF() == nil != (k.BTF() == nil) {
				t.Errorf("look %d: BTF was there once and once not", look+1)
			}
			kept, err := filepath.Glob(filepath.Join(dir, "*.symbols"))
			if err != nil || len(kept) != 1 {
				t.Errorf("look %d: %d kernels are kept, want 1 (%v)", look+1, len(kept), err)
			}
		}
	})
	t.Run("without registers", func(t *testing.T) { again(t, k, blind{g, false}) })
	t.Run("without registers and VMCOREINFO", func(t *testing.T) { again(t, k, blind{g, true}) })
	t.Run("from a dump", func(t *testing.T) {
		f, err := os.CreateTemp(t.TempDir(), "core")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := dump.Write(f, g, k.VMCoreInfo()); err != nil {
			t.Fatal(err)
		}
		d, err := dump.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		again(t, k, d)
	})
}

// blind is a guest without registers, and perhaps without VMCOREINFO.
type blind struct {
	live
	noInfo bool
}

func (b blind) CPU(int, *x86.Regs) error { return guest.ErrNoRegisters }

func (b blind) ReadPhys(p []byte, a mem.Addr) (int, error) {
	n, err := b.live.ReadPhys(p, a)
	for rest := p[:n]; b.noInfo; {
		i := bytes.Index(rest, []byte("OSRELEASE="))
		if i < 0 {
			break
		}
		rest[i] = 'X'
		rest = rest[i+1:]
	}
	return n, err
}

// again demands that the same kernel is found another way.
func again(t *testing.T, want *guest.Kernel, target guest.Target) {
	k, err := guest.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if k.Text != want.Text || k.Banner != want.Banner {
		t.Errorf("%q at %#x, want %q at %#x", k.Banner, k.Text, want.Banner, want.Text)
	}
	same(t, kallsyms(k), kallsyms(want))
	if all, err := k.Processes(false); err != nil || len(all) < 20 {
		t.Errorf("%d processes, %v", len(all), err)
	}
}

// same demands equal texts and shows the first lines that are not.
func same(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	t.Errorf("%d lines from memory, the guest says %d", len(g), len(w))
	shown := 0
	for i := 0; i < min(len(g), len(w)) && shown < 5; i++ {
		if g[i] != w[i] {
			t.Errorf("line %d: %q, the guest says %q", i+1, g[i], w[i])
			shown++
		}
	}
}

func kallsyms(k *guest.Kernel) string {
	var b strings.Builder
	for _, s := range k.Kallsyms() {
		fmt.Fprintf(&b, "%016x %c %s", s.Addr, s.Type, s.Name)
		if s.Module != "" {
			fmt.Fprintf(&b, "\t[%s]", s.Module)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// modulesOf is /proc/modules as memory has it.
func modulesOf(t *testing.T, k *guest.Kernel) string {
	all, err := k.Modules()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range all {
		users := "-"
		if len(m.UsedBy) > 0 {
			users = strings.Join(m.UsedBy, ",") + ","
		}
		fmt.Fprintf(&b, "%s %d %d %s %s 0x%016x\n", m.Name, m.Size, m.Refs, users, m.State, m.Address)
	}
	return b.String()
}

func mountsOf(t *testing.T, k *guest.Kernel) string {
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := k.Mounts(all[0].Task)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range mounts {
		fmt.Fprintf(&b, "%d %d %s %s %s %s\n", m.ID, m.Parent, m.Device, m.Root, m.Target, m.Options)
	}
	return b.String()
}

// firstFields cuts each line behind its first n words.
func firstFields(text string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		b.WriteString(strings.Join(f[:min(n, len(f))], " ") + "\n")
	}
	return b.String()
}

func logOf(t *testing.T, k *guest.Kernel) string {
	all, err := k.Log(0)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range all {
		us := m.Time.Microseconds()
		fmt.Fprintf(&b, "[%5d.%06d] %s\n", us/1e6, us%1e6, m.Text)
	}
	return b.String()
}

// compareProcesses compares what does not change by itself. The guest's own commands have come and gone meanwhile; kernel workers too.
func compareProcesses(t *testing.T, k *guest.Kernel, said said) {
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := k.Processes(true)
	if err != nil {
		t.Fatal(err)
	}
	threads := map[int]int{}
	for _, task := range tasks {
		threads[task.TGID]++
	}
	got := map[int]guest.Process{}
	for _, p := range all {
		if _, twice := got[p.PID]; twice {
			t.Errorf("process %d is listed twice", p.PID)
		}
		got[p.PID] = p
	}
	// What truth.sh puts into containers, by their command lines. The old hierarchies are not in every kernel.
	containers := map[string]string{"sleep 1002": "0123456789ab", "sleep 1003": "web", "sleep 1004": "f123456789ab", "unshare -fpmuinC --mount-proc sleep 1002": "0123456789ab"}
	compared, found := 0, 0
	for _, name := range slices.Sorted(maps.Keys(said)) {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		status := map[string]string{}
		for line := range strings.Lines(said[name]) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.TrimSpace(value)
		}
		p, ok := got[pid]
		if !ok {
			if strings.HasPrefix(status["Name"], "kworker") {
				continue
			}
			t.Errorf("process %d, %s, is not seen", pid, status["Name"])
			continue
		}
		compared++
		want := func(what, got, want string) {
			if got != want && !(what == "name" && strings.HasPrefix(want, got)) {
				t.Errorf("process %d, %s: %s is %q, the guest says %q", pid, status["Name"], what, got, want)
			}
		}
		want("parent", strconv.Itoa(p.PPID), status["PPid"])
		want("thread group", strconv.Itoa(p.TGID), status["Tgid"])
		want("user", strconv.Itoa(int(p.UID)), strings.Fields(status["Uid"])[1])
		want("cgroup", p.Cgroup, strings.TrimPrefix(status["0"], ":"))
		want("command line", p.Cmdline, status["Cmdline"])
		want("name", p.Comm, status["Name"])
		spaces := strings.Fields(status["NSpid"])
		want("number in its namespace", strconv.Itoa(p.NSPID), spaces[len(spaces)-1])
		n := p.Namespaces
		for name, inode := range map[string]uint32{"mnt": n.Mount, "pid": n.PID, "net": n.Net, "uts": n.UTS, "ipc": n.IPC, "cgroup": n.Cgroup, "user": n.User} {
			want(name+" namespace", fmt.Sprintf("[%d]", inode), status[name])
		}
		if id, ok := containers[p.Cmdline]; ok {
			want("container", p.Container, id)
			found++
		} else {
			want("container", p.Container, "")
		}
		if pid != 1 { // the agent starts threads as it goes
			want("threads", strconv.Itoa(threads[pid]), status["Threads"])
			want("count of threads", strconv.Itoa(p.Threads), status["Threads"])
		}
		if p.Comm == "sleep" { // it does nothing
			want("state", p.State, status["State"][:1])
			want("RSS", fmt.Sprint(p.RSSBytes>>10, " kB"), status["VmRSS"])
		}
		stat := said[name][strings.LastIndex(strings.SplitN(said[name], "\n", 2)[0], ")")+2:]
		ticks, _ := strconv.ParseInt(strings.Fields(stat)[19], 10, 64)
		boot := all[0].Started.Add(-startOf(said["1"]))
		if d := p.Started.Sub(boot) - time.Duration(ticks)*10*time.Millisecond; d < -20*time.Millisecond || d > 20*time.Millisecond {
			t.Errorf("process %d, %s, began %v off what the guest says", pid, status["Name"], d)
		}
	}
	if compared < 20 || found < 4 {
		t.Errorf("only %d processes were compared, of them %d in containers", compared, found)
	}
}

// compareMaps compares the memory maps of the processes that do nothing.
func compareMaps(t *testing.T, k *guest.Kernel, said said) {
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, p := range all {
		if p.Comm != "sleep" || said[strconv.Itoa(p.PID)] == "" {
			continue
		}
		maps, err := k.Maps(p.Task)
		if err != nil {
			t.Fatal(err)
		}
		var got, want strings.Builder
		for _, m := range maps {
			fmt.Fprintln(&got, strings.TrimSpace(fmt.Sprintf("%08x-%08x %s %08x %s %d %s", m.Start, m.End, m.Perms, m.Offset, m.Device, m.Inode, m.Name)))
		}
		for line := range strings.Lines(said[strconv.Itoa(p.PID)]) {
			if m, ok := strings.CutPrefix(line, "Map: "); ok {
				fmt.Fprintln(&want, strings.Join(strings.Fields(m), " "))
			}
		}
		same(t, got.String(), want.String())
		compared++
		files, err := k.Files(p.Task)
		if err != nil || len(files) < 3 || !strings.HasPrefix(files[1].Name, "pipe:[") {
			t.Errorf("process %d: open files %+v, %v", p.PID, files, err)
		}
	}
	if compared < 2 {
		t.Errorf("only %d processes were compared", compared)
	}
}

// compareStacks compares the kernel stacks of tasks that sleep. Some have run meanwhile and wait elsewhere.
func compareStacks(t *testing.T, k *guest.Kernel, said said) {
	u, err := unwind.New(k)
	if err != nil {
		t.Fatal(err)
	}
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	equal, moved := 0, []string{}
	for _, p := range all {
		var want, got strings.Builder
		for line := range strings.Lines(said[strconv.Itoa(p.PID)]) {
			if f, ok := strings.CutPrefix(line, "Stack: [<0>] "); ok {
				want.WriteString(f)
			}
		}
		if want.Len() == 0 {
			continue
		}
		frames, err := u.Sleeping(p.Task)
		for _, f := range frames {
			fmt.Fprintln(&got, f)
		}
		if got.String() == want.String() {
			equal++
			continue
		}
		moved = append(moved, fmt.Sprintf("%s: %q, %v; the guest said %q", p.Comm, got.String(), err, want.String()))
	}
	if equal < 20 || len(moved) > 6 {
		t.Errorf("%d stacks are equal, %d are not: %s", equal, len(moved), strings.Join(moved, "\n"))
	}
}

// startOf is field 22 of a /proc/PID/stat: when it began after boot.
func startOf(stat string) time.Duration {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line[strings.LastIndex(line, ")")+2:])
	ticks, _ := strconv.ParseInt(f[19], 10, 64)
	return time.Duration(ticks) * 10 * time.Millisecond
}
