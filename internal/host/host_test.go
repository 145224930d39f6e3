package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/host/vmm"
)

// private gives the test a run-time directory of its own.
func private(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return filepath.Join(dir, "vitrine")
}

func names(t *testing.T) string {
	t.Helper()
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range all {
		if strings.HasPrefix(e.dir, Dir()+"/") { // root sees other users' guests too
			s = append(s, e.Name)
		}
	}
	return strings.Join(s, " ")
}

func register(t *testing.T, name string) *Guest {
	t.Helper()
	g, err := Register(State{Name: name, PID: os.Getpid(), CPUs: 2, Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func TestAGuestIsListedFromRegisterToClose(t *testing.T) {
	dir := private(t)
	if got := names(t); got != "" {
		t.Fatalf("listed %q in an empty directory", got)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("List created %s", dir)
	}
	b, a := register(t, "b"), register(t, "a")
	if got := names(t); got != "a b" {
		t.Errorf("got %q, want a b", got)
	}
	if err := b.Update(func(s *State) { s.State = "running" }); err != nil {
		t.Error(err)
	}
	if e, err := Find("b"); err != nil || e.State.State != "running" || e.CPUs != 2 {
		t.Errorf("got %+v, %v", e, err)
	}
	a.Close()
	b.Close()
	if got := names(t); got != "" {
		t.Errorf("got %q after Close", got)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 || left[0].Name() != makingFile {
		t.Errorf("left behind: %v", left)
	}
}

func TestADeadGuestIsPassedOverThenRemoved(t *testing.T) {
	dir := private(t)
	g := register(t, "dead")
	g.lock.Close() // as the kernel does when the process dies
	if got := names(t); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "dead", stateFile)); err != nil {
		t.Errorf("List removed a file: %v", err)
	}
	register(t, "next")
	if _, err := os.Stat(filepath.Join(dir, "dead")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead guest's directory: %v", err)
	}
	register(t, "dead") // its name is free again
}

func TestATakenNameIsRefused(t *testing.T) {
	private(t)
	register(t, "one")
	if _, err := Register(State{Name: "one"}); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v", err)
	}
}

func TestNamesAreChecked(t *testing.T) {
	private(t)
	for name, ok := range map[string]bool{
		"a": true, "0": true, "a-b_c.d9": true, strings.Repeat("x", 63): true,
		"-a": false, ".a": false, "_a": false, "A": false, "a/b": false, "..": false, "é": false, "a b": false, "a\n": false,
		strings.Repeat("x", 64): false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", name, err, ok)
		}
	}
	if _, err := Register(State{Name: "../x"}); err == nil {
		t.Error("../x was accepted")
	}
	for range 1000 {
		if err := CheckName(madeUp()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABeginningOfANameIsEnoughWhereUnambiguous(t *testing.T) {
	all := []Entry{{State: State{Name: "amber-fox"}}, {State: State{Name: "amber-owl"}}, {State: State{Name: "am"}}, {State: State{Name: "blue"}}}
	for name, want := range map[string]string{"b": "blue", "amber-f": "amber-fox", "am": "am", "blue": "blue"} {
		if e, err := find(all, name); err != nil || e.Name != want {
			t.Errorf("%q: got %v, %v; want %s", name, e, err, want)
		}
	}
	for name, want := range map[string]string{"amber": "is it amber-fox, amber-owl?", "x": "no such guest", "": "no such guest"} {
		if _, err := find(all, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
}

func TestGuestsThatStartAtOnceAllGetNames(t *testing.T) {
	private(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			g, err := Register(State{})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { g.Close() })
		})
	}
	wg.Wait()
	if got := len(strings.Fields(names(t))); got != 50 {
		t.Errorf("%d guests listed, want 50", got)
	}
}

func TestADirectoryOpenToOthersIsRefused(t *testing.T) {
	dir := private(t)
	os.Mkdir(dir, 0o700)
	os.Chmod(dir, 0o755)
	if _, err := Register(State{}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("mode 755: %v", err)
	}
	os.Remove(dir)
	os.Symlink(t.TempDir(), dir)
	if _, err := Register(State{}); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a symbolic link: %v", err)
	}
}

func TestASocketAnswersUnderALongPath(t *testing.T) {
	dir := t.TempDir() + "/" + strings.Repeat("d", 100)
	os.Mkdir(dir, 0o700)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	g := register(t, "long")
	l, err := g.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fi, err := os.Stat(filepath.Join(g.dir, socketFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	e, err := Find("long")
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.Dial()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestGuestsAreFoundByNameThenProcessThenBeginning(t *testing.T) {
	all := []Entry{
		{State: State{Name: "web", PID: 10}}, {State: State{Name: "web-2", PID: 11}}, {State: State{Name: "12", PID: 13}}, {State: State{Name: "db", PID: 12}},
		{State: State{Name: "twin", PID: 14}}, {State: State{Name: "twin", PID: 15}}, {State: State{Name: "old", PID: 16, State: Ended}},
	}
	for name, want := range map[string]int{"web": 10, "web-": 11, "11": 11, "12": 13, "13": 13, "d": 12, "14": 14} {
		if e, err := find(all, name); err != nil || e.PID != want {
			t.Errorf("%q: got %+v, %v; want process %d", name, e, err, want)
		}
	}
	for name, want := range map[string]string{"twin": "is it 14, 15? Several have the name", "we": "is it web, web-2?", "99": "no such guest", "16": "no such guest", "0": "no such guest"} {
		if _, err := find(all, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", name, err, want)
		}
	}
}

func TestOursAreNotListedAsOthers(t *testing.T) {
	private(t)
	register(t, "mine") // this process, which is no VMM, and would be ours if it were
	others, err := Others()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range others {
		if e.PID == os.Getpid() {
			t.Errorf("this process is listed: %+v", e.State)
		}
		if e.Foreign() == nil || e.Name == "" || e.VMM == "" {
			t.Errorf("an incomplete entry: %+v", e.State)
		}
	}
}

func TestWhatOnlyOursDoIsRefused(t *testing.T) {
	e := other(&vmm.Guest{PID: os.Getpid(), Name: "theirs", VMM: "qemu", UID: -1, Stopped: true, Protected: "SEV"})
	if e.State.State != "stopped" || !strings.Contains(e.Unseen, "SEV") {
		t.Errorf("got %+v", e.State)
	}
	for what, do := range map[string]func() error{
		"Dial": func() error { _, err := e.Dial(); return err }, "Remove": e.Remove, "WaitGone": e.WaitGone,
		"OpenLog": func() error { _, err := e.OpenLog(ConsoleLog); return err },
	} {
		if err := do(); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
