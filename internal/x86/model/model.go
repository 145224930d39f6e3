// Package model is which processor a guest sees: the features that its CPUID offers, from one table of all.
package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// A Set is a set of the table's flags. Sets compare with ==.
type Set [4]uint64

// Max is the model that has all that there is.
const Max = "max"

// Models are the names that Parse knows, the richest first.
var Models = []string{Max, "x86-64-v3", "x86-64-v2"}

// Parse reads "MODEL[,+flag,-flag…]" for what runs processors that can have the flags of offer. A flag that is added brings those it needs, one that is taken
// away takes those that need it. what names the provider for the error of a flag that it has not.
func Parse(spec string, offer Set, what string) (Set, error) {
	name, changes, _ := strings.Cut(spec, ",")
	var s Set
	switch level := slices.Index(Models, name); {
	case level < 0:
		return s, fmt.Errorf("--cpu %q: give %s, and after commas +flag or -flag (how many processors is --cpus)", name, strings.Join(Models, ", "))
	case level == 0:
		s = offer
	default:
		top := uint8(v3 + 1 - level)
		for i := range table {
			f := &table[i]
			if f.level == extra || f.level > top {
				continue
			}
			if s.set(i); f.level >= v2 && !offer.has(i) {
				return s, fmt.Errorf("--cpu %s: %s has no %s", name, what, f.name)
			}
		}
		s = s.and(offer)
	}
	var added []int
	for c := range strings.SplitSeq(changes, ",") {
		if c == "" && changes == "" {
			break
		}
		if c == "" || c[0] != '+' && c[0] != '-' {
			return s, fmt.Errorf("--cpu: %q: write +%s or -%s", c, c, c)
		}
		i, err := find(c[1:])
		if err != nil {
			return s, err
		}
		if c[0] == '-' {
			if table[i].level == base {
				return s, fmt.Errorf("--cpu: -%s: every x86-64 processor has it", c[1:])
			}
			s.drop(i)
			continue
		}
		if !offer.has(i) {
			return s, fmt.Errorf("--cpu: +%s: %s has it not", c[1:], what)
		}
		s.add(i)
		added = append(added, i)
	}
	for _, i := range added {
		if !s.has(i) {
			return s, fmt.Errorf("--cpu: +%s and what is taken away contradict each other", table[i].name)
		}
	}
	return s, nil
}

// find is the number of a flag. The error for an unknown one lists those with a similar name.
func find(name string) (int, error) {
	for i := range table {
		if table[i].name == name {
			return i, nil
		}
	}
	near := map[string]int{}
	if other := aliases[name]; other != "" {
		near[other] = 0
	}
	for i := range table {
		n := table[i].name
		switch d := distance(n, name); {
		case d == 1 || d == 2 && len(name) > 4:
			near[n] = d
		case len(name) > 2 && strings.HasPrefix(n, name), len(n) > 2 && strings.HasPrefix(name, n):
			near[n] = 3
		}
	}
	if len(near) == 0 {
		return 0, fmt.Errorf("--cpu: no flag %q: they are named as in /proc/cpuinfo", name)
	}
	names := slices.SortedFunc(maps.Keys(near), func(a, b string) int {
		return cmp.Or(near[a]-near[b], strings.Compare(a, b))
	})
	return 0, fmt.Errorf("--cpu: no flag %q: did you mean %s?", name, strings.Join(names[:min(len(names), 6)], ", "))
}

// aliases are names that manuals and other programs have for flags.
var aliases = map[string]string{
	"lzcnt": "abm", "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse41": "sse4_1", "sse42": "sse4_2", "pclmul": "pclmulqdq", "sha": "sha_ni",
	"tsc_deadline": "tsc_deadline_timer", "tsc-deadline": "tsc_deadline_timer", "cmpxchg16b": "cx16", "lahf": "lahf_lm", "osxsave": "xsave",
}

// distance is how many letters must be inserted, removed or changed to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// add puts in flag i and what it needs.
func (s *Set) add(i int) {
	s.set(i)
	for n := range strings.FieldsSeq(table[i].needs) {
		if k := number[n]; !s.has(k) {
			s.add(k)
		}
	}
}

