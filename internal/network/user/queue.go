package user

import (
	"sync"
	"sync/atomic"

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
}

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
	}
	*i = item{}
}

func (q *queue) up(takes network.Abilities, wake func()) {
	q.mu.Lock()
	q.takes, q.wake = takes, wake
	q.mu.Unlock()
}

func (q *queue) down() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake = nil
	for q.count > 0 {
		q.drop()
	}
}

func (q *queue) close() {
	q.down()
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
}

func (q *queue) abilities() network.Abilities {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takes
}

// push takes it over, or tells that there is no room.
func (q *queue) push(it item) bool {
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
	wake := q.wake
	first := q.count == 1
	q.mu.Unlock()
	if first {
		wake()
	}
	return true
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
