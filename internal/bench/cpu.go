package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/initramfs"
)

// cpuFiles is the initramfs of the rows, and the same programs to run natively.
type cpuFiles struct {
	initrd  string
	program string // the rows
	tools   string // its programs, at the host
	scratch string // for its files, in memory where the host has such a place
}

// cpuClasses are in the order in which they are shown, with how many times as fast as QEMU each is meant to be.
var cpuClasses = []struct {
	name, rows string
	aim        float64
}{
	{"integer", "integer", 2.5},
	{"scalar FP, x87 and SIMD", "fp simd", 10},
	{"memory", "memory", 4},
	{"kernel work", "kernel", 2},
	{"fresh, self-modifying and large code", "code", 4},
	{"real programs", "program", 3},
}

// A side is one of those that run the rows.
type side struct {
	name string
	run  func() (map[string]sample, error)
	best map[string]*series // by row, nanoseconds
}

// sample is what a side says of a row.
type sample struct {
	ns    float64
	check string
}

// cpu runs the rows natively, under Vitrine and under each QEMU there is, interleaved.
func (b *bench) cpu() error {
	f, err := b.cpuFiles()
	if err != nil {
		return err
	}
	defer os.RemoveAll(f.scratch)
	sides, err := b.cpuSides(f)
	if err != nil {
		return err
	}
	var checks = map[string]string{}
	var order []string
	var wrong []string
	fmt.Printf("Kernel %s, 1 CPU, 1 GiB, %d runs of each, interleaved. Of each row the fastest of many samples a run, then the median of the runs.\n\n", b.kernel.Release, b.runs)
	for range b.runs {
		for i, s := range sides {
			rows, err := s.run()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			for _, row := range slices.Sorted(maps.Keys(rows)) {
				got := rows[row]
				switch {
				case i == 0 && checks[row] == "":
					checks[row] = got.check
				case checks[row] != got.check:
					wrong = append(wrong, fmt.Sprintf("%s: %s computed %s, this processor %s", row, s.name, got.check, checks[row]))
					continue
				}
				if s.best[row] == nil {
					s.best[row] = &series{}
				}
				s.best[row].add(got.ns)
				if !slices.Contains(order, row) {
					order = append(order, row)
				}
			}
		}
	}
	cpuTable(sides, order)
	for _, w := range slices.Compact(slices.Sorted(slices.Values(wrong))) {
		fmt.Println("WRONG:", w)
	}
	if slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, ": vitrine ") }) {
		return errors.New("a check value differs from the native one")
	}
	return nil
}

// cpuTable prints a line a row, then one a class. sides: native, Vitrine, then at least one QEMU.
func cpuTable(sides []*side, order []string) {
	fmt.Print("| row | native µs |")
	for _, s := range sides[1:] {
		fmt.Printf(" %s ×native |", s.name)
	}
	fmt.Print(" faster than the faster QEMU | scatter |\n|---|---|", strings.Repeat("---|", len(sides)+1), "\n")
	gain := map[string]float64{}
	for _, row := range order {
		native := sides[0].best[row]
		if native == nil {
			continue
		}
		fmt.Printf("| %s | %.4g |", row, native.median()/1e3)
		best := math.Inf(1)
		for i, s := range sides[1:] {
			v := s.best[row]
			if v == nil {
				fmt.Print(" – |")
				continue
			}
			fmt.Printf(" %.2f |", v.median()/native.median())
			if i > 0 {
				best = min(best, v.median())
			}
		}
		if us := sides[1].best[row]; us != nil && !math.IsInf(best, 1) {
			gain[row] = best / us.median()
			fmt.Printf(" %.2f | ±%.0f %% |", gain[row], 50*(slices.Max(us.values)-slices.Min(us.values))/us.median())
		} else {
			fmt.Print(" – | |")
		}
		fmt.Println()
	}
	fmt.Print("\n| class | rows | times as fast as the faster QEMU (geometric mean) | aim |\n|---|---|---|---|\n")
	mean := func(name, classes string, aim float64) {
		sum, n := 0.0, 0
		for row, g := range gain {
			if class, _, _ := strings.Cut(row, " "); classes == "" || slices.Contains(strings.Fields(classes), class) {
				sum += math.Log(g)
				n++
			}
		}
		if n > 0 {
			fmt.Printf("| %s | %d | %.2f | %g |\n", name, n, math.Exp(sum/float64(n)), aim)
		}
	}
	for _, c := range cpuClasses {
		mean(c.name, c.rows, c.aim)
	}
	mean("all rows", "", 4)
}

// rowLine is what the guest prints of a row.
var rowLine = regexp.MustCompile(`(?m)^row (\S+ \S+) (\d+) \d+ \d+ ([0-9a-f]{16})\s*$`)

// cpuRows reads the rows that a side printed. That it came to its end is asked for.
func cpuRows(out []byte) (map[string]sample, error) {
	if f := regexp.MustCompile(`(?m)^fail .*`).Find(out); f != nil {
		return nil, fmt.Errorf("%s", f)
	}
	rows := map[string]sample{}
	for _, m := range rowLine.FindAllSubmatch(out, -1) {
		ns, _ := strconv.ParseFloat(string(m[2]), 64)
		rows[string(m[1])] = sample{ns, string(m[3])}
	}
	if !regexp.MustCompile(`(?m)^end\s*$`).Match(out) {
		return rows, fmt.Errorf("the rows did not end; last words: %s", out[max(0, len(out)-400):])
	}
	return rows, nil
}

