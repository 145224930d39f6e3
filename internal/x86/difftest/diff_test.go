package difftest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

var (
	duration = flag.Duration("difftest.duration", 5*time.Second, "how long each test runs random cases")
	seed     = flag.Uint64("difftest.seed", 0, "seed of its random cases; 0: from the clock")
	length   = flag.Int("difftest.length", 24, "instructions in a case")
	save     = flag.String("difftest.save", "", "directory for the cases that differ")
	most     = flag.Int("difftest.most", 20, "mismatches after which it ends")
)

// TestEnginesAreTheProcessor runs random instructions on interpreter, translator and the processor under them.
func TestEnginesAreTheProcessor(t *testing.T) {
	enginesAreTheProcessor(t, func(rng *rand.Rand) *Case { return Generate(rng, *length) }, Interpreter, Exact)
}

// TestProgramsRunAsOnTheProcessor runs random programs there.
func TestProgramsRunAsOnTheProcessor(t *testing.T) {
	enginesAreTheProcessor(t, func(rng *rand.Rand) *Case { return Program(rng, 10+rng.IntN(5**length)) }, Interpreter, Exact, Translator)
}

func enginesAreTheProcessor(t *testing.T, generate func(*rand.Rand) *Case, engines ...Engine) {
	r, err := NewRunner(engines...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	rng := rand.New(rand.NewPCG(s, 0))
	end := time.Now().Add(*duration)
	found := 0
	seen := map[string]bool{}
	err = r.Random(func() *Case { return generate(rng) }, func() bool { return time.Now().After(end) }, func(m *Mismatch) bool {
		found++
		list := Listing(m.Case)
		key := kindOf(list)
		if !seen[key] {
			seen[key] = true
			t.Errorf("seed %d:\n%s%s\nat first:\n%s\n%s", s, list, strings.Join(m.Diff, "\n"), strings.Join(m.First, "\n"), m.Case)
			if *save != "" {
				name := fmt.Sprintf("%s/%s-%d", *save, strings.Map(fileRune, key), found)
				if err := os.WriteFile(name, []byte(m.Case.String()), 0o644); err != nil {
					t.Error(err)
				}
			}
		}
		return len(seen) < *most
	})
	if err != nil {
		t.Error(err)
	}
	if r.Lost > 0 {
		t.Errorf("%d cases differed once and not again", r.Lost)
	}
	t.Logf("%d instructions in %d cases, %d stopped, %d mismatches", r.Instructions, r.Cases, r.Stopped, found)
	for _, e := range engines {
		t.Logf("%v: %d page faults and %d interrupts behind the programs' back", e, r.guests[e].Faults, r.guests[e].Interrupts)
	}
}

// kindOf is the mnemonics of a listing.
func kindOf(list string) string {
	var kinds []string
	for _, l := range strings.Split(list, "\n") {
		if p := strings.SplitN(l, ": ", 3); len(p) == 3 {
			kinds = append(kinds, strings.Fields(p[2])[0])
		}
	}
	return strings.Join(kinds, " ")
}

func fileRune(r rune) rune {
	if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
		return r
	}
	return '_'
}
