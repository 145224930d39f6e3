package registry

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/confine/confinetest"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/host"
)

func TestMain(m *testing.M) {
	helper.Run(map[string]helper.Main{Kind: Main})
	confinetest.Child(map[string]confinetest.Rights{Kind: func(dir string) confine.Rights { return rights(dir + "/in") }})
	os.Exit(m.Run())
}

func TestTheHelperWritesOnlyInTheGuestsDirectory(t *testing.T) {
	confinetest.Check(t, Kind, "write inside", "make inside")
}

func TestAGuestsDirectoryIsKeptByTheHelper(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	g, err := host.Register(host.State{Name: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Start(helper.Options{Guest: "kept", Log: func(s string) { t.Log(s) }}, g.Dir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Ready(); err != nil {
		t.Fatal(err)
	}
	g.Delegate(f)
	l, err := g.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := g.Update(func(s *host.State) { s.State = "running" }); err != nil {
		t.Error(err)
	}
	if e, err := host.Find("kept"); err != nil || e.State.State != "running" {
		t.Errorf("got %+v, %v", e, err)
	}
	if err := f.RemoveSocket(); err != nil {
		t.Error(err)
	}
	if err := f.RemoveSocket(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("removing what is not there: %v", err)
	}
	g.Close()
	if left, _ := filepath.Glob(filepath.Join(host.Dir(), "[^.]*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	f.Close()
	if err := f.WriteState(nil); err == nil {
		t.Error("a helper that has ended writes")
	}
}
