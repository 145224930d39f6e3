package wire

import "sync"

// A Flow is the sender's side of a window: how many bytes the receiver has said it can take.
type Flow struct {
	mu     sync.Mutex
	more   sync.Cond
	credit int
	closed bool
}

// NewFlow is a flow with a whole Window of credit.
func NewFlow() *Flow {
	f := &Flow{credit: Window}
	f.more.L = &f.mu
	return f
}

// Take waits for credit and takes up to n bytes of it. It returns 0 once the flow is closed.
func (f *Flow) Take(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.credit == 0 && !f.closed {
		f.more.Wait()
	}
	if f.closed {
		return 0
	}
	n = min(n, f.credit)
	f.credit -= n
	return n
}

// Add gives n bytes of credit; a peer that gives more than a Window gave a Window.
func (f *Flow) Add(n uint64) {
	f.mu.Lock()
	f.credit = min(f.credit+int(min(n, Window)), Window)
	f.mu.Unlock()
	f.more.Broadcast()
}

// Close wakes Take for good.
func (f *Flow) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.more.Broadcast()
}

// A Queue is the receiver's side: bytes that arrived and are not consumed yet, at most a Window.
type Queue struct {
	mu   sync.Mutex
	some sync.Cond
	buf  []byte
	end  bool
}

// NewQueue is an empty queue.
func NewQueue() *Queue {
	q := &Queue{}
	q.some.L = &q.mu
	return q
}

// Put appends what arrived. It never waits: bytes beyond the Window, which only a peer that ignores its credit sends, end the queue.
func (q *Queue) Put(p []byte) {
	q.mu.Lock()
	if len(q.buf)+len(p) > Window {
		q.end = true
	}
	if len(p) == 0 {
		q.end = true
	}
	if !q.end {
		q.buf = append(q.buf, p...)
	}
	q.mu.Unlock()
	q.some.Broadcast()
}

// Close ends the queue after what it holds.
func (q *Queue) Close() { q.Put(nil) }

// Take waits for bytes and moves up to len(p) of them into p. It returns 0 after the last.
func (q *Queue) Take(p []byte) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.buf) == 0 && !q.end {
		q.some.Wait()
	}
	n := copy(p, q.buf)
	q.buf = q.buf[:copy(q.buf, q.buf[n:])]
	return n
}
