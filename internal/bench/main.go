// Bench measures Vitrine beside QEMU: the same kernel and initramfs, runs interleaved, CPU time rather than wall time.
// It prints one table a measurement, medians with the smallest and largest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/kernel"
)

// bench is what the measurements share.
type bench struct {
	ctx     context.Context
	dir     string // scratch
	vitrine string // the program, built now
	qemu    string
	kernel  *kernel.Kernel
	runs    int
	rows    string // of cpu: comma-separated parts of "class name", or all
}

// A measurement is one of those that can be asked for by name.
type measurement struct {
	name, about string
	run         func(*bench) error
}

// measurements are in the order in which all of them run.
var measurements = []measurement{
	{"boot", "CPU seconds from start to the guest's first user instruction, and resident memory then", (*bench).boot},
	{"cpu", "rows of work beside native and each QEMU: integer, FP, SIMD, memory, kernel, code, programs", (*bench).cpu},
	{"mips", "instructions a microsecond of CPU time on integer loops, interpreter", (*bench).mips},
	{"fs", "file-system throughput from the host's page cache, beside QEMU and virtiofsd", (*bench).files},
	{"kvm", "start, memory and cost of exits beside QEMU's machines under a real KVM, in a Linux that QEMU emulates (long)", (*bench).kvm},
	{"net", "network throughput and connections, beside QEMU and its slirp", (*bench).network},
	{"see", "CPU time to look into a guest from outside", (*bench).see},
}

func main() {
	runs := flag.Int("runs", 5, "runs of each side")
	rows := flag.String("rows", "", "of cpu: only rows whose \"class name\" contains one of these, comma-separated")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: ./dev bench [-runs N] [-rows ROWS] [MEASUREMENT…]")
		for _, m := range measurements {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-8s %s\n", m.name, m.about)
		}
	}
	flag.Parse()
	if n, err := strconv.Atoi(flag.Arg(1)); err == nil && flag.Arg(0) == insideWord {
		if err := insideKVM(context.Background(), n); err != nil {
			fmt.Println("bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*runs, *rows, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(runs int, rows string, names []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dir, err := os.MkdirTemp("", "vitrine-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{ctx: ctx, dir: dir, vitrine: filepath.Join(dir, "vitrine"), runs: max(1, runs), rows: rows}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", b.vitrine, "./cmd/vitrine").CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w: %s", err, out)
	}
	if b.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return errors.New("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
	}
	if b.kernel, err = kernel.Find(ctx, kernel.Options{}); err != nil {
		return err
	}
	for _, n := range names {
		if !slices.ContainsFunc(measurements, func(m measurement) bool { return m.name == n }) {
			return fmt.Errorf("no measurement %q", n)
		}
	}
	for _, m := range measurements {
		if len(names) > 0 && !slices.Contains(names, m.name) {
			continue
		}
		fmt.Printf("## %s: %s\n\n", m.name, m.about)
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Println()
	}
	return nil
}

// A series is the values of one side of a comparison.
type series struct {
	name   string
	unit   string
	values []float64
}

func (s *series) add(v float64) { s.values = append(s.values, v) }

func (s *series) median() float64 {
	v := slices.Sorted(slices.Values(s.values))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// table prints series below each other, and the first's ratio to each of the others.
func table(all ...*series) {
	fmt.Println("| | median | min | max | of the first |")
	fmt.Println("|---|---|---|---|---|")
	for _, s := range all {
		ratio := ""
		if s != all[0] && s.unit == all[0].unit && all[0].median() > 0 {
			ratio = fmt.Sprintf("%.2f", s.median()/all[0].median())
		}
		fmt.Printf("| %s | %.3g %s | %.3g | %.3g | %s |\n", s.name, s.median(), s.unit, slices.Min(s.values), slices.Max(s.values), ratio)
	}
}

// version is the first line a program says of itself.
func version(program string) string {
	out, _ := exec.Command(program, "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
