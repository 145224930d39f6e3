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
	duration = flag.Duration("difftest.duration", 5*time.Second, "how long TestInterpIsTheProcessor runs random cases")
	seed     = flag.Uint64("difftest.seed", 0, "seed of its random cases; 0: from the clock")
	length   = flag.Int("difftest.length", 24, "instructions in a case")
	save     = flag.String("difftest.save", "", "directory for the cases that differ")
	most     = flag.Int("difftest.most", 20, "mismatches after which it ends")
)

// TestInterpIsTheProcessor and TestTranslationIsTheProcessor run random user code on the CPU engine and on the processor under it.
func TestInterpIsTheProcessor(t *testing.T) { engineIsTheProcessor(t, false) }

func TestTranslationIsTheProcessor(t *testing.T) { engineIsTheProcessor(t, true) }

func engineIsTheProcessor(t *testing.T, translate bool) {
	r, err := NewRunner(translate)
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
	err = r.Random(rng, *length, func() bool { return time.Now().After(end) }, func(m *Mismatch) bool {
		found++
		list := Listing(m.Case)
		key := kindOf(list)
		if !seen[key] {
			seen[key] = true
			t.Errorf("seed %d:\n%s%s\n%s", s, list, strings.Join(m.Diff, "\n"), m.Case)
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
	t.Logf("%d instructions in %d cases, %d stopped, %d mismatches", r.Instructions, r.Cases, r.Stopped, found)
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
