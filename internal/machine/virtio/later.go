package virtio

import "time"

// laterDelay is how long an interrupt of PushLater waits at most.
const laterDelay = time.Millisecond

// A later is an interrupt that was put off. The driver sees the used buffers at once: one that looks at the queue for another reason before
// the time is over moves its event index, and needs no interrupt any more.
type later struct {
	timer   *time.Timer
	pending bool
	from    uint16 // what of used was given when it was put off
}

// PushLater is Push for a chain whose end the driver does not wait for: an interrupt may come up to a millisecond late, or not at all where
// the driver saw the chain without one.
func (q *Queue) PushLater(c *Chain, n uint64) {
	c.report(q.ram, n)
	q.mu.Lock()
	defer q.mu.Unlock()
	old := q.used
	q.use(c, n)
	q.ram.Store16(q.ring.Used+ringIdx, q.used)
	if !q.later.pending && q.wants(old, q.used) {
		q.later.pending, q.later.from = true, old
		if q.later.timer == nil {
			q.later.timer = time.AfterFunc(laterDelay, q.due)
		} else {
			q.later.timer.Reset(laterDelay)
		}
	} else {
		q.stats.suppressed++
	}
	q.idle.Broadcast()
}

// due is called when the interrupt that was put off has waited for long enough.
func (q *Queue) due() {
	q.mu.Lock()
	q.sendLater()
	q.mu.Unlock()
}

// sendLater sends the interrupt that was put off, if there is one and the driver still wants it. q.mu is held.
func (q *Queue) sendLater() {
	if !q.later.pending {
		return
	}
	q.later.pending = false
	if q.wants(q.later.from, q.used) {
		q.stats.interrupts++
		q.interrupt()
	} else {
		q.stats.suppressed++
	}
}
