package boottest

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/machine"
)

// suites are Debian's, and whether their kernels are booted by default.
var suites = []struct {
	name      string
	byDefault bool
}{
	{"bullseye", false},           // 5.10
	{"bookworm", true},            // 6.1
	{"trixie", false},             // 6.12
	{"bookworm-backports", false}, // 6.12, built for 12
	{"trixie-backports", true},    // the newest
}

// givenKernels is where VITRINE_TEST_KERNELS says that the suites' kernels are: SUITE=PATH, parted by blanks. With it, nothing is fetched.
var givenKernels = func() map[string]string {
	m := map[string]string{}
	for _, w := range strings.Fields(os.Getenv("VITRINE_TEST_KERNELS")) {
		suite, path, _ := strings.Cut(w, "=")
		m[suite] = path
	}
	return m
}()

// suiteKernel is the cloud kernel of a suite. Where it is not to be had, the test says so, and fails if everything is asked for.
func suiteKernel(t *testing.T, suite string) *kernel.Kernel {
	t.Helper()
	if len(givenKernels) > 0 {
		path := givenKernels[suite]
		if path == "" {
			t.Skip("no kernel of ", suite, " is given")
		}
		k, err := kernel.Find(t.Context(), kernel.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k, err := kernel.FetchSuite(t.Context(), kernel.SuiteOptions{Suite: suite, Progress: func(l string) { t.Log(l) }})
	if err != nil {
		if *fullFlag {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return k
}

// eachKernel runs a test with the kernels of the suites: those of the default, or with full all.
func eachKernel(t *testing.T, do func(t *testing.T, k *kernel.Kernel)) {
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			if !s.byDefault && givenKernels[s.name] == "" {
				full(t)
			}
			do(t, suiteKernel(t, s.name))
		})
	}
}

// computed is what checkinit computes on this host.
func computed(t *testing.T) string {
	t.Helper()
	path, err := checkInit()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "compute").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// well reports what checkinit found wrong, and where its results are not the host's.
func (o outcome) well(t *testing.T) {
	t.Helper()
	var got strings.Builder
	for line := range strings.Lines(o.console) {
		if strings.HasPrefix(line, "compute: ") {
			got.WriteString(line)
		}
	}
	if want := computed(t); got.String() != want && strings.Contains(o.console, "check: compute") {
		t.Errorf("the guest computes\n%s\nthe host\n%s", got.String(), want)
	}
	if m := theTime.FindStringSubmatch(o.console); m != nil {
		at, _ := strconv.ParseInt(m[1], 10, 64)
		if d := time.Since(time.Unix(at, 0)); d < -5*time.Second || d > 5*time.Minute {
			t.Errorf("the guest's clock is %v behind the host's", d)
		}
	}
	o.says(t, "check: all is well")
}

var theTime = regexp.MustCompile(`check: the time is (\d+)`)

func TestKernelsRunPrograms(t *testing.T) {
	ways := []struct {
		name, words string
		cpus        int
		byDefault   bool
	}{
		{"1 CPU", "", 1, false},
		{"2 CPUs", "", 2, true},
		{"1 CPU, nokaslr", "nokaslr", 1, true},
		{"2 CPUs, nokaslr", "nokaslr", 2, false},
		{"7 CPUs", "", 7, false}, // more than the host may have
	}
	on(t, func(t *testing.T, b hv.Backend) {
		eachKernel(t, func(t *testing.T, k *kernel.Kernel) {
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) {
					if !w.byDefault {
						full(t)
					}
					g := linux(t, k, w.cpus, 512, w.words)
					g.backend = b
					o := g.run(t)
					o.well(t)
					if o.Exit.Reason != machine.PowerOff {
						t.Errorf("it ended by %v, want %v", o.Exit.Reason, machine.PowerOff)
					}
					moved := o.facts.Offset != 0
					if kaslr := w.words != "nokaslr"; moved != kaslr {
						t.Errorf("the kernel was moved by %#x, want it moved: %v", o.facts.Offset, kaslr)
					}
					t.Logf("%s: %.1f CPU seconds to its first process, %.1f in all", k.Release, o.toInit.Seconds(), o.cpu.Seconds())
				})
			}
		})
	})
}

// TestGuestsGoOnInANewProcess is the same with a process of its own for the second half.
func TestGuestsGoOnInANewProcess(t *testing.T) {
	on(t, func(t *testing.T, b hv.Backend) {
		full(t)
		g := linux(t, suiteKernel(t, "bookworm"), 2, 256, "")
		g.backend, g.carry, g.elsewhere = b, "check: cpus is well", true
		o := g.run(t)
		o.well(t)
		if o.Exit.Reason != machine.PowerOff {
			t.Errorf("it ended by %v, want %v", o.Exit.Reason, machine.PowerOff)
		}
	})
}

// TestGuestsGoOnInANewMachine takes the whole state of a guest at work, once while its kernel boots and once among its programs, and puts it into a new
// machine around the same memory.
func TestGuestsGoOnInANewMachine(t *testing.T) {
	on(t, func(t *testing.T, b hv.Backend) {
		k := suiteKernel(t, "bookworm")
		for _, at := range []string{"check: cpus is well", "Freeing unused"} {
			t.Run(at, func(t *testing.T) {
				if at != "check: cpus is well" {
					full(t)
				}
				g := linux(t, k, 2, 512, "")
				g.backend, g.carry = b, at
				o := g.run(t)
				o.well(t)
				if o.Exit.Reason != machine.PowerOff {
					t.Errorf("it ended by %v, want %v", o.Exit.Reason, machine.PowerOff)
				}
			})
		}
	})
}
