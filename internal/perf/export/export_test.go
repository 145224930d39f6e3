package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	pp "github.com/google/pprof/profile"

	"vitrine.dev/vitrine/internal/perf/profile"
)

// two guests' samples and one of the host: main calls work, which is in the kernel twice of three times.
func example() *profile.Profile {
	work := profile.Frame{Space: profile.GuestUser, IP: 0x401010, Func: "work", Module: "/bin/prog", File: "prog.c", Line: 7}
	main := profile.Frame{Space: profile.GuestUser, IP: 0x401100, Func: "main", Module: "/bin/prog"}
	read := profile.Frame{Space: profile.GuestKernel, IP: 0xffffffff81000010, Func: "vfs_read", Module: "[kernel]"}
	run := profile.Frame{Space: profile.HostUser, IP: 0x500000, Func: "main.run", Module: "/usr/bin/vitrine"}
	return profile.Of("cpu-clock", "nanoseconds", []profile.Sample{
		{Time: 1e6, Weight: 1e6, Guest: "web", VCPU: 0, CPU: -1, PID: 7, TID: 7, Comm: "prog", Chain: []profile.Frame{work, main, run}},
		{Time: 2e6, Weight: 1e6, Guest: "web", VCPU: 1, CPU: -1, PID: 7, TID: 8, Comm: "prog", Chain: []profile.Frame{read, work, main, run}},
		{Time: 3e6, Weight: 1e6, Guest: "web", VCPU: 0, CPU: -1, PID: 7, TID: 7, Comm: "prog", Chain: []profile.Frame{read, work, main, run}},
		{Time: 4e6, Weight: 2e6, Guest: "db", VCPU: 0, CPU: -1, PID: 1, TID: 1, Comm: "a;b\n\x1b[2J</script>", Container: "c1",
			Chain: []profile.Frame{{Space: profile.GuestUser, IP: 0x10}}},
		{Time: 5e6, Weight: 1e6, VCPU: -1, CPU: 1, PID: 99, TID: 99, Comm: "bash", Chain: []profile.Frame{{Space: profile.HostKernel, IP: 1, Func: "do_idle"}}},
	})
}

func write(t *testing.T, format string, p *profile.Profile) []byte {
	t.Helper()
	f, err := ByName(format)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := f.Write(&out, p); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestFoldedStacksAreCountedAndNamesCannotBreakLines(t *testing.T) {
	want := `guest db;c1: a:b??[2J</script>;[unknown]_[g] 2000000
guest web;prog;main.run;main_[g];work_[g];vfs_read_[g]_[k] 2000000
bash;do_idle_[k] 1000000
guest web;prog;main.run;main_[g];work_[g] 1000000
`
	if got := string(write(t, "folded", example())); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPprofOwnToolReadsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.pb.gz")
	b := write(t, "pprof", example())
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "tool", "pprof", "-top", "-cum", "-tagfocus=guest=web", path)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, line := range []string{"3ms", "vfs_read", "work", "main.run", "guest web"} {
		if !strings.Contains(string(out), line) {
			t.Errorf("go tool pprof shows no %q:\n%s", line, out)
		}
	}
	if strings.Contains(string(out), "do_idle") {
		t.Errorf("the host's sample has the guest's label:\n%s", out)
	}
	p, err := pp.Parse(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Sample) != 5 || p.DurationNanos != 4e6 {
		t.Errorf("%d samples over %d ns, want 5 over 4 ms", len(p.Sample), p.DurationNanos)
	}
}

func TestTheSameStackOfTheSameTaskIsOneSample(t *testing.T) {
	var s []profile.Sample
	for i := range 10 {
		s = append(s, profile.Sample{Time: int64(i), Weight: 3, Guest: "g", PID: 1, TID: 1, Comm: "x", Chain: []profile.Frame{{Func: "f", IP: 9}}})
	}
	p, err := pp.Parse(bytes.NewReader(write(t, "pprof", profile.Of("cycles", "count", s))))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Sample) != 1 || p.Sample[0].Value[0] != 10 || p.Sample[0].Value[1] != 30 {
		t.Errorf("samples %v, want one of 10 and 30", p.Sample)
	}
}

