package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
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
