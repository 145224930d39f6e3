package export

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"vitrine.dev/vitrine/internal/perf/profile"
)

// thread is samples of one task or vCPU, as JSON formats want them: apart.
type thread struct {
	name     string
	pid, tid int
	process  string
	samples  []threadSample
}

type threadSample struct {
	time   int64
	weight uint64
	stack  int // index of stacks, -1 for none
}

// threads is a profile sorted by task, its frames and stacks as tables.
type threads struct {
	frames    []profile.Frame
	frameAt   map[profile.Frame]int
	parents   []int // of each stack: the caller's, or -1
	leaves    []int // of each stack: its frame
	stackAt   map[[2]int]int
	list      []*thread
	byKey     map[string]*thread
	start     int64
	end       int64
	anySample bool
}

func gather(p *profile.Profile) (*threads, error) {
	t := &threads{frameAt: map[profile.Frame]int{}, stackAt: map[[2]int]int{}, byKey: map[string]*thread{}}
	for s, err := range p.Samples {
		if err != nil {
			return nil, err
		}
		if !t.anySample {
			t.start, t.anySample = s.Time, true
		}
		t.start, t.end = min(t.start, s.Time), max(t.end, s.Time)
		key := fmt.Sprintf("%s\x00%d\x00%d\x00%s", s.Guest, s.PID, s.TID, s.Comm)
		th := t.byKey[key]
		if th == nil {
			th = &thread{name: clean(s.Comm), pid: s.PID, tid: s.TID, process: clean(s.Comm)}
			if s.Guest != "" {
				th.process = clean(s.Guest) + ": " + th.process
			}
			t.byKey[key] = th
			t.list = append(t.list, th)
		}
		at := -1
		for i := len(s.Chain) - 1; i >= 0; i-- {
			at = t.stack(at, t.frame(s.Chain[i]))
		}
		th.samples = append(th.samples, threadSample{s.Time, s.Weight, at})
	}
	for _, th := range t.list {
		slices.SortStableFunc(th.samples, func(a, b threadSample) int { return int(min(max(a.time-b.time, -1), 1)) })
	}
	return t, nil
}

// frame is the index of a function: its addresses are one frame.
func (t *threads) frame(f profile.Frame) int {
	f = profile.Frame{Space: f.Space, Func: f.Name(), Module: f.Module, File: f.File, Line: f.Line}
	i, ok := t.frameAt[f]
	if !ok {
		i = len(t.frames)
		t.frameAt[f] = i
		t.frames = append(t.frames, f)
	}
	return i
}

func (t *threads) stack(parent, frame int) int {
	key := [2]int{parent, frame}
	i, ok := t.stackAt[key]
	if !ok {
		i = len(t.leaves)
		t.stackAt[key] = i
		t.parents, t.leaves = append(t.parents, parent), append(t.leaves, frame)
	}
	return i
}

// path is the frames of a stack, callers first.
func (t *threads) path(stack int) []int {
	out := []int{}
	for ; stack >= 0; stack = t.parents[stack] {
		out = append(out, t.leaves[stack])
	}
	slices.Reverse(out)
	return out
}

// Speedscope writes speedscope's own JSON: a sampled profile a thread (https://www.speedscope.app/file-format-schema.json).
func Speedscope(w io.Writer, p *profile.Profile) error {
	t, err := gather(p)
	if err != nil {
		return err
	}
	type frame struct {
		Name string `json:"name"`
		File string `json:"file,omitempty"`
		Line int    `json:"line,omitempty"`
	}
	type sampled struct {
		Type       string   `json:"type"`
		Name       string   `json:"name"`
		Unit       string   `json:"unit"`
		StartValue uint64   `json:"startValue"`
		EndValue   uint64   `json:"endValue"`
		Samples    [][]int  `json:"samples"`
		Weights    []uint64 `json:"weights"`
	}
	var out struct {
		Schema string `json:"$schema"`
		Shared struct {
			Frames []frame `json:"frames"`
		} `json:"shared"`
		Profiles []sampled `json:"profiles"`
		Name     string    `json:"name"`
		Exporter string    `json:"exporter"`
	}
	out.Schema, out.Name, out.Exporter = "https://www.speedscope.app/file-format-schema.json", p.Event, "vitrine"
	out.Shared.Frames, out.Profiles = []frame{}, []sampled{}
	for _, f := range t.frames {
		file := f.File
		if file == "" {
			file = f.Module
		}
		out.Shared.Frames = append(out.Shared.Frames, frame{clean(f.Func) + mark(f.Space), clean(file), f.Line})
	}
	unit := "none"
	if p.Unit == "nanoseconds" {
		unit = p.Unit
	}
	for _, th := range t.list {
		s := sampled{Type: "sampled", Name: fmt.Sprintf("%s (%d/%d)", th.process, th.pid, th.tid), Unit: unit}
		for _, x := range th.samples {
			s.Samples = append(s.Samples, t.path(x.stack))
			s.Weights = append(s.Weights, x.weight)
			s.EndValue += x.weight
		}
		out.Profiles = append(out.Profiles, s)
	}
	return encode(w, out)
}

