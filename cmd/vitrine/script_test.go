package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vitrine.dev/vitrine/internal/kernel"
)

// Where the scripts' program and kernel cache are; set where the tests were started again as an ordinary user.
const (
	programVar = "VITRINE_TEST_PROGRAM"
	cacheVar   = "VITRINE_TEST_CACHE"
)

// TestScripts runs the program from outside, as its users do: testdata/script has a file for each claim.
func TestScripts(t *testing.T) {
	program, cache := os.Getenv(programVar), os.Getenv(cacheVar)
	if program == "" {
		program, cache = prepare(t)
	}
	image := findKernel(t, cache)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(program)+":"+os.Getenv("PATH"))
			e.Setenv("VITRINE_CACHE", cache)
			e.Setenv("KERNEL", image)
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("SHELL", "/bin/sh")
			e.Setenv("TERM", "dumb")
			e.Setenv("XDG_RUNTIME_DIR", filepath.Join(e.WorkDir, ".run"))
			e.Defer(func() { // a script that fails leaves its detached guests
				for _, pid := range processes(e.Getenv("XDG_RUNTIME_DIR")) {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			})
			return os.MkdirAll(filepath.Join(e.WorkDir, ".run"), 0o700)
		},
		Condition: func(c string) (bool, error) {
			switch c {
			case "root":
				return os.Geteuid() == 0, nil
			case "fetched": // the kernel is not the host's own
				return strings.HasPrefix(image, cache), nil
			}
			return false, fmt.Errorf("unknown condition %q", c)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": statusCmd, "eventually": eventuallyCmd, "terminate": terminateCmd, "nothing-left": nothingLeftCmd,
			"greeter": greeterCmd, "confined": confinedCmd, "kill-helper": killHelperCmd, "kill-vm": killVMCmd,
		},
	})
}

// TestScriptsAsAnOrdinaryUser runs them again as nobody, in a home of its own, where they were run by root.
func TestScriptsAsAnOrdinaryUser(t *testing.T) {
	if os.Getenv(programVar) != "" {
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("TestScripts ran as an ordinary user")
	}
	program, cache := prepare(t)
	image := findKernel(t, cache)
	// go test's own directory is closed to others.
	dir, err := os.MkdirTemp("", "vitrine-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	copies := map[string]string{program: "bin/vitrine", self: "bin/vitrine.test"}
	for from, to := range copies {
		to = filepath.Join(dir, to)
		os.MkdirAll(filepath.Dir(to), 0o755)
		if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	trees := map[string]string{"testdata": "testdata"}
	if strings.HasPrefix(image, cache) { // else nobody finds one as root did, or fetches it
		trees[filepath.Join(cache, "kernels/default")] = "cache/kernels/default"
	}
	for from, to := range trees {
		os.MkdirAll(filepath.Dir(filepath.Join(dir, to)), 0o755)
		if out, err := exec.Command("cp", "-r", from, filepath.Join(dir, to)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	os.MkdirAll(filepath.Join(dir, "tmp"), 0o755)
	os.MkdirAll(filepath.Join(dir, "cache"), 0o700)
	const nobody = 65534
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nobody, nobody)
	}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "bin/vitrine.test"), "-test.run=^TestScripts$", "-test.v", "-test.timeout=9m")
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + filepath.Join(dir, "tmp"), "HOME=" + dir,
		programVar + "=" + filepath.Join(dir, "bin/vitrine"), cacheVar + "=" + filepath.Join(dir, "cache"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	if n := bytes.Count(out, []byte("--- PASS: TestScripts/")); err == nil && n == 0 {
		t.Errorf("as nobody: no script ran:\n%s", out)
	}
}

// prepare builds the program, and says where it keeps kernels.
func prepare(t *testing.T) (program, cache string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "vitrine")
	build := exec.Command("go", "build", "-trimpath", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cache, err := kernel.DefaultCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return program, cache
}

// findKernel gives the kernel that guests boot here, which may have to be fetched.
func findKernel(t *testing.T, cache string) string {
	t.Helper()
	k, err := kernel.Find(context.Background(), kernel.Options{CacheDir: cache, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	return k.Path
}

// status N PROGRAM… runs a program that must end with status N.
func statusCmd(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil || len(args) < 2 {
		ts.Fatalf("usage: status N program [args...]")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

// greeter NAME listens on the host's loopback, says hello to whoever connects, and sets $NAME to its port.
func greeterCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: greeter NAME")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello from the host\n")
			c.Close()
		}
	}()
}

// eventually PATTERN PROGRAM… runs a program until its output matches; with !, until it does not.
func eventuallyCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: eventually pattern program [args...]")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		text := ts.ReadFile("stdout")
		if err == nil && pattern.MatchString(text) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("not so within two minutes; last: %v, %q", err, text)
		}
	}
}

// terminate sends the programs in the background SIGTERM.
func terminateCmd(ts *testscript.TestScript, neg bool, args []string) {
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(syscall.SIGTERM))
	}
}

// nothing-left claims that no guest, directory of one, or process of this script is there any more.
func nothingLeftCmd(ts *testscript.TestScript, neg bool, args []string) {
	run := ts.Getenv("XDG_RUNTIME_DIR")
	var left []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = left[:0]
		names, _ := os.ReadDir(filepath.Join(run, "vitrine"))
		for _, n := range names {
			if !strings.HasPrefix(n.Name(), ".") {
				left = append(left, "directory "+n.Name())
			}
		}
		for _, pid := range processes(run) {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			left = append(left, "process "+strings.ReplaceAll(string(line), "\x00", " "))
		}
		if len(left) == 0 {
			return
		}
	}
	ts.Fatalf("left behind: %s", strings.Join(left, ", "))
}

// processes gives those that were started with run as their run-time directory.
func processes(run string) []int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range all {
		env, err := os.ReadFile(path)
		if err == nil && bytes.Contains(env, []byte("XDG_RUNTIME_DIR="+run+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}
