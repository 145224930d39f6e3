package difftest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCases runs every case that ever differed: testdata has one a file, numbered.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/[0-9]*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	r, err := NewRunner(Interpreter, Exact, Translator)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Parse(string(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for range 20 { // interrupts and missing pages are elsewhere each time
			d, err := r.Try(c)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if d != nil {
				t.Errorf("%s:\n%s%s", name, Listing(c), strings.Join(d, "\n"))
				break
			}
			c.Seed += 1 << 16
		}
	}
}

// TestCaseKeepsItsText: what String writes, Parse reads.
func TestCaseKeepsItsText(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 50 {
		c := Generate(rng, 10)
		if i&1 != 0 {
			c = Program(rng, 30)
		}
		back, err := Parse(c.String())
		if err != nil {
			t.Fatal(err)
		}
		if back.String() != c.String() || back.State != c.State {
			t.Fatalf("%s\nbecame\n%s", c, back)
		}
	}
}

// TestDifferencesAreSeen: a fuzzer that cannot find a planted difference finds none.
func TestDifferencesAreSeen(t *testing.T) {
	c := &Case{Code: []byte{0x90, 0xCC}, Bits: 64}
	c.Regs[regRIP] = codeVA
	for _, change := range []func(*Outcome){
		func(o *Outcome) { o.Regs[3]++ }, func(o *Outcome) { o.Regs[regFlags] ^= 1 }, func(o *Outcome) { o.Vector = 6 },
		func(o *Outcome) { o.Addr++ }, func(o *Outcome) { o.FX[33] ^= 4 }, func(o *Outcome) { o.FX[415] ^= 4 }, func(o *Outcome) { o.Data[dataLen-1] ^= 1 },
		func(o *Outcome) { o.FX[24] ^= 1 }, func(o *Outcome) { o.YMM[255] ^= 1 },
	} {
		var a, b Outcome
		a.Vector, b.Vector = 3, 3
		change(&b)
		if Differences(c, &a, &b) == nil {
			t.Errorf("%+v against zero: no difference", b.Regs)
		}
	}
}

// TestGeneratorKnowsTheTable: what interp offers to user code is generated, whatever its form.
func TestGeneratorKnowsTheTable(t *testing.T) {
	n := 0
	for _, classes := range forms {
		for _, f := range classes {
			n += len(f)
		}
	}
	if n < 8000 {
		t.Errorf("%d forms", n)
	}
}
