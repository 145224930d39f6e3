package virtiotest

import (
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/mem"
)

// Descriptor flags.
const (
	Next     = 1
	Writable = 2
	Indirect = 4
)

// A Queue is the driver's side of a split virtqueue.
type Queue struct {
	Index, Size       int
	Desc, Avail, Used mem.Addr
	// UseIndirect puts each chain into an indirect table.
	UseIndirect bool

	d        *Driver
	end      mem.Addr
	free     []uint16 // descriptors
	avail    uint16   // next index to publish
	kicked   uint16   // what was published at the last Kick
	used     uint16   // next used entry to look at
	requests map[uint16]*Request
}

// A Request is a chain that was added.
type Request struct {
	// Done is set by Poll; Len is what the device said it wrote.
	Done bool
	Len  int
	// Out and In are the buffers in the guest.
	Out, In []Buffer

	descs []uint16
	ram   *mem.Memory
}

// A Buffer is a run of guest memory.
type Buffer struct {
	Addr mem.Addr
	Len  int
}

// Bytes copies the writable buffers as one.
func (r *Request) Bytes() []byte {
	var all []byte
	for _, b := range r.In {
		p := make([]byte, b.Len)
		if err := r.ram.ReadAt(p, b.Addr); err != nil {
			panic(err)
		}
		all = append(all, p...)
	}
	return all
}

// Answer is the part of Bytes that the device said it wrote.
func (r *Request) Answer() []byte { return r.Bytes()[:r.Len] }

func newQueue(d *Driver, i, size int) *Queue {
	q := &Queue{Index: i, Size: size, d: d, requests: map[uint16]*Request{}}
	q.Desc = d.Alloc(16 * size)
	q.Avail = d.Alloc(6 + 2*size)
	q.Used = d.Alloc(6 + 8*size)
	q.end = d.next
	for _, r := range []Buffer{{q.Desc, 16 * size}, {q.Avail, 6 + 2*size}, {q.Used, 6 + 8*size}} {
		if err := d.RAM.Zero(r.Addr, uint64(r.Len)); err != nil {
			d.T.Fatal(err)
		}
	}
	for i := range size {
		q.free = append(q.free, uint16(i))
	}
	return q
}

// SetDesc writes descriptor i of the table at table.
func (q *Queue) SetDesc(table mem.Addr, i int, a mem.Addr, n uint32, flags, next uint16) {
	p := le.AppendUint64(nil, uint64(a))
	p = le.AppendUint32(p, n)
	p = le.AppendUint16(p, flags)
	p = le.AppendUint16(p, next)
	if err := q.d.RAM.WriteAt(p, table+mem.Addr(16*i)); err != nil {
		q.d.T.Fatal(err)
	}
}

// Publish makes the chain that begins at head available, whatever it is.
func (q *Queue) Publish(head uint16) {
	q.d.RAM.Store16(q.Avail+4+2*mem.Addr(int(q.avail)%q.Size), head)
	q.avail++
	q.d.RAM.Store16(q.Avail+2, q.avail)
}

// Room tells whether a chain of n buffers can be added.
func (q *Queue) Room(n int) bool { return len(q.free) >= n || q.UseIndirect && len(q.free) > 0 }

// Add makes a chain available: out is copied into readable buffers, in gives the sizes of writable ones.
func (q *Queue) Add(out [][]byte, in ...int) *Request {
	q.d.T.Helper()
	r := &Request{ram: q.d.RAM}
	for _, p := range out {
		a := q.d.Alloc(len(p))
		if err := q.d.RAM.WriteAt(p, a); err != nil {
			q.d.T.Fatal(err)
		}
		r.Out = append(r.Out, Buffer{a, len(p)})
	}
	for _, n := range in {
		r.In = append(r.In, Buffer{q.d.Alloc(n), n})
	}
	n := len(r.Out) + len(r.In)
	if !q.Room(n) {
		q.d.T.Fatalf("queue %d: no room for %d descriptors", q.Index, n)
	}
	flags := func(i int) (f uint16) {
		if i >= len(r.Out) {
			f = Writable
		}
		if i < n-1 {
			f |= Next
		}
		return f
	}
	all := append(append([]Buffer(nil), r.Out...), r.In...)
	if q.UseIndirect {
		table := q.d.Alloc(16 * n)
		for i, b := range all {
			q.SetDesc(table, i, b.Addr, uint32(b.Len), flags(i), uint16(i+1))
		}
		r.descs = q.take(1)
		q.SetDesc(q.Desc, int(r.descs[0]), table, uint32(16*n), Indirect, 0)
	} else {
		r.descs = q.take(n)
		for i, b := range all {
			next := uint16(0)
			if i < n-1 {
				next = r.descs[i+1]
			}
			q.SetDesc(q.Desc, int(r.descs[i]), b.Addr, uint32(b.Len), flags(i), next)
		}
	}
	q.requests[r.descs[0]] = r
	q.Publish(r.descs[0])
	return r
}

func (q *Queue) take(n int) []uint16 {
	d := append([]uint16(nil), q.free[:n]...)
	q.free = q.free[n:]
	return d
}

// Kick notifies the device if it wants that, and tells whether it did.
func (q *Queue) Kick() bool {
	old := q.kicked
	q.kicked = q.avail
	if q.d.Features&virtio.FeatureEventIdx != 0 {
		event := q.d.RAM.Load16(q.Used + 4 + 8*mem.Addr(q.Size))
		if q.avail-event-1 >= q.avail-old {
			return false
		}
	} else if q.d.RAM.Load16(q.Used)&1 != 0 {
		return false
	}
	q.Notify()
	return true
}

// Notify writes the notify register.
func (q *Queue) Notify() { q.d.Write(q.d.Notify+4*uint64(q.Index), 2, uint64(q.Index)) }

// Poll takes in what the device used, in its order.
func (q *Queue) Poll() []*Request {
	q.d.T.Helper()
	var done []*Request
	for q.d.RAM.Load16(q.Used+2) != q.used {
		e := q.Used + 4 + 8*mem.Addr(int(q.used)%q.Size)
		id, n := q.d.RAM.Load32(e), q.d.RAM.Load32(e+4)
		q.used++
		r := q.requests[uint16(id)]
		if r == nil {
			q.d.T.Fatalf("queue %d: device used %d, which is not out", q.Index, id)
		}
		delete(q.requests, uint16(id))
		q.free = append(q.free, r.descs...)
		r.Done, r.Len = true, int(n)
		done = append(done, r)
	}
	return done
}

// Wait kicks and waits until r is used.
func (q *Queue) Wait(r *Request) *Request {
	q.d.T.Helper()
	q.Kick()
	q.d.Until("request", func() bool { q.Poll(); return r.Done })
	return r
}

// Do adds a request and waits for its answer.
func (q *Queue) Do(out [][]byte, in ...int) *Request {
	q.d.T.Helper()
	return q.Wait(q.Add(out, in...))
}

// SetUsedEvent asks for an interrupt when used entry v is written (EVENT_IDX).
func (q *Queue) SetUsedEvent(v uint16) { q.d.RAM.Store16(q.Avail+4+2*mem.Addr(q.Size), v) }

// SetFlags writes the available ring's flags.
func (q *Queue) SetFlags(v uint16) { q.d.RAM.Store16(q.Avail, v) }

// UsedIndex is the device's index.
func (q *Queue) UsedIndex() uint16 { return q.d.RAM.Load16(q.Used + 2) }
