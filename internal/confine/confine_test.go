package confine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is also the process that is confined: what it cannot do is what it prints.
func TestMain(m *testing.M) {
	if os.Getenv("CONFINED") == "" {
		os.Exit(m.Run())
	}
	// A thread that is there before must be confined too.
	earlier, told := make(chan func()), make(chan error)
	go func() {
		runtime.LockOSThread()
		for f := range earlier {
			f()
		}
	}()
	runtime.LockOSThread()
	if err := Process(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for name, try := range map[string]func() error{
		"spawn":   func() error { return exec.Command("/bin/true").Run() },
		"exec":    func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"ptrace":  func() error { return unix.PtraceAttach(os.Getppid()) },
		"unshare": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"mount":   func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
		"chroot":  func() error { return unix.Chroot("/") },
	} {
		for thread, run := range map[string]func() error{
			"new": func() error { return <-onNewThread(try) }, "old": func() error { earlier <- func() { told <- try() }; return <-told },
		} {
			if err := run(); !errors.Is(err, unix.EPERM) {
				fmt.Printf("%s on a %s thread: %v\n", name, thread, err)
			}
		}
	}
	// What a guest needs goes on: threads, files, memory.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { <-onNewThread(func() error { return nil }) })
	}
	wg.Wait()
	if _, err := os.ReadFile("/proc/self/status"); err != nil {
		fmt.Println(err)
	}
	fmt.Println("done")
	os.Exit(0)
}

func onNewThread(fn func() error) <-chan error {
	c := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is this goroutine's
		c <- fn()
	}()
	return c
}

func TestAConfinedProcessStartsNothingOnAnyThread(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CONFINED=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v: %s", err, out)
	}
}