func encode(w io.Writer, v any) error {
	b := bufio.NewWriter(w)
	if err := json.NewEncoder(b).Encode(v); err != nil {
		return err
	}
	return b.Flush()
}

// firefoxCategories are the colours of the Firefox Profiler, one a space.
var firefoxCategories = []map[string]any{
	{"name": "Guest user", "color": "yellow", "subcategories": []string{"Other"}},
	{"name": "Guest kernel", "color": "orange", "subcategories": []string{"Other"}},
	{"name": "Host user", "color": "blue", "subcategories": []string{"Other"}},
	{"name": "Host kernel", "color": "green", "subcategories": []string{"Other"}},
	{"name": "Other", "color": "grey", "subcategories": []string{"Other"}},
}

// Firefox writes the Firefox Profiler's "Gecko profile" JSON, version 24, which its importer upgrades
// (firefox-devtools/profiler, docs-developer/gecko-profile-format.md).
func Firefox(w io.Writer, p *profile.Profile) error {
	t, err := gather(p)
	if err != nil {
		return err
	}
	list := []any{}
	for _, th := range t.list {
		list = append(list, t.gecko(th))
	}
	return encode(w, map[string]any{
		"meta": map[string]any{
			"version": 24, "interval": 1, "startTime": float64(p.Start) / 1e6, "shutdownTime": nil, "processType": 0, "stackwalk": 1, "debug": 0, "gcpoison": 0,
			"asyncstack": 0, "categories": firefoxCategories, "markerSchema": []any{}, "product": "vitrine", "presymbolicated": true, "logicalCPUs": 0,
			"sampleUnits": map[string]string{"time": "ms", "eventDelay": "ms", "threadCPUDelta": "ns"},
		},
		"libs": []any{}, "pages": []any{}, "counters": []any{}, "profilerOverhead": []any{}, "pausedRanges": []any{}, "processes": []any{},
		"threads": list,
	})
}

// gecko is one thread, with tables of its own. Times are milliseconds from the profile's start.
func (t *threads) gecko(th *thread) any {
	type table struct {
		Schema map[string]int `json:"schema"`
		Data   [][]any        `json:"data"`
	}
	schema := func(names ...string) map[string]int {
		m := map[string]int{}
		for i, n := range names {
			m[n] = i
		}
		return m
	}
	strings, stringAt := []string{}, map[string]int{}
	str := func(s string) int {
		i, ok := stringAt[s]
		if !ok {
			i = len(strings)
			stringAt[s], strings = i, append(strings, s)
		}
		return i
	}
	frames := table{schema("location", "relevantForJS", "innerWindowID", "implementation", "line", "column", "category", "subcategory"), [][]any{}}
	stacks := table{schema("prefix", "frame"), [][]any{}}
	samples := table{schema("stack", "time", "eventDelay"), [][]any{}}
	frameAt, stackAt := map[int]int{}, map[int]int{}
	var stack func(i int) any
	stack = func(i int) any {
		if i < 0 {
			return nil
		}
		if at, ok := stackAt[i]; ok {
			return at
		}
		prefix := stack(t.parents[i])
		f := t.leaves[i]
		fi, ok := frameAt[f]
		if !ok {
			fi = len(frames.Data)
			frameAt[f] = fi
			name := clean(t.frames[f].Func)
			if m := t.frames[f].Module; m != "" {
				name += " (in " + clean(m) + ")"
			}
			frames.Data = append(frames.Data, []any{str(name), false, 0, nil, nil, nil, int(t.frames[f].Space), 0})
		}
		at := len(stacks.Data)
		stackAt[i] = at
		stacks.Data = append(stacks.Data, []any{prefix, fi})
		return at
	}
	for _, s := range th.samples {
		samples.Data = append(samples.Data, []any{stack(s.stack), float64(s.time-t.start) / 1e6, 0})
	}
	return map[string]any{
		"name": th.name, "processType": "default", "processName": th.process, "tid": th.tid, "pid": th.pid,
		"registerTime": 0, "unregisterTime": nil, "markers": table{schema("name", "startTime", "endTime", "phase", "category", "data"), [][]any{}},
		"samples": samples, "frameTable": frames, "stackTable": stacks, "stringTable": strings,
	}
}
