package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/initramfs"
)

// Where the tests of other programs' guests run in the guest of another test, that tells them so.
const (
	kernelVar = "VITRINE_TEST_KERNEL" // an image
	accelVar  = "VITRINE_TEST_ACCEL"  // QEMU's, for tcg
)

// foreignTruth is what the guest of QEMU does and says of itself: each part begins with a line "=== NAME".
const foreignTruth = `#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mkdir /tmp; mount -t tmpfs -o mode=700 tmp /tmp
hostname inner
echo 0 >/proc/sys/kernel/kptr_restrict
sleep 1000 </dev/null >/tmp/out & SLEEPER=$!
sh -c 'while :; do :; done' & BURNER=$!
sleep 1
part() { echo "=== $1"; }
{
	part kallsyms; sha256sum </proc/kallsyms
	part mounts; cat /proc/mounts
	part dmesg; dmesg | head -20
	part sleeper; echo $SLEEPER
	part burner; echo $BURNER
	part maps; cat /proc/$SLEEPER/maps
	part stack; cat /proc/$SLEEPER/stack
	part end; echo
} >/dev/ttyS0
while :; do sleep 1; echo tick >/dev/ttyS0; done
`

// A foreignGuest is one that QEMU runs, as its user started it.
type foreignGuest struct {
	pid     int
	console string // a file
	said    map[string]string
	path    string // to find the program under test
}

