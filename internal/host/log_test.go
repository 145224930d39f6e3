package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// registered makes a guest in a run-time directory of the test's own.
func registered(t *testing.T, name string) *Guest {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	g, err := Register(State{Name: name, State: "running"})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestALogKeepsItsEndAndTakesLittleRoom(t *testing.T) {
	g := registered(t, "talker")
	defer g.Close()
	l, err := g.OpenLog(ConsoleLog)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, err := Find("talker")
	if err != nil {
		t.Fatal(err)
	}
	early, err := e.OpenLog(ConsoleLog)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	line := strings.Repeat("x", 99) + "\n"
	for range 10 * logRoom / len(line) {
		l.Write([]byte(line))
	}
	fmt.Fprint(l, "the end")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(e.Dir(), ConsoleLog), &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > logRoom+64<<10 {
		t.Errorf("the log takes %d bytes, want up to %d", st.Blocks*512, logRoom)
	}
	late, err := e.OpenLog(ConsoleLog)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	for name, r := range map[string]*LogReader{"an early reader": early, "a late reader": late} {
		got, err := io.ReadAll(r)
		if err != nil || len(got) < logKept || len(got) > logRoom+64<<10 || !bytes.HasSuffix(got, []byte("\nthe end")) {
			t.Errorf("%s got %d bytes, %v, ending in %q", name, len(got), err, got[max(0, len(got)-10):])
		}
	}
	fmt.Fprint(l, " is not the end")
	if got, err := io.ReadAll(late); err != nil || string(got) != " is not the end" {
		t.Errorf("later: %q, %v", got, err)
	}
}

func TestAGuestThatIsKeptIsListedAsEndedUntilItIsRemoved(t *testing.T) {
	g := registered(t, "old")
	if err := g.Finish(42, "a reason"); err != nil {
		t.Fatal(err)
	}
	if _, err := Find("old"); err == nil {
		t.Error("an ended guest is found among the running")
	}
	other, err := Register(State{Name: "other"}) // sweeps
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	e, err := FindAny("old")
	if err != nil {
		t.Fatal(err)
	}
	if e.State.State != Ended || e.ExitStatus == nil || *e.ExitStatus != 42 || e.Error != "a reason" || e.Finished == nil {
		t.Errorf("got %+v", e.State)
	}
	if _, err := Register(State{Name: "old"}); err == nil || !strings.Contains(err.Error(), "vitrine rm old") {
		t.Errorf("the name was given again: %v", err)
	}
	live, err := FindAny("other")
	if err != nil {
		t.Fatal(err)
	}
	if err := live.Remove(); err == nil {
		t.Error("a running guest was removed")
	}
	if err := e.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(e.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}
