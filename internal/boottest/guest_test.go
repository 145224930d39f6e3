package boottest

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/gob"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/hv/kvm"
	"vitrine.dev/vitrine/internal/hv/soft"
	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/machine/boot"
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/balloon"
	"vitrine.dev/vitrine/internal/machine/virtio/rng"
	"vitrine.dev/vitrine/internal/mem"
)

var fullFlag = flag.Bool("full", os.Getenv("VITRINE_TEST_FULL") == "1", "boot all kernels in all ways")

// full skips a part of the matrix that is not run by default.
func full(t *testing.T) {
	t.Helper()
	if !*fullFlag {
		t.Skip("neither VITRINE_TEST_FULL=1 nor -full is given (./dev test-kernels gives it)")
	}
}

// patience is by how much longer than on an ordinary host things may take here.
var patience = func() int {
	n, _ := strconv.Atoi(os.Getenv("VITRINE_TEST_PATIENCE"))
	return max(n, 1)
}()

// backends is what guests run on here; VITRINE_TEST_BACKEND names the one to use.
var backends = sync.OnceValue(func() (all []hv.Backend) {
	only := os.Getenv("VITRINE_TEST_BACKEND")
	if only == "" || only == "soft" {
		all = append(all, soft.Backend{})
	}
	k, err := kvm.Open()
	if err == nil {
		err = k.Stock()
	}
	if only == "kvm" && err != nil {
		panic("VITRINE_TEST_BACKEND=kvm: " + err.Error())
	}
	if only != "soft" && err == nil {
		all = append(all, k)
	}
	return all
})

// A guest is a machine to boot, and what becomes of it.
type guest struct {
	backend hv.Backend
	kernel  *boot.Image
	initrd  []*boot.Image
	append  string
	cpus    int
	mib     uint64
	// answers are typed at the console when it has shown the key.
	answers map[string]string
	// carry makes the guest go on in a new machine when the console has shown it; nothing is typed then.
	carry string
	// elsewhere has it go on in a new process, whose memory is filled page by page.
	elsewhere bool
	// cues are called, each once and on a goroutine of its own, when the console has shown their text after that of the one before.
	cues    []cue
	timeout time.Duration // 0: two minutes
}

// A cue is something to do to a guest when its console shows a text.
type cue struct {
	text string
	do   func(m *machine.Machine)
}

// An outcome is what a guest came to.
type outcome struct {
	machine.Exit
	facts   boot.Facts
	console string
	toInit  time.Duration // CPU time of this process until the guest's first process said that it is up; 0 if it did not
	cpu     time.Duration // CPU time in all
}