// drop takes out flag i and what needs it.
func (s *Set) drop(i int) {
	s[i>>6] &^= 1 << (i & 63)
	for k := range table {
		if s.has(k) && slices.Contains(strings.Fields(table[k].needs), table[i].name) {
			s.drop(k)
		}
	}
}

// number is each flag's place in the table.
var number = func() map[string]int {
	m := make(map[string]int, len(table))
	for i := range table {
		m[table[i].name] = i
	}
	return m
}()

func (s *Set) set(i int)     { s[i>>6] |= 1 << (i & 63) }
func (s Set) has(i int) bool { return s[i>>6]>>(i&63)&1 != 0 }

func (s Set) and(t Set) Set {
	for i := range s {
		s[i] &= t[i]
	}
	return s
}

// Has tells whether s has the flag of that name; the name must be the table's.
func (s Set) Has(name string) bool {
	i, ok := number[name]
	if !ok {
		panic("BUG: model: no flag " + name)
	}
	return s.has(i)
}

// Without is s without the flags named, and without those that need them.
func (s Set) Without(names ...string) Set {
	for _, n := range names {
		s.drop(number[n])
	}
	return s
}

// Names lists the flags of s in the table's order.
func (s Set) Names() []string {
	var names []string
	for i := range table {
		if s.has(i) {
			names = append(names, table[i].name)
		}
	}
	return names
}

// Decode is the instructions that a processor with the flags of s knows.
func (s Set) Decode() decode.Features {
	var f decode.Features
	for i := range table {
		if s.has(i) {
			f |= table[i].decode
		}
	}
	return f
}

// CR4 is the bits of CR4 that a processor with the flags of s has.
func (s Set) CR4() uint64 {
	var v uint64
	for i := range table {
		if s.has(i) {
			v |= table[i].cr4
		}
	}
	return v
}

// states are the components of XSAVE's area that flags bring (SDM vol. 1 13.1).
var states = []struct {
	flag string
	bits uint64
}{{"xsave", 1<<0 | 1<<1}, {"avx", 1 << 2}, {"mpx", 1<<3 | 1<<4}, {"avx512f", 1<<5 | 1<<6 | 1<<7}, {"pku", 1 << 9}, {"amx_tile", 1<<17 | 1<<18}}

// XCR0 is the bits of XCR0 that a processor with the flags of s has; none without XSAVE.
func (s Set) XCR0() uint64 {
	var v uint64
	for _, c := range states {
		if s.Has(c.flag) {
			v |= c.bits
		}
	}
	return v
}

// CPUID is the flags of s in EAX, EBX, ECX and EDX of a leaf and sub-leaf.
func (s Set) CPUID(leaf, sub uint32) (r [4]uint32) {
	for i := range table {
		if f := &table[i]; f.leaf == leaf && f.sub == sub && s.has(i) {
			r[f.reg] |= 1 << f.bit
		}
	}
	return r
}

// Mask makes r, the registers that CPUID gives for a leaf and sub-leaf, those of a processor that has none of the table's flags, and state components,
// but those of s.
func (s Set) Mask(leaf, sub uint32, r *[4]uint32) {
	for i := range table {
		if f := &table[i]; f.leaf == leaf && f.sub == sub && !s.has(i) {
			r[f.reg] &^= 1 << f.bit
		}
	}
	if leaf != 0xD {
		return
	}
	switch xcr0 := s.XCR0(); {
	case sub == 0:
		r[eax] &= uint32(xcr0)
	case xcr0 == 0, sub > 1 && sub < 64 && xcr0>>sub&1 == 0:
		*r = [4]uint32{}
	}
}

// Of is the flags that a processor has whose CPUID is ask.
func Of(ask func(leaf, sub uint32) [4]uint32) (s Set) {
	for i := range table {
		f := &table[i]
		if r := ask(f.leaf, f.sub); r[f.reg]>>f.bit&1 != 0 {
			s.set(i)
		}
	}
	return s
}

// Flags names every flag that is known.
func Flags() []string {
	all := make([]string, len(table))
	for i := range table {
		all[i] = table[i].name
	}
	return all
}
