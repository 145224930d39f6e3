package data

import (
	"cmp"
	"slices"
)

// A queue puts records into the order of time. perf writes what it finds in each processor's buffer in turn and ends a round of all of them with a
// FINISHED_ROUND: what is older than the newest of the round before the last can't be followed by anything older
// (tools/perf/util/ordered-events.c). Files without rounds are in order already, but for what is close together.
type queue struct {
	d       *Reader
	bytes   []byte // raw records
	entries []entry
	last    uint64 // the time of what came last: of records without one
	newest  uint64
	limit   uint64 // newest of the rounds that have ended
	rounds  bool
	rec     Record
	err     error
	stopped bool
}

type entry struct {
	time uint64
	at   int // in bytes
}

// Without rounds, keep is how many records wait for older ones.
const (
	keep       = 1 << 16
	mostQueued = 256 << 20 // bytes: a file whose rounds never end is given up its order, not our memory
)

func newQueue(d *Reader) *queue { return &queue{d: d} }

// take adds a record, and yields those that are due. It returns false where yield did.
func (q *queue) take(raw []byte, yield func(*Record, error) bool) (more bool, err error) {
	kind := le.Uint32(raw)
	if kind == RecordFinishedRound {
		q.rounds = true
		limit := q.limit
		q.limit = q.newest
		return q.flush(limit, yield), nil
	}
	t, ok := q.d.timeOf(raw)
	switch {
	case !ok || kind == RecordIDIndex:
		t = q.last
	case t == ^uint64(0) || t == 0: // synthesized by perf before it began
		t = 0
	}
	q.last = t
	q.newest = max(q.newest, t)
	q.entries = append(q.entries, entry{t, len(q.bytes)})
	q.bytes = append(q.bytes, raw...)
	if !q.rounds && len(q.entries) >= 2*keep || len(q.bytes) >= mostQueued {
		q.sort()
		return q.flush(q.entries[len(q.entries)/2].time, yield), nil
	}
	return true, nil
}

func (q *queue) sort() {
	byTime := func(a, b entry) int { return cmp.Compare(a.time, b.time) }
	if !slices.IsSortedFunc(q.entries, byTime) {
		slices.SortStableFunc(q.entries, byTime)
	}
}

// flush yields the records up to a time.
func (q *queue) flush(until uint64, yield func(*Record, error) bool) bool {
	q.sort()
	n := 0
	for ; n < len(q.entries) && q.entries[n].time <= until; n++ {
		raw := q.bytes[q.entries[n].at:]
		raw = raw[:le.Uint16(raw[6:])]
		if err := q.d.parse(raw, &q.rec); err != nil {
			q.err = err // later ones may be whole
			continue
		}
		if q.rec.Type == RecordIDIndex {
			for _, id := range q.rec.IDs {
				if len(q.d.IDs) < maxIDs {
					q.d.IDs[id.ID] = id
				}
			}
		}
		if !yield(&q.rec, nil) {
			q.stopped = true
			return false
		}
	}
	if n == 0 {
		return true
	}
	// What stays moves to the front, in the order of time.
	left := q.entries[n:]
	bytes := make([]byte, 0, len(left)*64)
	for i, e := range left {
		raw := q.bytes[e.at:]
		left[i].at = len(bytes)
		bytes = append(bytes, raw[:le.Uint16(raw[6:])]...)
	}
	q.entries = append(q.entries[:0], left...)
	q.bytes = append(q.bytes[:0], bytes...)
	return true
}