// run boots a guest and waits for its end; one that does not end is an error of the test, with the last lines of its console.
func (g guest) run(t *testing.T) outcome {
	t.Helper()
	ram, err := mem.New(g.mib << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	began := cpuTime()
	keys, typed := io.Pipe()
	defer typed.Close()
	screen := &screen{answers: g.answers, typed: typed, began: began}
	var in io.Reader = keys
	if g.carry != "" {
		in = nil
	}
	m, err := g.build(ram, in, screen)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { m.Close() }()
	screen.cues, screen.m = g.cues, m
	cache, _ := kernel.DefaultCacheDir()
	first, facts, err := boot.Load(ram, boot.Config{
		Kernel: g.kernel, Initrd: g.initrd, CommandLine: g.append, RSDP: m.RSDP(), CacheDir: cache,
		Log: func(line string) { t.Error(line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	timeout := g.timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	timeout *= time.Duration(patience)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var state bytes.Buffer
	saved := make(chan error, 1)
	if g.carry != "" {
		screen.seek, screen.seen = g.carry, func() {
			m.Pause()
			saved <- m.Save(gob.NewEncoder(&state))
			m.Stop()
		}
	}
	exit, err := m.Run(ctx, first)
	if g.carry != "" && err == nil && ctx.Err() == nil {
		if err := <-saved; err != nil {
			t.Fatal(err)
		}
		m.Close()
		if g.elsewhere {
			exit, err = g.goOnElsewhere(ctx, state.Bytes(), ram, screen)
		} else {
			if m, err = g.goOn(gob.NewDecoder(&state), ram, screen); err != nil {
				t.Fatal(err)
			}
			exit, err = m.Run(ctx, nil)
		}
	}
	o := outcome{Exit: exit, facts: *facts, console: screen.text(), toInit: screen.upAfter(), cpu: cpuTime() - began}
	if dir := os.Getenv("VITRINE_TEST_CONSOLES"); dir != "" { // for who wants to read them
		os.WriteFile(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", ".")), []byte(o.console), 0o644)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, o.tail())
	}
	if exit.Reason == machine.Stopped {
		t.Fatalf("it did not end within %v:\n%s", timeout, o.tail())
	}
	return o
}

// build makes the guest's machine.
func (g guest) build(ram *mem.Memory, keys io.Reader, out io.Writer) (*machine.Machine, error) {
	m, err := machine.New(machine.Config{
		RAM: ram, CPUs: g.cpus, Backend: g.backend, TSCHz: g.backend.(interface{ TSCHz() uint64 }).TSCHz(), DebugExit: true,
		OwnChips: os.Getenv("VITRINE_TEST_OWNCHIPS") == "1", Serial: [2]machine.Serial{{In: keys, Out: out}},
	})
	if err != nil {
		return nil, err
	}
	for _, d := range []virtio.Device{rng.New(), balloon.New()} {
		if err := m.Attach(virtio.NewPCI(d, ram, m.MSI())); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// goOn makes a machine that is about to go on with a state.
func (g guest) goOn(state *gob.Decoder, ram *mem.Memory, out io.Writer) (*machine.Machine, error) {
	m, err := g.build(ram, nil, out)
	if err != nil {
		return nil, err
	}
	m.Pause()
	if err := m.Load(state); err != nil {
		m.Close()
		return nil, err
	}
	m.Resume()
	return m, nil
}

// tail is the end of what the console showed.
func (o outcome) tail() string {
	lines := strings.Split(strings.TrimSpace(o.console), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// says reports an error where the console lacks a text.
func (o outcome) says(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(o.console, text) {
		t.Errorf("the console does not say %q:\n%s", text, o.tail())
	}
}

// cpuTime is the CPU time that this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A screen is what a guest's first serial port is connected to.
type screen struct {
	answers map[string]string
	typed   io.Writer
	began   time.Duration
	seek    string // with seen
	seen    func() // is called once, when seek was shown, on a goroutine of its own
	m       *machine.Machine
	cues    []cue

	mu   sync.Mutex // guards what follows
	buf  bytes.Buffer
	up   time.Duration
	said map[string]bool
}

// Write takes what the guest prints, and types answers.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf.Len() < 4<<20 {
		s.buf.Write(p)
	}
	if s.up == 0 && bytes.Contains(s.buf.Bytes(), []byte("check: up")) {
		s.up = cpuTime() - s.began
	}
	if s.seen != nil && bytes.Contains(s.buf.Bytes(), []byte(s.seek)) {
		go s.seen()
		s.seen = nil
	}
	if len(s.cues) > 0 && bytes.Contains(s.buf.Bytes(), []byte(s.cues[0].text)) {
		go s.cues[0].do(s.m)
		s.cues = s.cues[1:]
	}
	for question, answer := range s.answers {
		if !s.said[question] && bytes.Contains(s.buf.Bytes(), []byte(question)) {
			if s.said == nil {
				s.said = map[string]bool{}
			}
			s.said[question] = true
			go io.WriteString(s.typed, answer)
		}
	}
	return len(p), nil
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(s.buf.String(), "\r", "")
}

func (s *screen) upAfter() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

// checkInit is the guest's first process, built once.
var checkInit = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("VITRINE_TEST_INIT"); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "boottest")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "checkinit")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "vitrine.dev/vitrine/internal/boottest/checkinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building checkinit (VITRINE_TEST_INIT names one that is built): %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(carriedVar) != "" {
		os.Exit(carried())
	}
	status := m.Run()
	if path, err := checkInit(); err == nil && os.Getenv("VITRINE_TEST_INIT") == "" {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(status)
}

//go:embed testdata/hello32
var hello32 []byte

// initrd is checkinit and what it looks at; the file /given comes as an archive of its own, behind.
func initrd(t *testing.T) []*boot.Image {
	t.Helper()
	path, err := checkInit()
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	main, err := initramfs.Pack(exe, nil, initramfs.File{Path: "hello32", Mode: 0o755, Data: hello32})
	if err != nil {
		t.Fatal(err)
	}
	var second bytes.Buffer
	w := initramfs.NewWriter(&second)
	if err := w.Add(initramfs.File{Path: "given", Mode: 0o644, Data: []byte(given + "\n")}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return []*boot.Image{boot.Bytes("checkinit", main), boot.Bytes("given", second.Bytes())}
}

// given is what the second archive brings.
const given = "from-behind"

// linux is a guest of kernel k that runs the checks. With no_timer_check: Linux's timer_irq_works wants 5 ticks within 60 ms and panics without
// them, and a busy host may keep us from the processor that long (1 boot of about 100, load 8 on 2 processors).
func linux(t *testing.T, k *kernel.Kernel, cpus int, mib uint64, words string) guest {
	t.Helper()
	image, err := boot.Open("kernel", k.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	return guest{
		kernel: image, initrd: initrd(t), cpus: cpus, mib: mib,
		append: fmt.Sprintf("console=ttyS0 panic=-1 no_timer_check check.cpus=%d check.mib=%d check.given=%s check.not=%s %s", cpus, mib, given,
			os.Getenv("VITRINE_TEST_NOT"), words),
	}
}

// on runs a test on each backend.
func on(t *testing.T, do func(t *testing.T, b hv.Backend)) {
	for _, b := range backends() {
		t.Run(b.Name(), func(t *testing.T) { do(t, b) })
	}
}
