package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vitrine.dev/vitrine"
)

func TestRunFlagsBecomeAConfig(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TERM", "vt100")
	t.Setenv("SECRET", "kept")
	t.Setenv("GIVEN", "on")
	f := runFlags{
		name: "n", cpus: 3, memory: "512M", accel: "soft", kernel: "k", appendLine: "quiet", root: "host", confine: "on", dir: dir,
		disks: []string{"a.img", "b.img:ro"}, volumes: []string{dir + ":rw"}, env: []string{"A=b=c", "GIVEN", "ABSENT_VARIABLE"},
	}
	if err := f.parse([]string{"cmd", "-x"}); err != nil {
		t.Fatal(err)
	}
	c := f.config
	if c.Name != "n" || c.CPUs != 3 || c.Memory != 512<<20 || c.Accel != "soft" || !c.Confine || c.KernelPath != "k" || c.Append != "quiet" || c.Dir != dir {
		t.Errorf("got %+v", c)
	}
	if want := []vitrine.Disk{{Path: "a.img"}, {Path: "b.img", ReadOnly: true}}; !slices.Equal(c.Disks, want) {
		t.Errorf("disks: got %+v, want %+v", c.Disks, want)
	}
	if want := []vitrine.Volume{{Path: dir, Writable: true}}; !slices.Equal(c.Volumes, want) {
		t.Errorf("volumes: got %+v, want %+v", c.Volumes, want)
	}
	if want := []string{"cmd", "-x"}; !slices.Equal(c.Command, want) {
		t.Errorf("command: got %q, want %q", c.Command, want)
	}
	env := strings.Join(c.Env, "\n")
	for _, want := range []string{"TERM=vt100", "A=b=c", "GIVEN=on"} {
		if !slices.Contains(c.Env, want) {
			t.Errorf("environment %q lacks %s", env, want)
		}
	}
	for _, not := range []string{"SECRET", "ABSENT"} {
		if strings.Contains(env, not) {
			t.Errorf("environment %q has %s", env, not)
		}
	}
}

func TestBadCommandLinesSayWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"is no verb":       {"fly"},
		"follows after --": {"run", "uname"},
		"unknown flag":     {"run", "--fly"},
		"is not a size":    {"run", "--memory", "much"},
		"not a directory":  {"run", "--workdir", file},
		"which guest":      {"stop"},
		"no such guest":    {"stop", "no-such-guest-anywhere"},
		"unknown command":  {"ls", "x"},
		`--accel "xen"`:    {"run", "-q", "--accel", "xen", "--", "true"},
		"--cpus 0":         {"run", "-q", "--cpus", "0", "--", "true"},
		"--memory 0":       {"run", "-q", "--memory", "0", "--", "true"},
		"--cpus 1000":      {"run", "-q", "--cpus", "1000", "--", "true"},
		"no such file":     {"run", "-q", "--kernel", "/no/such/kernel", "--", "true"},
		"is a directory":   {"run", "-q", "--kernel", "/", "--", "true"},
		"a command runs":   {"run", "-q", "--kernel", file, "--initrd", file, "--", "true"},
	} {
		root := newRoot()
		root.SetArgs(args)
		err := root.Execute()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one line with %q", args, err, want)
		}
	}
}
