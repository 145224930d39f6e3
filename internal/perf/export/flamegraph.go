package export

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"vitrine.dev/vitrine/internal/perf/profile"
)

//go:embed flamegraph.html
var flamePage []byte

// flameData is where the page has its data.
var flameData = []byte("/*DATA*/null")

// A flame is a frame of the graph. In JSON: [name, kind, weight, children…], name an index of the strings.
type flame struct {
	name     int
	kind     int // 0 to 3 a profile.Space, 4 the owner: a guest, a process
	weight   uint64
	children []*flame
	byName   map[[2]int]*flame
}

func (f *flame) child(name, kind int) *flame {
	key := [2]int{name, kind}
	c := f.byName[key]
	if c == nil {
		if f.byName == nil {
			f.byName = map[[2]int]*flame{}
		}
		c = &flame{name: name, kind: kind}
		f.byName[key] = c
		f.children = append(f.children, c)
	}
	return c
}

// appendJSON writes the frame, children by name as flame graphs have them.
func (f *flame) appendJSON(b []byte, names []string) []byte {
	b = append(b, '[')
	b = appendInt(b, uint64(f.name))
	b = append(b, ',')
	b = appendInt(b, uint64(f.kind))
	b = append(b, ',')
	b = appendInt(b, f.weight)
	slices.SortFunc(f.children, func(x, y *flame) int {
		return cmp.Or(cmp.Compare(names[x.name], names[y.name]), cmp.Compare(x.kind, y.kind))
	})
	for _, c := range f.children {
		b = append(b, ',')
		b = c.appendJSON(b, names)
	}
	return append(b, ']')
}

func appendInt(b []byte, v uint64) []byte {
	var d [20]byte
	i := len(d)
	for {
		i--
		d[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return append(b, d[i:]...)
		}
	}
}

const ownerKind = 4

// deepest bounds the frames of a stack that the graph shows: deeper ones end in the innermost shown.
const deepest = 1024

// FlameGraph writes one HTML page that needs nothing else: a flame graph to zoom and search in, guest and host, user and kernel coloured apart.
func FlameGraph(w io.Writer, p *profile.Profile) error {
	var names []string
	nameAt := map[string]int{}
	intern := func(s string) int {
		i, ok := nameAt[s]
		if !ok {
			i = len(names)
			names, nameAt[s] = append(names, s), i
		}
		return i
	}
	root := &flame{name: intern("all"), kind: ownerKind}
	samples := 0
	for s, err := range p.Samples {
		if err != nil {
			return err
		}
		samples++
		at := root
		at.weight += s.Weight
		down := func(name string, kind int) {
			at = at.child(intern(name), kind)
			at.weight += s.Weight
		}
		for _, o := range owner(s) {
			down(clean(o), ownerKind)
		}
		for i := len(s.Chain) - 1; i >= max(0, len(s.Chain)-deepest); i-- {
			down(clean(s.Chain[i].Name()), int(s.Chain[i].Space))
		}
		if s.Idle {
			down("[idle]", ownerKind)
		}
	}
	// encoding/json escapes what could end the script that this stands in.
	meta, err := json.Marshal(map[string]any{"names": names, "event": p.Event, "unit": p.Unit, "samples": samples})
	if err != nil {
		return err
	}
	data := append(meta[:len(meta)-1], `,"root":`...)
	data = append(root.appendJSON(data, names), '}')
	head, tail, ok := bytes.Cut(flamePage, flameData)
	if !ok {
		return errors.New("the page has no place for its data")
	}
	for _, b := range [][]byte{head, data, tail} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}
