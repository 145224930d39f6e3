package vitrine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTooMuchMemoryIsOneClearLine(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Memory: 1 << 40}, "--memory 1T: "},
		{Config{Memory: 1 << 40, HugePages: true}, "sudo sysctl vm.nr_hugepages="},
	} {
		ram, err := newMemory(&c.cfg)
		if err == nil {
			ram.Close()
			t.Fatal("this host has a TiB")
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q in one line", err, c.want)
		}
	}
}

func TestLimitIsTheLeastOfHostAndGroups(t *testing.T) {
	if n := parseMeminfo("MemTotal:       1024 kB\nMemFree:  9 kB\nSwapTotal:  1 kB\n"); n != 1025<<10 {
		t.Errorf("the host has %d", n)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	self := filepath.Join(dir, "self")
	write("self", "4:memory:/other\n0::/a/b\n")
	if _, ok := groupLimit(self, dir); ok {
		t.Error("a limit where there is none")
	}
	write("a/b/memory.max", "max\n")
	write("a/memory.max", "1048576\n")
	if n, ok := groupLimit(self, dir); !ok || n != 1<<20 {
		t.Errorf("limit %d, %v, want that of the group above", n, ok)
	}
	write("a/b/memory.max", "4096\n")
	if n, ok := groupLimit(self, dir); !ok || n != 4096 {
		t.Errorf("limit %d, %v, want the smaller one", n, ok)
	}
}
