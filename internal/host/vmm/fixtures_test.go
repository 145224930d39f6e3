package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// unpack makes a /proc of an archive: see testdata/record.sh.
func unpack(t *testing.T, path string) Proc {
	t.Helper()
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// Who looks may see all that the host's kernel shows.
	a.Files = append(a.Files, txtar.File{Name: "self/status", Data: []byte("CapEff:\tffffffffffffffff\n")})
	for _, f := range a.Files {
		to := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		link, isLink := strings.CutPrefix(string(f.Data), "-> ")
		switch {
		case isLink:
			err = os.Symlink(strings.TrimSpace(link), to)
		case filepath.Base(f.Name) == "cmdline":
			err = os.WriteFile(to, []byte(strings.ReplaceAll(string(f.Data), "\n", "\x00")), 0o644)
		default:
			err = os.WriteFile(to, f.Data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Proc(dir)
}

// show is what the tests compare of a guest.
func show(proc Proc, g *Guest) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %s %s, %d CPUs, %d MiB, user %d", g.Name, g.VMM, g.Accelerator, g.CPUs, g.MemoryBytes>>20, g.UID)
	for _, more := range []struct{ name, value string }{{"container", g.Container}, {"by", g.Manager}, {"protected by", g.Protected}, {"not seen:", g.Unseen}} {
		if more.value != "" {
			fmt.Fprintf(&s, ", %s %s", more.name, more.value)
		}
	}
	for _, c := range g.VCPUs {
		fmt.Fprintf(&s, ", CPU %d is thread %d", c.Index, c.TID)
		if c.FD >= 0 {
			fmt.Fprintf(&s, " and descriptor %d", c.FD)
		}
	}
	if ram, err := g.RAM(proc); err == nil {
		for _, r := range ram {
			fmt.Fprintf(&s, ", %d MiB at %#x", r.Size()>>20, r.Start)
		}
	}
	return s.String()
}

func TestVMMsAreRecognised(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d archives, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			proc := unpack(t, path)
			all, err := Scan(proc, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range all {
				got = append(got, show(proc, &all[i]))
			}
			want, err := os.ReadFile(filepath.Join(string(proc), "want"))
			if err != nil {
				t.Fatal(err)
			}
			if g, w := strings.Join(got, "\n"), strings.TrimSpace(string(want)); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}
