package nested

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/kernel"
)

var full = os.Getenv("VITRINE_TEST_FULL") == "1"

// outerSuite is the suite that the outer guest's kernel is of.
const outerSuite = "bookworm"

// missing skips a test, or fails it where everything is asked for.
func missing(t *testing.T, why any) {
	t.Helper()
	if full {
		t.Fatal(why)
	}
	t.Skip(why)
}

// newJob is an outer guest with nothing in it, or a skip that says what is missing.
func newJob(t *testing.T) *Job {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	if _, err := exec.LookPath(QEMU); err != nil {
		missing(t, "no "+QEMU+" (apt-get install qemu-system-x86)")
	}
	k, err := kernel.FetchSuite(t.Context(), kernel.SuiteOptions{Suite: outerSuite, Progress: func(l string) { t.Log(l) }})
	if err != nil {
		missing(t, err)
	}
	j := &Job{Kernel: k, MiB: 2048, Dir: "/payload", Env: []string{"PATH=/payload", "HOME=/tmp"}}
	if j.Init, err = BuildInit(t.Context()); err != nil {
		t.Fatal(err)
	}
	j.Files = []initramfs.File{{Path: "payload", Mode: os.ModeDir | 0o755}}
	return j
}

// add builds a program into the payload.
func (j *Job) add(t *testing.T, name string, what ...string) {
	t.Helper()
	exe, err := Build(t.Context(), what...)
	if err != nil {
		t.Fatal(err)
	}
	j.Files = append(j.Files, initramfs.File{Path: filepath.Join(j.Dir, name), Mode: 0o755, Data: exe})
}

// addTree puts files of the host into the payload.
func (j *Job) addTree(t *testing.T, from, to string) {
	t.Helper()
	files, err := Tree(from, filepath.Join(j.Dir, to))
	if err != nil {
		t.Fatal(err)
	}
	j.Files = append(j.Files, files...)
}

// run runs the job; what it says is the test's log, as it comes.
func (j *Job) run(t *testing.T, limit time.Duration) (status int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var buf bytes.Buffer
	j.Output = io.MultiWriter(&buf, t.Output())
	status, err := j.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return status, buf.String()
}

// boots is a job that runs the backend's own tests and, of the board's boot tests, those that which names, with kernels of the suites: the first one's is
// the outer guest's too.
func boots(t *testing.T, which string, suites ...string) *Job {
	t.Helper()
	j := newJob(t)
	j.add(t, "kvm.test", "-c", "vitrine.dev/vitrine/internal/hv/kvm")
	j.add(t, "boot.test", "-c", "vitrine.dev/vitrine/internal/boottest")
	j.add(t, "checkinit", "vitrine.dev/vitrine/internal/boottest/checkinit")
	j.addTree(t, "../boottest/testdata", "testdata")
	j.addTree(t, j.Kernel.Path, suites[0])
	kernels := suites[0] + "=/payload/" + suites[0]
	for _, s := range suites[1:] {
		k, err := kernel.FetchSuite(t.Context(), kernel.SuiteOptions{Suite: s, Progress: func(l string) { t.Log(l) }})
		if err != nil {
			missing(t, err)
		}
		j.addTree(t, k.Path, s)
		kernels += " " + s + "=/payload/" + s
	}
	j.Env = append(j.Env, "VITRINE_TEST_BACKEND=kvm", "VITRINE_TEST_KERNELS="+kernels, "VITRINE_TEST_INIT=/payload/checkinit",
		// TCG does not keep x87's last instruction, which program32 looks at; it says that itself in the outer guest.
		"VITRINE_TEST_NOT=program32", "VITRINE_TEST_PATIENCE=5")
	if full {
		j.Env = append(j.Env, "VITRINE_TEST_FULL=1")
		j.MiB = 6144 // for guests of more than 3 GiB, which use little of it
	}
	j.Commands = [][]string{
		{"/payload/kvm.test", "-test.v", "-test.timeout=0"},
		{"/payload/boot.test", "-test.v", "-test.timeout=0", "-test.run", which},
	}
	return j
}

