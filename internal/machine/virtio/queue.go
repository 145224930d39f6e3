package virtio

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/mem"
)

// The split virtqueue in guest memory (virtio 1.2 section 2.7).
const (
	descSize  = 16
	descNext  = 1
	descWrite = 2
	descIndir = 4

	ringFlags = 0 // of both rings
	ringIdx   = 2
	ringElems = 4
	usedElem  = 8

	availNoInterrupt = 1

	// MaxChain bounds the descriptors of one chain, indirect ones included. It is QEMU's bound: Linux may use indirect tables
	// longer than the queue (virtqueue_add_split checks the queue's size only without them).
	MaxChain = 1024
	// maxBytes bounds the bytes of one chain (virtio 1.2 section 2.7.5.2: 2^32 at most).
	maxBytes = 1 << 32
)

// A Queue is one split virtqueue. Pop belongs to Serve; all else may be called from any goroutine.
type Queue struct {
	// Index is the queue's number in its device.
	Index int

	ram       *mem.Memory
	bell      bell
	vector    atomic.Uint32
	interrupt func() // tells the driver of used buffers
	broke     func() // tells it that the device needs a reset

	mu    sync.Mutex // guards all below
	idle  sync.Cond  // serving or inflight fell
	ring  ring
	next  uint16 // what of avail is taken
	used  uint16 // what of used is given
	event bool   // EVENT_IDX was agreed on
	indir bool

	live     bool // between Activate and reset
	paused   bool
	serving  bool
	inflight int
	err      error // why the queue is broken
	later    later
	free     []*Chain

	stats queueStats
}

// ring is where the driver put the queue.
type ring struct {
	Size              uint16
	Enabled           bool
	Desc, Avail, Used mem.Addr
}

type queueStats struct{ chains, interrupts, suppressed uint64 }

// Enabled tells whether the driver set the queue up.
func (q *Queue) Enabled() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.live && q.ring.Enabled
}

// Wake has Serve called soon. It never blocks.
func (q *Queue) Wake() { q.bell.ring() }

// Pop takes the next chain that the driver made available, or nil: there is none, or the queue is broken or being paused.
// When there is none, the driver is asked to notify.
func (q *Queue) Pop() *Chain {
	q.mu.Lock()
	if !q.live || q.paused || !q.ring.Enabled || q.err != nil {
		q.mu.Unlock()
		return nil
	}
	c, err := q.pop()
	if err != nil {
		q.err = fmt.Errorf("virtio: queue %d: %w", q.Index, err)
	}
	q.mu.Unlock()
	if err != nil {
		q.broke()
	}
	return c
}

var (
	errRing     = errors.New("the rings are misaligned or outside RAM")
	errAvail    = errors.New("more chains available than descriptors")
	errHead     = errors.New("descriptor number out of range")
	errLong     = errors.New("chain loops or is too long")
	errBytes    = errors.New("chain of more than 4 GiB")
	errOrder    = errors.New("device-readable buffer after a writable one")
	errIndirect = errors.New("indirect descriptor where none may be")
	errTable    = errors.New("indirect table of a wrong size")
	errInflight = errors.New("more chains in flight than descriptors")
)

// pop is Pop with q.mu held.
func (q *Queue) pop() (*Chain, error) {
	r := &q.ring
	idx := q.ram.Load16(r.Avail + ringIdx)
	if idx == q.next {
		if !q.event {
			return nil, nil
		}
		// Ask for a notify at the next chain, then look again: the driver may have added one before it saw the question.
		q.ram.Store16(r.Used+ringElems+usedElem*mem.Addr(r.Size), q.next)
		if idx = q.ram.Load16(r.Avail + ringIdx); idx == q.next {
			return nil, nil
		}
	}
	if idx-q.next > r.Size {
		return nil, errAvail
	}
	if q.inflight >= int(r.Size) {
		return nil, errInflight
	}
	head := q.ram.Load16(r.Avail + ringElems + 2*mem.Addr(q.next&(r.Size-1)))
	c := q.chain()
	c.head = head
	if err := q.walk(c, head); err != nil {
		q.free = append(q.free, c)
		return nil, err
	}
	q.next++
	q.inflight++
	q.stats.chains++
	return c, nil
}

