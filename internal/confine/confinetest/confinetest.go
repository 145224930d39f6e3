// Package confinetest tries in a process with given rights what whoever took it over would try.
package confinetest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
)

// The environment of a test's child: which rights it keeps, a directory to try things on, what it may do.
const (
	kindVar = "CONFINETEST_KIND"
	dirVar  = "CONFINETEST_DIR"
	mayVar  = "CONFINETEST_MAY"
)

// Rights gives what a kind of process keeps. It is called in the process; in dir/in there is a file of which the tests expect that rights to files cover it.
type Rights func(dir string) confine.Rights

// Child is the rest of the calling process where it is one that Check started; else it returns at once. TestMain calls it first.
func Child(kinds map[string]Rights) {
	rights, ok := kinds[os.Getenv(kindVar)]
	if !ok {
		return
	}
	try(rights, os.Getenv(dirVar), strings.Split(os.Getenv(mayVar), ","))
	fmt.Println("done")
	os.Exit(0)
}

// Check has a process with the rights of kind try everything, as who runs the tests, and where that is root as an ordinary user too. All must be refused,
// but what is in may, which must not.
func Check(t *testing.T, kind string, may ...string) {
	t.Run("caller", func(t *testing.T) { check(t, kind, may, 0) })
	if os.Getuid() == 0 {
		t.Run("ordinary", func(t *testing.T) { check(t, kind, may, confine.Nobody) })
	}
}

func check(t *testing.T, kind string, may []string, uid uint32) {
	dir, err := os.MkdirTemp("", "confine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	makeFiles(t, dir)
	self := filepath.Join(dir, "self") // go test's own directory is closed to others
	if out, err := exec.Command("cp", os.Args[0], self).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{kindVar + "=" + kind, dirVar + "=" + dir, mayVar + "=" + strings.Join(may, ",")}
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := cmd.CombinedOutput()
	if why, skip := strings.CutPrefix(string(out), skipMark); skip && err == nil {
		t.Skipf("%s(a test built with cgo: CGO_ENABLED=0)", why)
	}
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v: %s", err, out)
	}
}

// makeFiles makes files that anybody may change, but for what confines him.
func makeFiles(t *testing.T, dir string) {
	for _, sub := range []string{"in", "out"} {
		if err := errors.Join(
			os.Mkdir(filepath.Join(dir, sub), 0o777), os.Chmod(filepath.Join(dir, sub), 0o777),
			os.WriteFile(filepath.Join(dir, sub, "file"), []byte(sub), 0o666), os.Chmod(filepath.Join(dir, sub, "file"), 0o666),
		); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
}

// skipMark begins what a child prints that cannot try what it is for.
const skipMark = "skip: "

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// try is a process that confines itself and then tries.
func try(rights Rights, dir string, may []string) {
	earlier := onThread() // a thread that is there before must be confined too
	root := os.Geteuid() == 0
	parent := os.Getppid()
	open, err := unix.Open(dir+"/out", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		say("%v", err)
	}
	status, err := os.Open("/proc/self/status")
	if err != nil {
		say("%v", err)
	}
	r := rights(dir)
	has, err := confine.Permitted()
	if err != nil {
		say("%v", err)
	}
	r.Capabilities &= has
	const needed = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETPCAP
	root = root && has&needed == needed // the root of a container may not change who it is
	if err := confine.Apply(r); errors.Is(err, confine.ErrPart) {
		say("%s%v", skipMark, err)
		os.Exit(0)
	} else if err != nil {
		say("%v", err)
		return
	}
	tries := attempts(dir, parent, open)
	for _, name := range slices.Sorted(maps.Keys(tries)) {
		for thread, on := range map[string]func(func() error) error{"old": earlier, "new": onThread()} {
			err := on(tries[name])
			refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
			if refused == slices.Contains(may, name) {
				say("%s on a %s thread: %v", name, thread, err)
			}
		}
	}
	for _, name := range may {
		if tries[name] == nil && name != "" {
			say("%s is not tried", name)
		}
	}
	goesOn()
	checkStatus(status, r, root)
}

// goesOn does what any process needs: threads, timers, memory.
func goesOn() {
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { onThread()(func() error { time.Sleep(time.Millisecond); return nil }) })
	}
	wg.Wait()
	runtime.GC()
}

// checkStatus reads what the kernel says of the process, in what was opened before.
func checkStatus(status *os.File, r confine.Rights, root bool) {
	text := make([]byte, 16384)
	n, err := status.ReadAt(text, 0)
	if n == 0 {
		say("the open status cannot be read: %v", err)
	}
	keep := r.Capabilities
	if root && r.User != 0 {
		keep = 0
	}
	caps := fmt.Sprintf("\t%016x", keep)
	want := []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:" + caps, "CapEff:" + caps, "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"}
	if root {
		want = append(want, "CapBnd:"+caps)
	}
	if root && r.User != 0 {
		want = append(want, fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", r.User), "Groups:\t \n")
	}
	for _, w := range want {
		if !strings.Contains(string(text[:n]), w) {
			say("status lacks %q:\n%s", w, text[:n])
		}
	}
}

// onThread gives a way to run functions on a thread of their own.
func onThread() func(func() error) error {
	work, result := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread()
		for f := range work {
			result <- f()
		}
	}()
	return func(f func() error) error { work <- f; return <-result }
}
