package user

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vitrine.dev/vitrine/internal/network"
)

// A queue holds the frames for the guest, bounded in number and bytes. When it is full, what is new is dropped, as on a wire.
type queue struct {
	overflow atomic.Uint64

	mu     sync.Mutex // guards all below
	ring   [maxFrames]item
	head   int
	count  int
	bytes  int
	takes  network.Abilities
	wake   func() // nil while the guest has no driver
	closed bool

	frame network.Frame // front's answer
	ready bool          // frame is ring[head]

	quiet int         // frames that came since the guest was last woken
	corks int         // those who will push more at once
	flush *time.Timer // wakes the guest for frames that nothing followed
}

// A frame of acknowledgements waits for company, as each wake costs the guest an interrupt: for company until flushDelay is over, or
// maxQuiet of them are there.
const (
	flushDelay = time.Millisecond
	maxQuiet   = 8
)

// An item is a frame: a packet of the stack's, or bytes of our own.
type item struct {
	pkt *stack.PacketBuffer
	raw []byte
	o   network.Offload
}

func (i *item) size() int {
	if i.pkt != nil {
		return i.pkt.Size()
	}
	return len(i.raw)
}

func (i *item) release() {
	if i.pkt != nil {
		i.pkt.DecRef()
	} else if cap(i.raw) == frameSize {
		frames.Put((*[frameSize]byte)(i.raw[:frameSize]))
	}
	*i = item{}
}

// frameSize is enough for a frame of a packet of MTU bytes.
const frameSize = 2048

var frames = sync.Pool{New: func() any { return new([frameSize]byte) }}

// newFrame gives size zeroed bytes for a frame of our own.
func newFrame(size int) []byte {
	if size > frameSize {
		return make([]byte, size)
	}
	b := frames.Get().(*[frameSize]byte)[:size]
	clear(b)
	return b
}

func (q *queue) up(takes network.Abilities, wake func()) {
	q.mu.Lock()
	q.takes, q.wake = takes, wake
	q.mu.Unlock()
}

func (q *queue) down() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake, q.quiet = nil, 0
	for q.count > 0 {
		q.drop()
	}
}

func (q *queue) close() {
	q.down()
	q.mu.Lock()
	q.closed = true
	if q.flush != nil {
		q.flush.Stop()
	}
	q.mu.Unlock()
}

func (q *queue) abilities() network.Abilities {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takes
}

// push takes it over, or tells that there is no room.
func (q *queue) push(it item) bool { return q.add(it, false) }

// add is push. A quiet frame is one that the guest does not wait for: it is told of it with the next other one, or a little later.
func (q *queue) add(it item, quiet bool) bool {
	size := it.size()
	q.mu.Lock()
	if q.closed || q.wake == nil || q.count == maxFrames || q.bytes+size > maxBytes {
		q.mu.Unlock()
		q.overflow.Add(1)
		it.release()
		return false
	}
	q.ring[(q.head+q.count)%maxFrames] = it
	q.count++
	q.bytes += size
	var wake func()
	switch {
	case quiet && q.quiet < maxQuiet || q.corks > 0:
		if q.quiet++; q.quiet == 1 {
			q.startFlush()
		}
	case q.count == 1 || q.quiet > 0:
		wake, q.quiet = q.wake, 0
	}
	q.mu.Unlock()
	if wake != nil {
		wake()
	}
	return true
}

// startFlush has the guest woken in a while. q.mu is held.
func (q *queue) startFlush() {
	if q.flush == nil {
		q.flush = time.AfterFunc(flushDelay, q.wakeQuiet)
	} else {
		q.flush.Reset(flushDelay)
	}
}

// wakeQuiet wakes the guest if something waits for that.
func (q *queue) wakeQuiet() {
	q.mu.Lock()
	wake := q.wake
	if q.quiet == 0 {
		wake = nil
	}
	q.quiet = 0
	q.mu.Unlock()
	if wake != nil {
		wake()
	}
}

// cork says that several frames follow at once, for which one wake will do; uncork says that they are there. In between, frames do not wait for
// longer than flushDelay either.
func (q *queue) cork() {
	q.mu.Lock()
	q.corks++
	q.mu.Unlock()
}

func (q *queue) uncork() {
	q.mu.Lock()
	q.corks--
	q.mu.Unlock()
	q.wakeQuiet()
}

func (q *queue) front() *network.Frame {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count == 0 {
		return nil
	}
	if !q.ready {
		it := &q.ring[q.head]
		parts := q.frame.Parts[:0]
		if it.pkt != nil {
			parts = append(parts, it.pkt.AsSlices()...)
		} else {
			parts = append(parts, it.raw)
		}
		q.frame = network.Frame{Parts: parts, Size: it.size(), Offload: it.o}
		q.ready = true
	}
	return &q.frame
}

func (q *queue) pop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count > 0 {
		q.drop()
	}
}

// drop forgets the first frame. q.mu is held.
func (q *queue) drop() {
	it := &q.ring[q.head]
	q.bytes -= it.size()
	it.release()
	q.head = (q.head + 1) % maxFrames
	q.count--
	q.ready = false
}

func (q *queue) connected() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.wake != nil
}
