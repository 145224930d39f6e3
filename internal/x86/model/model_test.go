package model

import (
	"slices"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// everything is a provider of every flag.
func everything() (s Set) {
	for i := range table {
		s.set(i)
	}
	return s
}

func TestParse(t *testing.T) {
	all := everything()
	for _, c := range []struct {
		spec   string
		offer  Set
		has    string
		hasNot string
	}{
		{"max", all, "avx512f vmx sse2", ""},
		{"max,-avx", all, "xsave sse4_2 aes", "avx avx2 fma f16c vaes vpclmulqdq avx512f"},
		{"x86-64-v2", all, "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2 x2apic smep lm", "avx xsave bmi1 movbe abm aes vmx avx512f"},
		{"x86-64-v3", all, "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave sse4_2", "aes sha_ni vaes adx avx512f"},
		{"x86-64-v3,+vaes", all, "vaes aes avx", "vpclmulqdq"},
		{"x86-64-v2,+avx2", all, "avx2 avx xsave", "fma"},
		{"x86-64-v3,+aes,-fma", all, "aes avx2", "fma"},
		{"x86-64-v3,-xsave", all, "bmi2", "xsave avx xsaveopt f16c"},
		{"x86-64-v2", all.Without("x2apic"), "sse4_2", "x2apic"}, // what is no instruction is taken if it is there
	} {
		s, err := Parse(c.spec, c.offer, "it")
		if err != nil {
			t.Errorf("%s: %v", c.spec, err)
			continue
		}
		for f := range strings.FieldsSeq(c.has) {
			if !s.Has(f) {
				t.Errorf("%s: no %s", c.spec, f)
			}
		}
		for f := range strings.FieldsSeq(c.hasNot) {
			if s.Has(f) {
				t.Errorf("%s: has %s", c.spec, f)
			}
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	all := everything()
	for _, c := range []struct {
		spec  string
		offer Set
		says  []string
	}{
		{"x86-64-v4", all, []string{"max, x86-64-v3, x86-64-v2"}},
		{"2", all, []string{"--cpus"}},
		{"", all, []string{"max"}},
		{"max,+avx3", all, []string{`no flag "avx3"`, "avx2"}},
		{"max,+lzcnt", all, []string{`no flag "lzcnt": did you mean abm`}},
		{"max,+pclmul", all, []string{"pclmulqdq"}},
		{"max,+aess", all, []string{"did you mean aes"}},
		{"max,+zzzzzzz", all, []string{"/proc/cpuinfo"}},
		{"max,avx", all, []string{"+avx or -avx"}},
		{"max,", all, nil},
		{"max,+", all, []string{"no flag"}},
		{"x86-64-v3", all.Without("avx2"), []string{"it has no avx2"}},
		{"max,+sha_ni", all.Without("sha_ni"), []string{"+sha_ni: it has it not"}},
		{"max,-sse2", all, []string{"every x86-64 processor"}},
		{"x86-64-v2,+avx2,-avx", all, []string{"avx2", "contradict"}},
	} {
		_, err := Parse(c.spec, c.offer, "it")
		if c.says == nil {
			if err != nil {
				t.Errorf("%q: %v", c.spec, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%q: no error", c.spec)
			continue
		}
		for _, w := range c.says {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %q does not say %q", c.spec, err, w)
			}
		}
	}
}

// TestTableIsSound: a bit has one flag, a flag one row, and what flags need exists.
func TestTableIsSound(t *testing.T) {
	type place struct {
		leaf, sub uint32
		reg, bit  uint8
	}
	places, names := map[place]string{}, map[string]bool{}
	var instructions decode.Features
	for i := range table {
		f := &table[i]
		p := place{f.leaf, f.sub, f.reg, f.bit}
		if places[p] != "" || names[f.name] || f.bit > 31 {
			t.Errorf("%s: a second row, or a second flag of %+v beside %q", f.name, p, places[p])
		}
		places[p], names[f.name] = f.name, true
		instructions |= f.decode
	}
	for i := range table {
		for n := range strings.FieldsSeq(table[i].needs) {
			if !names[n] {
				t.Errorf("%s needs %s, which is none", table[i].name, n)
			}
		}
	}
	for _, s := range states {
		if !names[s.flag] {
			t.Errorf("state of %s, which is none", s.flag)
		}
	}
	if missing := decode.AllFeatures &^ instructions; missing != 0 {
		t.Errorf("the decoder's features %#x have no flag", missing)
	}
	if len(table) > len(Set{})*64 {
		t.Errorf("%d flags: a Set holds %d", len(table), len(Set{})*64)
	}
}

// TestEngineHasWhatItNeeds: what the engine offers on this host makes sense by itself, and CR4 goes with it.
func TestEngineHasWhatItNeeds(t *testing.T) {
	s := Engine()
	for _, name := range s.Names() {
		for n := range strings.FieldsSeq(table[number[name]].needs) {
			if !s.Has(n) {
				t.Errorf("%s without %s", name, n)
			}
		}
	}
	if s.CR4()&x86.CR4OSXSAVE == 0 || s.Without("xsave").CR4()&x86.CR4OSXSAVE != 0 {
		t.Errorf("CR4 %#x: OSXSAVE must go with xsave", s.CR4())
	}
}

func TestMaskTakesAway(t *testing.T) {
	s := everything().Without("avx")
	r := [4]uint32{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}
	s.Mask(1, 0, &r)
	if r[ecx]>>28&1 != 0 || r[ecx]>>12&1 != 0 || r[ecx]>>26&1 == 0 || r[ecx]>>27&1 == 0 || r[eax] != ^uint32(0) {
		t.Errorf("leaf 1: %#x: want no AVX and no FMA, but XSAVE and OSXSAVE", r)
	}
	r = [4]uint32{0xE7, 1, 1, 0}
	s.Mask(0xD, 0, &r)
	if r[eax] != 3 {
		t.Errorf("leaf 0DH: XCR0 %#x, want 3", r[eax])
	}
	r = [4]uint32{256, 576, 0, 0}
	s.Mask(0xD, 2, &r)
	if r != [4]uint32{} {
		t.Errorf("leaf 0DH, AVX: %v, want zeros", r)
	}
}

// TestOfIsCPUIDsInverse: what a set says by CPUID is the set.
func TestOfIsCPUIDsInverse(t *testing.T) {
	s, err := Parse("x86-64-v3,+aes", everything(), "it")
	if err != nil {
		t.Fatal(err)
	}
	if got := Of(s.CPUID); got != s {
		t.Errorf("%v, want %v", got.Names(), s.Names())
	}
	if !slices.Equal(Flags(), everything().Names()) {
		t.Error("Flags is not the table")
	}
}

// FuzzParse: what people type neither panics nor makes a processor that lacks what a flag of its needs.
func FuzzParse(f *testing.F) {
	f.Add("max,+avx,-fma")
	f.Add("x86-64-v2,,")
	f.Add("x86-64-v3,+")
	f.Fuzz(func(t *testing.T, spec string) {
		if len(spec) > 200 {
			return
		}
		s, err := Parse(spec, everything(), "it")
		if err != nil {
			return
		}
		for _, name := range s.Names() {
			for n := range strings.FieldsSeq(table[number[name]].needs) {
				if !s.Has(n) {
					t.Fatalf("%q: %s without %s", spec, name, n)
				}
			}
		}
	})
}
