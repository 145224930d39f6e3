package initramfs

import (
	"bytes"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/agent"
)

func TestModuleListIsWhereTheAgentLooks(t *testing.T) {
	if ModuleList != agent.ModuleList {
		t.Errorf("%s, the agent reads %s", ModuleList, agent.ModuleList)
	}
}

// cpio runs cpio(1) over an archive.
func cpio(t *testing.T, archive []byte, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("cpio"); err != nil {
		if os.Getenv("VITRINE_TEST_FULL") == "1" {
			t.Fatal("cpio is not installed")
		}
		t.Skip("cpio is not installed")
	}
	c := exec.Command("cpio", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	c.Stdin = bytes.NewReader(archive)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestCpioReadsWhatPackWrites(t *testing.T) {
	a, err := Pack([]byte("#!/bin/sh\n"), []Module{{"virtio", []byte("one")}, {"virtio_pci", []byte("other")}},
		File{Path: "/etc/a/link", Mode: fs.ModeSymlink | 0o777, Data: []byte("../there")},
		File{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777})
	if err != nil {
		t.Fatal(err)
	}
	if len(a)%512 != 0 {
		t.Errorf("%d bytes, not a multiple of 512", len(a))
	}
	var got []string
	for line := range strings.Lines(cpio(t, a, "", "-itv", "--quiet")) {
		f := strings.Fields(line)
		got = append(got, f[0]+" "+strings.Join(f[4:], " "))
	}
	want := []string{
		"drwxr-xr-x 0 Jan 1 1970 dev",
		"crw------- 5, 1 Jan 1 1970 dev/console",
		"crw-rw-rw- 1, 3 Jan 1 1970 dev/null",
		"-rwxr-xr-x 10 Jan 1 1970 init",
		"drwxr-xr-x 0 Jan 1 1970 vitrine",
		"-rw-r--r-- 3 Jan 1 1970 vitrine/virtio.ko",
		"-rw-r--r-- 5 Jan 1 1970 vitrine/virtio_pci.ko",
		"-rw-r--r-- 42 Jan 1 1970 vitrine/modules",
		"drwxr-xr-x 0 Jan 1 1970 etc",
		"drwxr-xr-x 0 Jan 1 1970 etc/a",
		"lrwxrwxrwx 8 Jan 1 1970 etc/a/link -> ../there",
		"drwxrwxrwt 0 Jan 1 1970 tmp",
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("cpio lists\n%s\nwant\n%s", g, w)
	}
	dir := t.TempDir()
	cpio(t, a, dir, "-id", "--quiet", "--no-preserve-owner", "init", "vitrine/*")
	for name, want := range map[string]string{"init": "#!/bin/sh\n", "vitrine/modules": "/vitrine/virtio.ko\n/vitrine/virtio_pci.ko\n"} {
		if p, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(p) != want {
			t.Errorf("%s: %q, %v; want %q", name, p, err, want)
		}
	}
}

func TestPackIsDeterministic(t *testing.T) {
	pack := func() []byte {
		a, err := Pack([]byte("i"), []Module{{"m", []byte("d")}}, File{Path: "x/y/z", Mode: 0o600})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if !bytes.Equal(pack(), pack()) {
		t.Error("two archives of the same files differ")
	}
}

func TestBadEntriesAreRefused(t *testing.T) {
	for _, f := range []File{{Path: "/"}, {Path: ""}, {Path: "TRAILER!!!"}, {Path: "a\x00b"}, {Path: "p", Mode: fs.ModeNamedPipe}} {
		if err := NewWriter(&bytes.Buffer{}).Add(f); err == nil {
			t.Errorf("%+v: no error", f)
		}
	}
}

func TestStrippedProgramRuns(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main() { println(\"it runs\") }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "exe")
	build := exec.Command("go", "build", "-o", exe, src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	whole, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	small, err := StripELF(whole)
	if err != nil {
		t.Fatal(err)
	}
	if len(small)*10 > len(whole)*8 {
		t.Errorf("%d bytes of %d stay", len(small), len(whole))
	}
	f, err := elf.NewFile(bytes.NewReader(small))
	if err != nil || len(f.Sections) != 0 {
		t.Errorf("debug/elf: %v, %d sections", err, len(f.Sections))
	}
	if err := os.WriteFile(exe+"2", small, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(exe + "2").CombinedOutput()
	if err != nil || string(out) != "it runs\n" {
		t.Errorf("it prints %q, %v", out, err)
	}
}

func FuzzStripELF(f *testing.F) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(exe[:4096])
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if out, err := StripELF(p); err == nil && len(out) > len(p) {
			t.Errorf("%d bytes of %d", len(out), len(p))
		}
	})
}
