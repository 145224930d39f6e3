// Package export writes profiles in the forms that other tools read.
package export

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"vitrine.dev/vitrine/internal/perf/profile"
)

// A Format is one of those that Write knows.
type Format struct {
	Name  string // as --export takes it
	About string
	Write func(io.Writer, *profile.Profile) error
}

// Formats are all of them.
var Formats = []Format{
	{"pprof", "gzip-compressed protobuf for go tool pprof", Pprof},
	{"folded", "a line a stack, as stackcollapse.pl prints", Folded},
	{"flamegraph", "one self-contained, interactive HTML page", FlameGraph},
	{"speedscope", "JSON for speedscope", Speedscope},
	{"firefox", "JSON for the Firefox Profiler", Firefox},
}

// ByName is the format of that name.
func ByName(name string) (Format, error) {
	var names []string
	for _, f := range Formats {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Format{}, fmt.Errorf("no export format %q; there are %s", name, strings.Join(names, ", "))
}

// Marks in folded stacks, as FlameGraph's own tools have them for kernel functions; guests' are ours.
func mark(s profile.Space) string {
	switch s {
	case profile.GuestKernel:
		return "_[g]_[k]"
	case profile.GuestUser:
		return "_[g]"
	case profile.HostKernel:
		return "_[k]"
	}
	return ""
}

// owner is the frames below a chain: the guest, its process.
func owner(s *profile.Sample) []string {
	var o []string
	if s.Guest != "" {
		o = append(o, "guest "+s.Guest)
	}
	name := s.Comm
	if name == "" {
		name = "[unknown]"
	}
	if s.Container != "" {
		name = s.Container + ": " + name
	}
	return append(o, name)
}

// clean is a name that breaks no line of a text format: a guest chooses its names.
func clean(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7F || r == ';' || r >= 0x80 && r < 0xA0 }) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == ';':
			return ':'
		case r < 0x20 || r == 0x7F || r >= 0x80 && r < 0xA0 || r == utf8.RuneError:
			return '?'
		}
		return r
	}, s)
}

// fold counts the weight of each stack: keys are joined by semicolons, callers first.
func fold(p *profile.Profile) (map[string]uint64, error) {
	weights := map[string]uint64{}
	var b strings.Builder
	for s, err := range p.Samples {
		if err != nil {
			return nil, err
		}
		b.Reset()
		for i, o := range owner(s) {
			if i > 0 {
				b.WriteByte(';')
			}
			b.WriteString(clean(o))
		}
		for i := len(s.Chain) - 1; i >= 0; i-- {
			b.WriteByte(';')
			b.WriteString(clean(s.Chain[i].Name()))
			b.WriteString(mark(s.Chain[i].Space))
		}
		if s.Idle {
			b.WriteString(";[idle]")
		}
		weights[b.String()] += s.Weight
	}
	return weights, nil
}

// Folded writes a line a stack: frames from the outermost on, separated by semicolons, a space, the weight. Kernel frames end in _[k], guests' in _[g].
func Folded(w io.Writer, p *profile.Profile) error {
	weights, err := fold(p)
	if err != nil {
		return err
	}
	lines := make([]string, 0, len(weights))
	for k := range weights {
		lines = append(lines, k)
	}
	slices.SortFunc(lines, func(a, b string) int { return cmp.Or(cmp.Compare(weights[b], weights[a]), cmp.Compare(a, b)) })
	out := bufio.NewWriter(w)
	for _, l := range lines {
		fmt.Fprintf(out, "%s %d\n", l, weights[l])
	}
	return out.Flush()
}