func TestSpeedscopeFramesAndWeights(t *testing.T) {
	var f struct {
		Shared   struct{ Frames []struct{ Name string } }
		Profiles []struct {
			Name     string
			EndValue uint64
			Samples  [][]int
			Weights  []uint64
		}
	}
	if err := json.Unmarshal(write(t, "speedscope", example()), &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Profiles) != 4 || f.Profiles[0].Name != "web: prog (7/7)" || f.Profiles[0].EndValue != 2e6 {
		t.Fatalf("profiles %+v", f.Profiles)
	}
	var names []string
	for _, i := range f.Profiles[0].Samples[1] {
		names = append(names, f.Shared.Frames[i].Name)
	}
	if got := strings.Join(names, " "); got != "main.run main_[g] work_[g] vfs_read_[g]_[k]" {
		t.Errorf("stack %s", got)
	}
}

func TestFirefoxTablesAreWhole(t *testing.T) {
	type table struct{ Data [][]any }
	var f struct {
		Threads []struct {
			Samples, FrameTable, StackTable table
			StringTable                     []string
		}
	}
	if err := json.Unmarshal(write(t, "firefox", example()), &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Threads) != 4 {
		t.Fatalf("%d threads, want 4", len(f.Threads))
	}
	for i, th := range f.Threads {
		for _, s := range th.StackTable.Data {
			if s[0] != nil && int(s[0].(float64)) >= len(th.StackTable.Data) || int(s[1].(float64)) >= len(th.FrameTable.Data) {
				t.Errorf("thread %d: stack %v points nowhere", i, s)
			}
		}
		for _, s := range th.Samples.Data {
			if s[0] != nil && int(s[0].(float64)) >= len(th.StackTable.Data) {
				t.Errorf("thread %d: sample %v points nowhere", i, s)
			}
		}
		for _, fr := range th.FrameTable.Data {
			if int(fr[0].(float64)) >= len(th.StringTable) {
				t.Errorf("thread %d: frame %v has no name", i, fr)
			}
		}
	}
}

func TestFlameGraphHoldsTheTreeAndNoGuestsMarkup(t *testing.T) {
	page := write(t, "flamegraph", example())
	if n := bytes.Count(page, []byte("</script>")); n != 1 {
		t.Errorf("%d ends of scripts: a guest's name got through", n)
	}
	_, rest, _ := bytes.Cut(page, []byte("const data = "))
	raw, _, _ := bytes.Cut(rest, []byte(";\n"))
	var data struct {
		Names []string
		Root  []any
	}
	if err := json.Unmarshal(raw, &data); err != nil {
		t.Fatalf("%v in %.200s", err, raw)
	}
	if data.Root[2].(float64) != 6e6 {
		t.Errorf("the whole weighs %v, want 6000000", data.Root[2])
	}
	var path []string
	for at := data.Root; ; {
		path = append(path, data.Names[int(at[0].(float64))])
		if len(at) == 3 {
			break
		}
		at = at[len(at)-1].([]any) // the last by name
	}
	if got := strings.Join(path, " "); got != "all guest web prog main.run main work vfs_read" {
		t.Errorf("the last path is %s", got)
	}
}

func TestAProfileThatEndsEarlySaysSo(t *testing.T) {
	broken := errors.New("the file is cut off")
	for _, f := range Formats {
		p := example()
		all := p.Samples
		p.Samples = func(yield func(*profile.Sample, error) bool) {
			all(yield)
			yield(nil, broken)
		}
		if err := f.Write(&bytes.Buffer{}, p); !errors.Is(err, broken) {
			t.Errorf("%s: error %v", f.Name, err)
		}
	}
	if _, err := ByName("svg"); err == nil || !strings.Contains(err.Error(), "flamegraph") {
		t.Errorf("an unknown format gives %v", err)
	}
}
