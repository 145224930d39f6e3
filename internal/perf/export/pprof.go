package export

import (
	"io"

	"github.com/google/pprof/profile"

	vp "vitrine.dev/vitrine/internal/perf/profile"
)

// Pprof writes a profile.proto, gzip-compressed, as `go tool pprof` reads it. Labels: guest, vcpu, process, pid, tid, container. The guest and
// its process are the outermost frames too, so that pictures tell them apart.
func Pprof(w io.Writer, p *vp.Profile) error {
	e := pprof{
		out: profile.Profile{
			SampleType:        []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: p.Event, Unit: p.Unit}},
			PeriodType:        &profile.ValueType{Type: p.Event, Unit: p.Unit},
			TimeNanos:         p.Start,
			DefaultSampleType: p.Event,
		},
		mappings:  map[string]*profile.Mapping{},
		functions: map[functionKey]*profile.Function{},
		locations: map[locationKey]*profile.Location{},
		samples:   map[string]*profile.Sample{},
	}
	var first, last int64
	seen := false
	for s, err := range p.Samples {
		if err != nil {
			return err
		}
		if !seen {
			first, seen = s.Time, true
		}
		last = s.Time
		e.add(s)
	}
	e.out.DurationNanos = last - first
	if err := e.out.CheckValid(); err != nil {
		return err
	}
	return e.out.Write(w)
}

type functionKey struct{ name, file string }

type locationKey struct {
	module string
	ip     uint64
	name   string
	line   int
}

// pprof builds the tables of a profile.proto.
type pprof struct {
	out       profile.Profile
	mappings  map[string]*profile.Mapping
	functions map[functionKey]*profile.Function
	locations map[locationKey]*profile.Location
	samples   map[string]*profile.Sample // by labels and locations
	key       []byte
}

func (e *pprof) add(s *vp.Sample) {
	locations := make([]*profile.Location, 0, len(s.Chain)+2)
	if s.Idle {
		locations = append(locations, e.pseudo("[idle]"))
	}
	for i := range s.Chain {
		locations = append(locations, e.location(&s.Chain[i]))
	}
	owners := owner(s)
	for i := len(owners) - 1; i >= 0; i-- {
		locations = append(locations, e.pseudo(owners[i]))
	}
	e.key = e.key[:0]
	for _, v := range []int{s.VCPU, s.PID, s.TID} {
		e.key = appendUint(e.key, uint64(v))
	}
	e.key = append(append(append(append(append(e.key, s.Guest...), 0), s.Comm...), 0), s.Container...)
	e.key = append(e.key, 0)
	for _, l := range locations {
		e.key = appendUint(e.key, l.ID)
	}
	sample := e.samples[string(e.key)]
	if sample == nil {
		sample = &profile.Sample{Location: locations, Value: []int64{0, 0}, Label: map[string][]string{}, NumLabel: map[string][]int64{}}
		for k, v := range map[string]string{"guest": s.Guest, "process": s.Comm, "container": s.Container} {
			if v != "" {
				sample.Label[k] = []string{clean(v)}
			}
		}
		for k, v := range map[string]int{"vcpu": s.VCPU, "pid": s.PID, "tid": s.TID} {
			if v >= 0 {
				sample.NumLabel[k] = []int64{int64(v)}
			}
		}
		e.samples[string(e.key)] = sample
		e.out.Sample = append(e.out.Sample, sample)
	}
	sample.Value[0]++
	sample.Value[1] += int64(s.Weight)
}

func appendUint(b []byte, v uint64) []byte {
	for range 8 {
		b = append(b, byte(v))
		v >>= 8
	}
	return b
}

// pseudo is a frame that is no code: a guest, a process.
func (e *pprof) pseudo(name string) *profile.Location {
	return e.location(&vp.Frame{Func: name})
}

func (e *pprof) location(f *vp.Frame) *profile.Location {
	module := f.Module
	if f.Space.Guest() && module != "" {
		module = "[guest]" + module
	}
	key := locationKey{module, f.IP, f.Name(), f.Line}
	if l := e.locations[key]; l != nil {
		return l
	}
	fk := functionKey{key.name, f.File}
	function := e.functions[fk]
	if function == nil {
		function = &profile.Function{ID: uint64(len(e.out.Function) + 1), Name: clean(key.name), SystemName: clean(key.name), Filename: clean(f.File)}
		e.functions[fk] = function
		e.out.Function = append(e.out.Function, function)
	}
	l := &profile.Location{ID: uint64(len(e.out.Location) + 1), Address: f.IP, Line: []profile.Line{{Function: function, Line: int64(f.Line)}}}
	if module != "" {
		l.Mapping = e.mapping(module)
	}
	e.locations[key] = l
	e.out.Location = append(e.out.Location, l)
	return l
}

func (e *pprof) mapping(module string) *profile.Mapping {
	m := e.mappings[module]
	if m == nil {
		// Names are resolved already: nothing shall look for the file.
		m = &profile.Mapping{ID: uint64(len(e.out.Mapping) + 1), File: clean(module), HasFunctions: true, HasFilenames: true, HasLineNumbers: true, HasInlineFrames: true}
		e.mappings[module] = m
		e.out.Mapping = append(e.out.Mapping, m)
	}
	return m
}
