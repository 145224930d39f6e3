package main

import (
	"fmt"
	"math/bits"
	"slices"
)

// A dimension is a thing that a decoder branches on. The order is the order of branching: what costs least to know first.
type dimension struct {
	name   string
	values int
	mask   func(*key) uint8
}

var dimensions = []dimension{
	{"byMode", 2, func(k *key) uint8 { return k.mode }},
	{"byPrefix", 4, func(k *key) uint8 { return k.pfx }},
	{"byMod", 2, func(k *key) uint8 { return k.mod }},
	{"byReg", 8, func(k *key) uint8 { return k.reg }},
	{"byRM", 8, func(k *key) uint8 { return k.rm }},
	{"byW", 2, func(k *key) uint8 { return k.w }},
	{"byB", 2, func(k *key) uint8 { return k.b }},
	{"byL", 2, func(k *key) uint8 { return k.l }},
}

// A tree collects the decision tree: roots and inner nodes. An entry is a row's number (0: undefined) or inner plus a node's place in nodes.
type tree struct {
	rows     []row
	features []string
	roots    [numMaps][256]uint16
	modrm    [numMaps][256]bool
	nodes    []string // Go expressions of uint16
}

const inner = 0x8000

// numMaps counts the opcode maps: four without VEX, then the three with it.
const numMaps = 7

func grow(rows []row, features []string) (*tree, error) {
	t := &tree{rows: rows, features: features}
	for m := range t.roots {
		for op := range t.roots[m] {
			var set []int
			for i := range rows {
				r := &rows[i]
				if r.opmap == m && r.opcodes[0] <= op && op <= r.opcodes[1] {
					set = append(set, i)
				}
			}
			if len(set) == 0 {
				continue
			}
			t.modrm[m][op] = rows[set[0]].modrm
			for _, i := range set {
				if rows[i].modrm != t.modrm[m][op] {
					return nil, fmt.Errorf("table.txt:%d: only some rows of this opcode have a ModRM byte", rows[i].line)
				}
			}
			e, err := t.split(set, 0)
			if err != nil {
				return nil, err
			}
			t.roots[m][op] = e
		}
	}
	return t, nil
}

// split makes the tree of the rows in set, which agree on all dimensions below d.
func (t *tree) split(set []int, d int) (uint16, error) {
	if len(set) == 0 {
		return 0, nil
	}
	if d == len(dimensions) {
		return t.byFeature(set)
	}
	dim := dimensions[d]
	all := uint8(1<<dim.values - 1)
	same := true
	for _, i := range set {
		same = same && dim.mask(&t.rows[i].key) == all
	}
	if same {
		return t.split(set, d+1)
	}
	var kids []uint16
	for v := range dim.values {
		var sub []int
		for _, i := range set {
			if dim.mask(&t.rows[i].key)>>v&1 != 0 {
				sub = append(sub, i)
			}
		}
		e, err := t.split(sub, d+1)
		if err != nil {
			return 0, err
		}
		kids = append(kids, e)
	}
	return t.node(dim.name, kids)
}

// byFeature chooses among rows that match alike: the first whose features are there.
func (t *tree) byFeature(set []int) (uint16, error) {
	r := &t.rows[set[0]]
	if len(r.features) == 0 {
		if len(set) > 1 && !covers(&t.rows[set[1]].key, &r.key) {
			return 0, fmt.Errorf("table.txt:%d and %d: both match, and the first is not the narrower", r.line, t.rows[set[1]].line)
		}
		return uint16(set[0] + 1), nil
	}
	off, err := t.split(set[1:], len(dimensions))
	if err != nil {
		return 0, err
	}
	e := uint16(set[0] + 1)
	for _, f := range r.features {
		n := slices.Index(t.features, f)
		if n < 0 {
			panic("BUG: feature " + f + " not collected")
		}
		if e, err = t.node(fmt.Sprintf("byFeature | %d<<8", n), []uint16{off, e}); err != nil {
			return 0, err
		}
	}
	return e, nil
}

// covers tells whether a is for all that b is for, and more.
func covers(a, b *key) bool {
	width := func(k *key) (n int) {
		for _, d := range dimensions {
			n += bits.OnesCount8(d.mask(k))
		}
		return n + k.opcodes[1] - k.opcodes[0]
	}
	for _, d := range dimensions {
		if d.mask(b)&^d.mask(a) != 0 {
			return false
		}
	}
	return width(a) > width(b)
}

func (t *tree) node(kind string, kids []uint16) (uint16, error) {
	at := len(t.nodes)
	if at >= inner {
		return 0, fmt.Errorf("more than %d nodes", inner)
	}
	t.nodes = append(t.nodes, kind)
	for _, k := range kids {
		t.nodes = append(t.nodes, fmt.Sprintf("%#x", k))
	}
	return uint16(inner + at), nil
}
