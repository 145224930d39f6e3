package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// loadCached loads the tiny kernel with a cache, and gives what was logged.
func loadCached(t *testing.T, dir string) (log []string) {
	t.Helper()
	ram := newRAM(t, 64<<20)
	_, f, err := Load(ram, Config{Kernel: image(tinyBzImage()), CacheDir: dir, Random: first, Log: func(l string) { log = append(log, l) }})
	if err != nil || ram.Load64(f.Physical+8) != kernelMap+0x1000008 {
		t.Fatalf("%v, %+v", err, f)
	}
	return log
}

func TestDecompressedKernelIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "cache")
	loadCached(t, dir)
	all, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(all) != 1 || strings.HasSuffix(all[0], ".tmp") {
		t.Fatalf("in the cache: %v", all)
	}
	good, err := os.ReadFile(all[0])
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{"flipped": patched(good, 200, 0x55), "truncated": good[:100], "empty": nil} {
		if err := os.WriteFile(all[0], bad, 0o600); err != nil {
			t.Fatal(err)
		}
		loadCached(t, dir)
		if p, err := os.ReadFile(all[0]); err != nil || string(p) != string(good) {
			t.Errorf("%s: not made again (%v)", what, err)
		}
	}
}

func TestCacheThatCannotBeWrittenIsDoneWithout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if log := loadCached(t, file); len(log) != 1 || !strings.Contains(log[0], "going on without") {
		t.Errorf("log %q", log)
	}
	// /dev/full is a disk without room: the temporary file's name leads to it.
	dir := t.TempDir()
	probe := t.TempDir()
	loadCached(t, probe)
	made, _ := filepath.Glob(filepath.Join(probe, "*"))
	if err := os.Symlink("/dev/full", filepath.Join(dir, filepath.Base(made[0])+".tmp")); err != nil {
		t.Fatal(err)
	}
	if log := loadCached(t, dir); len(log) != 1 || !strings.Contains(log[0], "going on without") {
		t.Errorf("log %q", log)
	}
}

func TestCacheKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	for _, name := range "abcdefghij" {
		if err := os.WriteFile(filepath.Join(dir, cachePrefix+string(name)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loadCached(t, dir)
	if all, _ := filepath.Glob(filepath.Join(dir, "*")); len(all) != cacheKeep {
		t.Errorf("%d files, want %d", len(all), cacheKeep)
	}
}