// walk collects the buffers of the chain that begins at head.
func (q *Queue) walk(c *Chain, head uint16) error {
	table, size, i := q.ring.Desc, uint32(q.ring.Size), uint32(head)
	inTable := false
	var total uint64
	for n := 0; ; n++ {
		if i >= size {
			return errHead
		}
		// A loop comes round to here before it can go on for long.
		if n >= MaxChain || !inTable && n >= int(size) {
			return errLong
		}
		var d [descSize]byte
		if err := q.ram.ReadAt(d[:], table+descSize*mem.Addr(i)); err != nil {
			return err
		}
		a, length := mem.Addr(le.Uint64(d[:])), le.Uint32(d[8:])
		flags, next := le.Uint16(d[12:]), le.Uint16(d[14:])
		if flags&descIndir != 0 {
			if inTable || !q.indir || flags&descNext != 0 {
				return errIndirect
			}
			if length == 0 || length%descSize != 0 || length/descSize > 1<<16 {
				return errTable
			}
			table, size, i, inTable = a, length/descSize, 0, true
			continue
		}
		if total += uint64(length); total > maxBytes {
			return errBytes
		}
		if err := c.add(q.ram, a, length, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		i = uint32(next)
	}
}

// Unpop puts back what Pop gave last: the next Pop gives it again. Several go back in the opposite order. As Pop, it belongs to Serve.
func (q *Queue) Unpop(c *Chain) {
	q.mu.Lock()
	q.next--
	q.stats.chains--
	q.recycle(c)
	q.inflight--
	q.idle.Broadcast()
	q.mu.Unlock()
}

// Size is how many descriptors the queue has, which bounds the chains that can be out.
func (q *Queue) Size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int(q.ring.Size)
}

// Push gives c back to the driver with its first n writable bytes written, and interrupts the driver if it wants that.
// c must not be used afterwards.
func (q *Queue) Push(c *Chain, n uint64) {
	c.report(q.ram, n)
	q.mu.Lock()
	old := q.used
	q.use(c, n)
	q.publish(old)
	q.mu.Unlock()
}

// PushAll is Push for several chains, of which the driver sees all or none. n[i] bytes of c[i] were written.
func (q *Queue) PushAll(c []*Chain, n []uint64) {
	for i := range c {
		c[i].report(q.ram, n[i])
	}
	q.mu.Lock()
	old := q.used
	for i := range c {
		q.use(c[i], n[i])
	}
	q.publish(old)
	q.mu.Unlock()
}

// use writes c's entry of the used ring. q.mu is held.
func (q *Queue) use(c *Chain, n uint64) {
	r := &q.ring
	e := r.Used + ringElems + usedElem*mem.Addr(q.used&(r.Size-1))
	q.ram.Store32(e, uint32(c.head))
	q.ram.Store32(e+4, uint32(n))
	q.used++
	q.recycle(c)
	q.inflight--
}

// publish shows the driver the used entries from old on, and interrupts it if it wants that. q.mu is held.
func (q *Queue) publish(old uint16) {
	q.ram.Store16(q.ring.Used+ringIdx, q.used)
	if q.later.pending { // one interrupt for both
		q.later.pending, old = false, q.later.from
	}
	want := q.wants(old, q.used)
	if want {
		q.stats.interrupts++
	} else {
		q.stats.suppressed++
	}
	// The interrupt is sent before the queue can be seen idle, so that a paused device is silent.
	if want {
		q.interrupt()
	}
	q.idle.Broadcast()
}

// wants tells whether the driver wants an interrupt for used entries [old, now) (virtio 1.2 section 2.7.7.2).
func (q *Queue) wants(old, now uint16) bool {
	r := &q.ring
	if !q.event {
		return q.ram.Load16(r.Avail+ringFlags)&availNoInterrupt == 0
	}
	event := q.ram.Load16(r.Avail + ringElems + 2*mem.Addr(r.Size))
	return now-event-1 < now-old
}

// Err says why the queue is broken, or nil.
func (q *Queue) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// check finds what is wrong with the rings' addresses. q.mu is held.
func (q *Queue) check() error {
	r := &q.ring
	n := uint64(r.Size)
	if r.Desc%16 != 0 || r.Avail%2 != 0 || r.Used%4 != 0 ||
		!q.ram.Contains(r.Desc, descSize*n) || !q.ram.Contains(r.Avail, 6+2*n) || !q.ram.Contains(r.Used, 6+usedElem*n) {
		return fmt.Errorf("virtio: queue %d: %w", q.Index, errRing)
	}
	return nil
}