// bootForeign starts QEMU and waits until its guest has spoken.
func bootForeign(t *testing.T, program, image string, args ...string) *foreignGuest {
	t.Helper()
	dir := t.TempDir()
	g := &foreignGuest{console: filepath.Join(dir, "console"), path: program, said: map[string]string{}}
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, foreignRoot(t), 0o600); err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	q := exec.Command("qemu-system-x86_64", append([]string{"-display", "none", "-serial", "file:" + g.console, "-no-reboot",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1"}, args...)...)
	q.Dir, q.Stderr = dir, &complaints
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	g.pid = q.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- q.Wait() }()
	t.Cleanup(func() {
		q.Process.Kill()
		<-ended
	})
	for limit := time.Now().Add(4 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		text, _ := os.ReadFile(g.console)
		if all := strings.ReplaceAll(string(text), "\r", ""); strings.Contains(all, "=== end\n\n") {
			for part := range strings.SplitSeq(all, "=== ") {
				name, value, _ := strings.Cut(part, "\n")
				g.said[name] = value
			}
			return g
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("QEMU ended: %v: %s\n%s", err, complaints.Bytes(), text)
		default:
		}
		if time.Now().After(limit) {
			t.Fatalf("the guest does not say all: %s", text)
		}
	}
}

// foreignRoot is the guest's root: busybox and the script.
func foreignRoot(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox (apt-get install busybox-static)")
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files := []initramfs.File{
		{Path: "dev/console", Mode: os.ModeDevice | os.ModeCharDevice | 0o600, Major: 5, Minor: 1}, {Path: "init", Mode: 0o755, Data: []byte(foreignTruth)},
		{Path: "bin/busybox", Mode: 0o755, Data: busybox}, {Path: "proc", Mode: os.ModeDir | 0o755}, {Path: "sys", Mode: os.ModeDir | 0o755},
	}
	for _, name := range []string{"sh", "mount", "mkdir", "hostname", "sleep", "sha256sum", "cat", "dmesg", "head"} {
		files = append(files, initramfs.File{Path: "bin/" + name, Mode: os.ModeSymlink | 0o777, Data: []byte("busybox")})
	}
	var b bytes.Buffer
	w := initramfs.NewWriter(&b)
	for _, f := range files {
		if err := w.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// vitrine runs the program and gives what it prints.
func (g *foreignGuest) vitrine(t *testing.T, args ...string) string {
	t.Helper()
	out, err := g.try(args...)
	if err != nil {
		t.Fatalf("vitrine %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (g *foreignGuest) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var complaints bytes.Buffer
	c := exec.CommandContext(ctx, g.path, args...)
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		err = errors.New(complaints.String())
	}
	return string(out), err
}

// ask is vitrine, for JSON.
func ask[T any](t *testing.T, g *foreignGuest, args ...string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(g.vitrine(t, args...)), &v); err != nil {
		t.Fatalf("vitrine %s: %v", strings.Join(args, " "), err)
	}
	return v
}

// foreignCases are ways to start a guest that need different ways to look at it.
var foreignCases = []struct {
	name                string
	args                string // of QEMU; %n is its name
	cpus                int
	memory              uint64
	byMemory, registers string
	kvm                 string // registers under KVM
}{
	{"plain", "-m 5G -smp 2", 2, 5 << 30, "mappings", "QEMU's memory", "KVM"},
	{"QMP", "-name guest=%n,debug-threads=on -M q35,memory-backend=m -object memory-backend-memfd,id=m,size=3G,share=on -m 3G -smp 1 -qmp unix:qmp.sock,server=on,wait=off",
		1, 3 << 30, "QMP", "QMP", "KVM"},
}

// TestOtherProgramsGuests starts QEMU as its users do, and claims that each verb says of its guest what that says of itself.
func TestOtherProgramsGuests(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 (apt-get install qemu-system-x86)")
	}
	program, image := os.Getenv(programVar), os.Getenv(kernelVar)
	if image == "" {
		cache := ""
		program, cache = prepare(t)
		image = findKernel(t, cache)
	}
	for _, c := range foreignCases {
		t.Run(c.name, func(t *testing.T) {
			accel := os.Getenv(accelVar)
			name := fmt.Sprintf("other-%d", os.Getpid())
			registers, args := c.registers, strings.Fields(strings.ReplaceAll(c.args, "%n", name))
			if accel != "" {
				registers, args = c.kvm, append(args, "-accel", accel)
			} else {
				accel = "tcg"
			}
			if !strings.Contains(c.args, "%n") {
				name = ""
			}
			g := bootForeign(t, program, image, args...)
			pid := strconv.Itoa(g.pid)
			if name == "" {
				name = "qemu-" + pid
			}

			t.Run("ls", func(t *testing.T) {
				type row struct {
					Name, VMM, Accelerator, Kernel, State, Owner, Unseen string
					PID, CPUs                                            int
					MemoryBytes                                          uint64 `json:"memory_bytes"`
					Started                                              time.Time
				}
				all := ask[[]row](t, g, "ls", "--json")
				i := slices.IndexFunc(all, func(r row) bool { return r.PID == g.pid })
				if i < 0 {
					t.Fatalf("%d is not listed: %+v", g.pid, all)
				}
				r := all[i]
				if time.Since(r.Started) > time.Hour || time.Until(r.Started) > time.Minute {
					t.Errorf("started %v", r.Started)
				}
				r.Started = time.Time{}
				want := row{Name: name, VMM: "qemu", Accelerator: accel, Kernel: release(t, g.said["dmesg"]), State: "running", Owner: r.Owner, PID: g.pid,
					CPUs: c.cpus, MemoryBytes: c.memory}
				if r != want || r.Owner == "" {
					t.Errorf("got %+v, want %+v", r, want)
				}
				if n := len(slices.DeleteFunc(all, func(r row) bool { return r.PID != g.pid })); n != 1 {
					t.Errorf("it is listed %d times", n)
				}
			})
			t.Run("inspect", func(t *testing.T) {
				type inspection struct {
					MemoryBy  string `json:"memory_by"`
					Registers string
					Problem   string
					Memory    []struct{ Base, Size uint64 }
				}
				i := ask[[]inspection](t, g, "inspect", name)[0]
				if i.MemoryBy != c.byMemory || i.Registers != registers || i.Problem != "" {
					t.Errorf("got %+v, want memory by %s, registers by %s", i, c.byMemory, registers)
				}
				total := uint64(0)
				for _, r := range i.Memory {
					total += r.Size
				}
				if high := slices.Concat([]struct{ Base, Size uint64 }{{}}, i.Memory)[len(i.Memory)]; total > c.memory || total < c.memory-1<<20 || high.Base != 4<<30 {
					t.Errorf("its memory is %+v, %d in all, want %d, some of it from 4 GiB on", i.Memory, total, c.memory)
				}
			})
			burner := strings.TrimSpace(g.said["burner"])
			saysWhatTheGuestSays(t, g, pid)
			t.Run("top", func(t *testing.T) {
				type report struct {
					Guest     string
					Samples   int
					Processes []struct {
						PID   int
						Share float64
					}
				}
				for _, r := range []report{
					ask[report](t, g, "top", "--once", "--json", pid),
					slices.DeleteFunc(ask[[]report](t, g, "top", "--once", "--json"), func(r report) bool { return r.Guest != name })[0],
				} {
					if r.Samples == 0 || len(r.Processes) == 0 || strconv.Itoa(r.Processes[0].PID) != burner || r.Processes[0].Share < 0.5 {
						t.Errorf("got %+v, want process %s to run most", r, burner)
					}
				}
			})
			t.Run("core", func(t *testing.T) {
				core := filepath.Join(t.TempDir(), "core")
				g.vitrine(t, "core", pid, core)
				saysWhatTheGuestSays(t, g, core)
			})
			t.Run("nothing else", func(t *testing.T) {
				for _, args := range [][]string{{"stop", pid}, {"kill", pid}, {"pause", pid}, {"exec", pid, "true"}, {"logs", pid}, {"rm", "-f", pid}, {"wait", pid}} {
					if _, err := g.try(args...); err == nil || !strings.Contains(err.Error(), "not Vitrine's guest") {
						t.Errorf("%s: %v", args[0], err)
					}
				}
			})
			t.Run("it goes on", func(t *testing.T) { g.goesOn(t) })
		})
	}
}

// saysWhatTheGuestSays claims that each verb that looks into a guest, or a dump of one, says what the guest does.
func saysWhatTheGuestSays(t *testing.T, g *foreignGuest, name string) {
	sleeper, burner := strings.TrimSpace(g.said["sleeper"]), strings.TrimSpace(g.said["burner"])
	t.Run("symbols", func(t *testing.T) {
		got := fmt.Sprintf("%x", sha256.Sum256([]byte(g.vitrine(t, "symbols", "--kallsyms", name))))
		if want := strings.Fields(g.said["kallsyms"])[0]; got != want {
			t.Errorf("symbols are not the guest's /proc/kallsyms")
		}
	})
	t.Run("ps", func(t *testing.T) { foreignProcesses(t, g, name, sleeper, burner) })
	t.Run("dmesg", func(t *testing.T) {
		if got := g.vitrine(t, "dmesg", name); !strings.HasPrefix(got, g.said["dmesg"]) {
			t.Errorf("the log is\n%.2000s\nthe guest says\n%s", got, g.said["dmesg"])
		}
	})
	t.Run("mounts", func(t *testing.T) {
		var got, want []string
		for _, m := range ask[[]struct{ Target string }](t, g, "mounts", "--json", name) {
			got = append(got, m.Target)
		}
		for line := range strings.Lines(g.said["mounts"]) {
			want = append(want, strings.Fields(line)[1])
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, the guest says %v", got, want)
		}
	})
	t.Run("maps", func(t *testing.T) {
		if got, want := squeeze(g.vitrine(t, "maps", name, sleeper)), squeeze(g.said["maps"]); got != want {
			t.Errorf("got\n%s\nthe guest says\n%s", got, want)
		}
	})
	t.Run("lsof", func(t *testing.T) {
		if got := g.vitrine(t, "lsof", name, sleeper); !strings.Contains(got, "/tmp/out") {
			t.Errorf("got\n%s\nwant /tmp/out", got)
		}
	})
	t.Run("stack", func(t *testing.T) {
		got := g.vitrine(t, "stack", name, sleeper)
		want := strings.ReplaceAll(g.said["stack"], "[<0>] ", "")
		if got != want {
			t.Errorf("got\n%s\nthe guest says\n%s", got, want)
		}
	})
	t.Run("modules", func(t *testing.T) {
		if got := ask[[]struct{ Name string }](t, g, "modules", "--json", name); len(got) != 0 {
			t.Errorf("got %v, none is loaded", got)
		}
	})
}

// release is that of the kernel whose log this is.
func release(t *testing.T, log string) string {
	t.Helper()
	_, rest, ok := strings.Cut(log, "Linux version ")
	if !ok {
		t.Fatalf("no version in %q", log)
	}
	return strings.Fields(rest)[0]
}

// squeeze makes each run of blanks one.
func squeeze(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}

// foreignProcesses claims that ps shows the guest's processes.
func foreignProcesses(t *testing.T, g *foreignGuest, name, sleeper, burner string) {
	t.Helper()
	commands := map[int]string{}
	for _, p := range ask[[]struct {
		PID     int
		Cmdline string
	}](t, g, "ps", "--json", name) {
		if _, twice := commands[p.PID]; twice {
			t.Errorf("process %d is listed twice", p.PID)
		}
		commands[p.PID] = p.Cmdline
	}
	for pid, want := range map[string]string{"1": "/bin/sh /init", sleeper: "sleep 1000", burner: "sh -c while :; do :; done", "2": ""} {
		n, _ := strconv.Atoi(pid)
		if got, ok := commands[n]; !ok || got != want {
			t.Errorf("process %s is %q (listed: %v), want %q", pid, got, ok, want)
		}
	}
}

// goesOn claims that the guest does what it did, and that nobody holds its VMM.
func (g *foreignGuest) goesOn(t *testing.T) {
	t.Helper()
	ticks := func() int {
		text, err := os.ReadFile(g.console)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(text, []byte("tick"))
	}
	was := ticks()
	for limit := time.Now().Add(time.Minute); ticks() < was+2; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it stands still")
		}
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", g.pid))
	for _, path := range threads {
		status, err := os.ReadFile(path)
		if err == nil && !bytes.Contains(status, []byte("TracerPid:\t0\n")) {
			t.Errorf("%s: the thread is still traced", path)
		}
	}
	if len(threads) == 0 {
		t.Error("QEMU has no threads")
	}
}