func TestBackendUnderNestedKVM(t *testing.T) {
	which, limit, suites := "TestKernelsRunPrograms/.*/.*/1_CPU,_nokaslr", 5*time.Minute, []string{outerSuite}
	if full {
		which, limit, suites = ".", 2*time.Hour, []string{outerSuite, "bullseye", "trixie", "bookworm-backports", "trixie-backports"}
	}
	if status, _ := boots(t, which, suites...).run(t, limit); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestOwnChipsUnderNestedKVM is the same with the board's interrupt controllers, not the kernel's.
func TestOwnChipsUnderNestedKVM(t *testing.T) {
	if !full {
		t.Skip("VITRINE_TEST_FULL=1 is not given")
	}
	j := boots(t, "TestKernelsRunPrograms|TestGuestsGoOn", outerSuite)
	j.Env = append(j.Env, "VITRINE_TEST_OWNCHIPS=1")
	if status, _ := j.run(t, time.Hour); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestRunUnderNestedKVM runs commands as a user does: the accelerator is chosen, the guest's root is the outer guest's.
func TestRunUnderNestedKVM(t *testing.T) {
	j := newJob(t)
	j.add(t, "vitrine", "vitrine.dev/vitrine/cmd/vitrine")
	j.add(t, "checkinit", "vitrine.dev/vitrine/internal/boottest/checkinit")
	j.addTree(t, j.Kernel.Path, "bzImage")
	j.addTree(t, filepath.Join(filepath.Dir(j.Kernel.Path), "../lib/modules", j.Kernel.Release), "modules")
	run := []string{"/payload/vitrine", "run", "--memory", "512M", "--kernel", "/payload/bzImage", "--modules", "/payload/modules"}
	j.Commands = [][]string{
		append(slices.Clone(run), "--cpus", "1", "--", "/payload/checkinit", "compute"),
		append(slices.Clone(run), "--cpus", "2", "--accel", "kvm", "--", "/payload/checkinit", "no such thing"),
	}
	status, out := j.run(t, 5*time.Minute)
	if status == 0 || status >= 125 {
		t.Errorf("status %d, want what a command gives that does not know its argument", status)
	}
	if n := strings.Count(out, "using KVM"); n != 2 {
		t.Errorf("KVM was used %d times, want twice", n)
	}
	if !strings.Contains(out, "compute: ") {
		t.Error("the first command's output is missing")
	}
}

// TestStateWithXSAVEUnderNestedKVM runs the backend's tests where there is XSAVE, but the one that TCG is known to fail.
func TestStateWithXSAVEUnderNestedKVM(t *testing.T) {
	if !full {
		t.Skip("VITRINE_TEST_FULL=1 is not given")
	}
	j := newJob(t)
	j.CPU = WithXSAVE
	j.add(t, "kvm.test", "-c", "vitrine.dev/vitrine/internal/hv/kvm")
	j.Commands = [][]string{{"/payload/kvm.test", "-test.v", "-test.timeout=0", "-test.skip", "TestGuestsXCR0IsSeen"}}
	if status, _ := j.run(t, 5*time.Minute); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestStatusAndOutputComeBack needs no KVM: it is the harness's own.
func TestStatusAndOutputComeBack(t *testing.T) {
	if !full {
		t.Skip("VITRINE_TEST_FULL=1 is not given; the other tests tell as well")
	}
	j := newJob(t)
	j.add(t, "checkinit", "vitrine.dev/vitrine/internal/boottest/checkinit")
	j.Commands = [][]string{{"/payload/checkinit", "compute"}, {"/payload/checkinit", "no such thing"}}
	status, out := j.run(t, 2*time.Minute)
	if status == 0 || out == "" {
		t.Errorf("status %d, output %q", status, out)
	}
}
