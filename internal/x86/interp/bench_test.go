package interp

import (
	_ "embed"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86"
)

// benchCode is testdata/bench.c, compiled.
//
//go:embed testdata/bench.bin
var benchCode []byte

var benchPrograms = []struct {
	name    string
	n, want uint64 // argument and result
}{
	{"alu", 1_000_000, 0x6a2ca65edb377d6a},
	{"fib", 24, 46368},
	{"crc", 8, 0x8a99f553},
	{"quicksort", 2, 0x3e74ff9a},
	{"hash", 500_000, 0x3afa876460b32},
}

// cpuTime is how long this process has computed: wall time means little on a loaded machine.
func cpuTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMIPS runs compiled integer loops; instructions a microsecond of CPU time is what it is about.
func BenchmarkMIPS(b *testing.B) {
	for i, p := range benchPrograms {
		b.Run(p.name, func(b *testing.B) {
			c := flat(b, benchCode)
			before := c.stats.insns
			b.ResetTimer()
			start := cpuTime(b)
			for range b.N {
				c.gpr[x86.RDI], c.gpr[x86.RSI] = uint64(i), p.n
				c.gpr[x86.RSP], c.rip, c.halted = flatStack, flatCode, false
				c.poll.And(^uint32(pollHalt))
				untilHalt(b, c)
			}
			b.ReportMetric(float64(c.stats.insns-before)/float64((cpuTime(b)-start).Microseconds()), "MIPS")
		})
	}
}

func TestCompiledProgramsComputeWhatTheHostComputes(t *testing.T) {
	for i, p := range benchPrograms {
		c := flat(t, benchCode)
		c.gpr[x86.RDI], c.gpr[x86.RSI] = uint64(i), p.n
		untilHalt(t, c)
		if got := c.gpr[x86.RAX]; got != p.want {
			t.Errorf("%s(%d) = %#x, want %#x", p.name, p.n, got, p.want)
		}
	}
}
