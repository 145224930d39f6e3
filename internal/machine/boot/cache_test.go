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

// loadFile loads the tiny kernel from a file, with a cache.
func loadFile(t *testing.T, path, dir string) {
	t.Helper()
	k, err := Open("kernel", path)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	ram := newRAM(t, 64<<20)
	_, f, err := Load(ram, Config{Kernel: k, CacheDir: dir, Random: first, Log: func(l string) { t.Error(l) }})
	if err != nil || ram.Load64(f.Physical+8) != kernelMap+0x1000008 {
		t.Fatalf("%v, %+v", err, f)
	}
}

func TestAFileThatIsKnownIsNotReadAgain(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "kernel")
	write := func(p []byte) {
		t.Helper()
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(tinyBzImage())
	loadFile(t, path, dir)
	notes, _ := filepath.Glob(filepath.Join(dir, knownPrefix+"*"))
	made, _ := filepath.Glob(filepath.Join(dir, cachePrefix+"*"))
	if len(notes) != 1 || len(made) != 1 {
		t.Fatalf("notes %v about %v", notes, made)
	}
	k, err := Open("kernel", path)
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	id := k.id
	u := openKnown(knownPath(dir, id), dir, 1<<30)
	if u == nil {
		t.Fatal("it is not known")
	}
	u.Close()
	for what, change := range map[string]func(){
		"another boot": func() {
			text, _ := os.ReadFile(notes[0])
			os.WriteFile(notes[0], append(text[:len(text)-3], "zz\n"...), 0o600)
		},
		"a cache's file that was written to": func() {
			p, _ := os.ReadFile(made[0])
			os.WriteFile(made[0], p, 0o600)
		},
		"a cache's file that is gone": func() { os.Remove(made[0]) },
		"a note about another file":   func() { os.WriteFile(notes[0], []byte(cachePrefix+"/../../x 1 2 3\n"), 0o600) },
		"an empty note":               func() { os.WriteFile(notes[0], nil, 0o600) },
	} {
		change()
		if u := openKnown(knownPath(dir, id), dir, 1<<30); u != nil {
			t.Errorf("%s: it is known still", what)
			u.Close()
		}
		loadFile(t, path, dir) // goes on, and notes it anew
		if u := openKnown(knownPath(dir, id), dir, 1<<30); u == nil {
			t.Errorf("%s: it was not noted anew", what)
		} else {
			u.Close()
		}
	}
	write(tinyBzImage())
	if k, err = Open("kernel", path); err != nil {
		t.Fatal(err)
	}
	k.Close()
	if k.id == id {
		t.Error("a file that was written to has the same identity")
	}
}
