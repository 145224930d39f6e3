package helper

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
)

// parentVar makes the test's program a parent of helpers that waits to be killed.
const parentVar = "HELPER_PARENT"

func TestMain(m *testing.M) {
	Run(map[string]Main{
		"echo": echo, "refuse": refuse,
		"crash": func(*Conn) error { panic("of the helper") }, "stuck": stuck,
	})
	if os.Getenv(parentVar) != "" {
		parent()
	}
	os.Exit(m.Run())
}

type message struct{ Text string }

// echo gives every packet back, with its descriptors.
func echo(c *Conn) error {
	var m message
	if _, err := c.Recv(&m); err != nil {
		return err
	}
	if err := c.Confine(confine.Rights{Calls: confine.Calls(unix.SYS_SENDMSG, unix.SYS_RECVMSG)}); err != nil {
		return err
	}
	for {
		fds, err := c.Recv(&m)
		if err != nil {
			return err
		}
		if err := c.Send(m, fds...); err != nil {
			return err
		}
	}
}

func refuse(c *Conn) error {
	var m message
	if _, err := c.Recv(&m); err != nil {
		return err
	}
	return c.Refuse(errors.New("for a reason"))
}

// stuck does not look whether its parent is there.
func stuck(c *Conn) error {
	var m message
	c.Recv(&m)
	if err := c.Confine(confine.Rights{Calls: confine.Calls(unix.SYS_SENDMSG)}); err != nil {
		return err
	}
	for {
		time.Sleep(time.Hour)
	}
}

func parent() {
	for _, kind := range []string{"echo", "stuck"} {
		p, err := Start(kind, Options{Log: func(s string) { fmt.Println(s) }}, message{})
		if err == nil {
			_, err = p.Ready()
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(p.cmd.Process.Pid)
	}
	for {
		time.Sleep(time.Hour)
	}
}

func start(t *testing.T, kind string) (*Process, func() string) {
	t.Helper()
	var mu sync.Mutex
	var lines []string
	p, err := Start(kind, Options{Guest: "guest", Log: func(s string) {
		mu.Lock()
		lines = append(lines, s)
		mu.Unlock()
	}}, message{"setup"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, func() string {
		<-p.Done()
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(lines, "\n")
	}
}

func TestPacketsAndDescriptorsCrossBothWays(t *testing.T) {
	p, _ := start(t, "echo")
	if _, err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Ready(); err != nil {
		t.Errorf("asked twice: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	long := strings.Repeat("x", MaxPacket-100)
	if err := p.Send(message{long}, int(w.Fd()), int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var m message
	fds, err := p.Recv(&m)
	if err != nil || m.Text != long || len(fds) != 2 {
		t.Fatalf("got %d bytes, descriptors %v, %v", len(m.Text), fds, err)
	}
	unix.Write(fds[0], []byte("through"))
	for _, fd := range fds {
		unix.Close(fd)
	}
	p.Close() // else the helper has the pipe still
	if text, err := io.ReadAll(r); string(text) != "through" {
		t.Errorf("read %q, %v", text, err)
	}
	if err := p.Send(message{strings.Repeat("x", MaxPacket)}); err == nil {
		t.Error("a packet beyond the limit is sent")
	}
}

func TestAHelperHasNothingOfItsParents(t *testing.T) {
	t.Setenv("SECRET", "of the parent")
	keep, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // without O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(keep)
	p, _ := start(t, "echo")
	if _, err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	if env, err := os.ReadFile(proc + "environ"); err != nil || strings.Contains(string(env), "SECRET") {
		t.Errorf("environment %q, %v", env, err)
	}
	null := 0
	fds, err := os.ReadDir(proc + "fd")
	for _, fd := range fds {
		if to, _ := os.Readlink(proc + "fd/" + fd.Name()); to == "/dev/null" {
			null++
		}
	}
	if err != nil || null > 2 {
		t.Errorf("/dev/null is open %d times, want standard input and output: %v", null, err)
	}
	if to, err := os.Readlink(proc + "cwd"); to != "/" {
		t.Errorf("its directory is %s, %v", to, err)
	}
	var sid int
	if sid, err = unix.Getsid(p.cmd.Process.Pid); sid != p.cmd.Process.Pid {
		t.Errorf("it is of session %d, %v", sid, err)
	}
}

func TestAHelperThatRefusesSaysWhy(t *testing.T) {
	p, _ := start(t, "refuse")
	if _, err := p.Ready(); err == nil || err.Error() != "for a reason" {
		t.Errorf("got %v", err)
	}
}

func TestAHelpersLastWordsAreLogged(t *testing.T) {
	p, said := start(t, "crash")
	if _, err := p.Ready(); err == nil || !strings.Contains(err.Error(), "did not start") {
		t.Errorf("got %v", err)
	}
	if s := said(); !strings.Contains(s, "helper crash: panic: of the helper") || strings.Count(s, "\n") >= maxWords {
		t.Errorf("logged %q", s)
	}
}

func TestAProgramThatStartsItselfInsteadOfAHelperStops(t *testing.T) {
	t.Setenv(helperVar, "echo")
	if _, err := Start("echo", Options{}, nil); err == nil || !strings.Contains(err.Error(), "GuestMain") {
		t.Errorf("got %v", err)
	}
}

func TestHelpersEndWithTheirParent(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), parentVar+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for s := bufio.NewScanner(out); len(pids) < 2 && s.Scan(); {
		pid, err := strconv.Atoi(s.Text())
		if err != nil {
			t.Fatalf("the parent says %q", s.Text())
		}
		pids = append(pids, pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range pids {
		end := time.Now().Add(10 * time.Second)
		for alive(pid) {
			if time.Now().After(end) {
				unix.Kill(pid, unix.SIGKILL)
				t.Fatalf("helper %d of %v lives on", pid, pids)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// alive tells whether a process runs; one that nobody waits for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
