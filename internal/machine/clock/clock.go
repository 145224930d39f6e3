// Package clock is a machine's time: nanoseconds since power-on, which stand still while the machine is paused, and timers in it.
package clock

import (
	"container/heap"
	"math"
	"sync"
	"time"
)

// Never is a deadline that does not come.
const Never = math.MaxInt64

// MinPeriod is the shortest period, in nanoseconds, at which devices let a guest have a periodic timer: a shorter one would cost the host a CPU.
// (KVM's min_timer_period_us is 200.)
const MinPeriod = 100_000

// A Clock counts nanoseconds by the host's monotonic clock: a stepped host clock does not matter. It starts running.
// All methods may be called from any goroutine, also with a device's lock held.
type Clock struct {
	sleeper sleeper // nil of a fake

	mu      sync.Mutex
	queue   timers
	origin  time.Time // Now was base then
	base    int64
	running bool
	closed  bool
	fake    bool
	calling bool       // a timer's function runs
	called  *sync.Cond // calling is false again
	armed   int64      // what the sleeper was told; it may wake earlier than the first timer, never later
	done    chan struct{}
}

// A sleeper blocks until an instant that can be moved.
type sleeper interface {
	// set moves the instant to d from now; d < 0 is never.
	set(d time.Duration)
	// wait blocks until the instant.
	wait()
	close()
}

// New starts a clock. Close ends it.
func New() (*Clock, error) {
	s, err := newTimerFD()
	if err != nil {
		return nil, err
	}
	c := &Clock{sleeper: s, origin: time.Now(), running: true, armed: Never, done: make(chan struct{})}
	c.called = sync.NewCond(&c.mu)
	go c.loop()
	return c, nil
}

// NewFake makes a clock for tests that stands at 0 until Advance.
func NewFake() *Clock { return &Clock{fake: true, running: true, armed: Never} }

// Now is the machine's time in nanoseconds.
func (c *Clock) Now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *Clock) now() int64 {
	if !c.running || c.fake {
		return c.base
	}
	return c.base + int64(time.Since(c.origin))
}

// Pause stops the time and waits for a timer's function that runs now: none runs until Resume. The caller holds no lock that such
// a function takes.
func (c *Clock) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.running = c.now(), false
	for c.calling {
		c.called.Wait()
	}
}

// Resume lets the time go on from where it stood.
func (c *Clock) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.running {
		c.origin, c.running = time.Now(), true
		c.armed = Never
		c.arm()
	}
}

// Restore sets the time, of a paused clock, to what Now was when the machine was saved.
func (c *Clock) Restore(now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.origin = now, time.Now()
}

// Close ends the clock; no timer fires afterwards. It must not be called by a timer's function.
func (c *Clock) Close() {
	c.mu.Lock()
	if c.closed || c.fake {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.sleeper.set(0)
	c.mu.Unlock()
	<-c.done
	c.sleeper.close()
}

// Advance moves a fake clock by d and runs the timers that come due on the way, each at its time.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	end := c.base + int64(d)
	for c.running && len(c.queue) > 0 && c.queue[0].at <= end {
		t := heap.Pop(&c.queue).(*Timer)
		c.base = max(c.base, t.at)
		c.mu.Unlock()
		t.fn()
		c.mu.Lock()
	}
	if c.running {
		c.base = end
	}
	c.mu.Unlock()
}

// loop runs the timers of a real clock as they come due.
func (c *Clock) loop() {
	defer close(c.done)
	for {
		c.sleeper.wait()
		c.mu.Lock()
		c.armed = Never
		for c.running && !c.closed && len(c.queue) > 0 && c.queue[0].at <= c.now() {
			t := heap.Pop(&c.queue).(*Timer)
			c.calling = true
			c.mu.Unlock()
			t.fn()
			c.mu.Lock()
			c.calling = false
			c.called.Broadcast()
		}
		if c.closed {
			c.mu.Unlock()
			return
		}
		c.arm()
		c.mu.Unlock()
	}
}

// arm makes the sleeper wake for the first timer; c.mu is held.
func (c *Clock) arm() {
	if c.fake || !c.running || c.closed || len(c.queue) == 0 || c.queue[0].at >= c.armed {
		return
	}
	c.armed = c.queue[0].at
	c.sleeper.set(time.Duration(max(c.armed-c.now(), 0)))
}

// A Timer calls its function once for each Set, on the clock's goroutine and with no lock held. A call may be under way while Set
// or Stop is called: the function takes its device's lock and looks whether its time has really come.
type Timer struct {
	c  *Clock
	fn func()

	at    int64 // guarded by c.mu, as index is
	index int   // in c.queue; -1 when not armed
}

// NewTimer makes a timer that is not armed. fn must not block.
func (c *Clock) NewTimer(fn func()) *Timer { return &Timer{c: c, fn: fn, index: -1} }

// Set arms the timer for the instant at, also a past one, in place of any earlier instant. Never disarms it.
func (t *Timer) Set(at int64) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	switch {
	case at == Never:
		if t.index >= 0 {
			heap.Remove(&t.c.queue, t.index)
		}
		return
	case t.index >= 0:
		t.at = at
		heap.Fix(&t.c.queue, t.index)
	default:
		t.at = at
		heap.Push(&t.c.queue, t)
	}
	t.c.arm()
}

// Stop disarms the timer.
func (t *Timer) Stop() { t.Set(Never) }

// timers is a heap, the earliest first.
type timers []*Timer

func (q timers) Len() int           { return len(q) }
func (q timers) Less(i, j int) bool { return q[i].at < q[j].at }
func (q timers) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *timers) Push(x any) {
	t := x.(*Timer)
	t.index = len(*q)
	*q = append(*q, t)
}
func (q *timers) Pop() any {
	n := len(*q) - 1
	t := (*q)[n]
	(*q)[n], *q = nil, (*q)[:n]
	t.index = -1
	return t
}
