package agent

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCommandsAreFoundAsAShellInTheWorkingDirectoryDoes(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"prog": 0o755, "data": 0o644, "bin/tool": 0o755} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, path string
		status     int
	}{
		{"./prog", "prog", 0}, {"bin/tool", "bin/tool", 0}, {dir + "/prog", "prog", 0},
		{"tool", "bin/tool", 0}, // PATH may be relative too
		{"./data", "", 126}, {"./bin", "", 126}, {"./none", "", 127}, {"none", "", 127}, {"", "", 127},
	} {
		got, status, err := lookPath(c.name, dir, []string{"PATH=/nonexistent:bin"})
		if status != c.status || (err == nil) != (c.status == 0) {
			t.Errorf("%q: status %d, %v, want %d", c.name, status, err, c.status)
		}
		if want := filepath.Join(dir, c.path); c.status == 0 && filepath.Clean(got) != want {
			t.Errorf("%q is %s, want %s", c.name, got, want)
		}
	}
}