func (b *bench) cpuSides(f *cpuFiles) ([]*side, error) {
	words := "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"
	if b.rows != "" {
		words += " rows=" + b.rows
	}
	command := func(env []string, args ...string) func() (map[string]sample, error) {
		return func() (map[string]sample, error) {
			ctx, cancel := context.WithTimeout(b.ctx, 20*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.Env = append(os.Environ(), env...)
			var out, complaint bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &complaint
			if err := cmd.Run(); err != nil && out.Len() == 0 {
				return nil, fmt.Errorf("%w: %s", err, complaint.Bytes())
			}
			return cpuRows(out.Bytes())
		}
	}
	qemu := func(program string) []string {
		return []string{program, "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
			"-kernel", b.kernel.Path, "-initrd", f.initrd, "-append", words}
	}
	native := []string{f.program, "-C", f.scratch, "-T", f.tools}
	native = append(native, strings.FieldsFunc(b.rows, func(r rune) bool { return r == ',' })...)
	if _, err := exec.LookPath("taskset"); err == nil { // the guests have one CPU
		native = append([]string{"taskset", "-c", "0"}, native...)
	}
	sides := []*side{
		{name: "native", run: command(nil, native...)},
		{name: "vitrine", run: command(nil, b.vitrine, "run", "-q", "--accel", "soft", "--cpus", "1", "--memory", "1G", "--net", "none",
			"--kernel", b.kernel.Path, "--initrd", f.initrd, "--append", words)},
		{name: "QEMU " + shortVersion(b.qemu, nil), run: command(nil, qemu(b.qemu)...)},
	}
	if program, env, err := newerQEMU(b.ctx); err != nil {
		fmt.Println("No QEMU from bookworm-backports:", err)
	} else {
		args := append(qemu(program), "-L", filepath.Join(filepath.Dir(filepath.Dir(program)), "share/qemu"), "-L", filepath.Join(filepath.Dir(filepath.Dir(program)), "share/seabios"))
		sides = append(sides, &side{name: "QEMU " + shortVersion(program, env), run: command(env, args...)})
	}
	for _, s := range sides {
		s.best = map[string]*series{}
	}
	return sides, nil
}

// shortVersion is a QEMU's number.
func shortVersion(program string, env []string) string {
	cmd := exec.Command(program, "--version")
	cmd.Env = append(os.Environ(), env...)
	out, _ := cmd.Output()
	if m := regexp.MustCompile(`version (\d+\.\d+)`).FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return "of unknown version"
}

// cpuFiles builds the programs and packs them.
func (b *bench) cpuFiles() (*cpuFiles, error) {
	f := &cpuFiles{initrd: filepath.Join(b.dir, "rows.cpio"), program: filepath.Join(b.dir, "cpuguest"), tools: filepath.Join(b.dir, "tools")}
	if err := os.Mkdir(f.tools, 0o755); err != nil {
		return nil, err
	}
	var err error
	if f.scratch, err = os.MkdirTemp("/dev/shm", "vitrine-bench-"); err != nil {
		if f.scratch, err = os.MkdirTemp(b.dir, "scratch-"); err != nil {
			return nil, err
		}
	}
	for _, step := range []string{
		`gcc -O2 -static -w -o "$P" internal/bench/cpuguest/*.c -lm -lpthread`,
		`CGO_ENABLED=0 go build -trimpath -ldflags=-s -o "$T/gorows" ./internal/bench/gorows`,
		`gcc -E -P -O1 internal/bench/cpuguest/integer.c -o "$T/rows.i"`,
		`cp "$(gcc -print-prog-name=cc1)" "$T/cc1" && strip "$T/cc1"`,
		`cp "$(command -v busybox)" "$T/busybox"`,
	} {
		cmd := exec.CommandContext(b.ctx, "sh", "-c", step)
		cmd.Env = append(os.Environ(), "P="+f.program, "T="+f.tools)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", step, err, out)
		}
	}
	return f, b.packRows(f)
}

func (b *bench) packRows(f *cpuFiles) error {
	var out bytes.Buffer
	w := initramfs.NewWriter(&out)
	files := []initramfs.File{{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1}}
	at := map[string]string{"init": f.program}
	tools, err := os.ReadDir(f.tools)
	if err != nil {
		return err
	}
	for _, t := range tools {
		at["bench/"+t.Name()] = filepath.Join(f.tools, t.Name())
	}
	perl, err := exec.LookPath("perl")
	if err != nil {
		return err
	}
	at["usr/bin/perl"] = perl
	for _, p := range []string{perl, filepath.Join(f.tools, "cc1")} {
		if err := libraries(p, at); err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(at)) {
		data, err := os.ReadFile(at[path])
		if err != nil {
			return err
		}
		files = append(files, initramfs.File{Path: path, Mode: 0o755, Data: data})
	}
	for _, file := range files {
		if err := w.Add(file); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(f.initrd, out.Bytes(), 0o600)
}

// libraries adds what a dynamic program loads, at the paths that ldd says.
func libraries(program string, at map[string]string) error {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", program, err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		for _, word := range strings.Fields(lines.Text()) {
			if strings.HasPrefix(word, "/") {
				at[strings.TrimPrefix(word, "/")] = word
			}
		}
	}
	return nil
}
