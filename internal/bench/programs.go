package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// mips runs the interpreter's own benchmark and prints what it says.
func (b *bench) mips() error {
	cmd := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "MIPS", "-count", strconv.Itoa(b.runs), "./internal/x86/interp")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	by := map[string]*series{}
	var order []*series
	for _, m := range regexp.MustCompile(`(?m)^BenchmarkMIPS/?(\S*?)(?:-\d+)?\s.*?([\d.]+) MIPS`).FindAllStringSubmatch(string(out), -1) {
		s := by[m[1]]
		if s == nil {
			s = &series{name: m[1], unit: "MIPS"}
			by[m[1]], order = s, append(order, s)
		}
		v, _ := strconv.ParseFloat(m[2], 64)
		s.add(v)
	}
	if len(order) == 0 {
		return fmt.Errorf("the benchmark printed no MIPS: %s", out)
	}
	table(order...)
	return nil
}

// fs reads a large file and walks many small ones through virtio-fs, timed by the guest's clock.
func (b *bench) fs() error {
	work := filepath.Join(b.dir, "files")
	if err := os.MkdirAll(filepath.Join(work, "small"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "large"), bytes.Repeat([]byte("0123456789abcdef"), 16<<20), 0o644); err != nil {
		return err
	}
	for i := range 2000 {
		if err := os.WriteFile(filepath.Join(work, "small", strconv.Itoa(i)), []byte("x"), 0o644); err != nil {
			return err
		}
	}
	const script = `t() { read -r up rest </proc/uptime; echo "$up"; }
a=$(t); dd if=large of=/dev/null bs=1M 2>/dev/null; b=$(t); find small -type f -newer large >/dev/null; c=$(t); cat small/* >/dev/null; d=$(t)
echo "$a $b $c $d"`
	large := &series{name: "256 MiB file, sequential", unit: "MiB/s"}
	find := &series{name: "find over 2,000 files with stat", unit: "files/s"}
	read := &series{name: "open and read of 2,000 small files", unit: "files/s"}
	for range b.runs {
		cmd := exec.CommandContext(b.ctx, b.vitrine, "run", "-q", "--cpus", "2", "--", "sh", "-c", script)
		cmd.Dir = work
		out, err := cmd.Output()
		if err != nil {
			return err
		}
		f := strings.Fields(string(out))
		if len(f) != 4 {
			return fmt.Errorf("the guest printed %q", out)
		}
		var t [4]float64
		for i := range t {
			t[i], _ = strconv.ParseFloat(f[i], 64)
		}
		large.add(256 / max(0.01, t[1]-t[0]))
		find.add(2000 / max(0.01, t[2]-t[1]))
		read.add(2000 / max(0.01, t[3]-t[2]))
	}
	table(large, find, read)
	return nil
}
