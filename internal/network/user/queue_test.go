package user

import (
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/network"
)

// newQueue makes a queue whose wakes can be counted.
func newQueue(t *testing.T) (q *queue, wakes func() int) {
	q = &queue{}
	all := make(chan struct{}, 2000)
	q.up(network.Sums, func() { all <- struct{}{} })
	t.Cleanup(q.close)
	return q, func() int { return len(all) }
}

func (q *queue) drain() {
	for q.front() != nil {
		q.pop()
	}
}

func frame() item { return item{raw: make([]byte, 60)} }

func TestQuietFrameIsTakenAlongByTheNext(t *testing.T) {
	q, wakes := newQueue(t)
	for range 1000 { // on a busy host the time may be over in between
		q.add(frame(), true)
		q.push(frame())
		q.drain()
	}
	if n := wakes(); n > 1500 {
		t.Errorf("%d wakes for 1000 pairs of frames", n)
	}
}

func TestQuietFramesAreBoundedInTimeAndNumber(t *testing.T) {
	q, wakes := newQueue(t)
	q.add(frame(), true)
	for end := time.Now().Add(wait); wakes() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a quiet frame alone is never told of")
		}
	}
	q, wakes = newQueue(t)
	for range maxQuiet + 1 {
		q.add(frame(), true)
	}
	if wakes() == 0 {
		t.Errorf("%d quiet frames and no wake", maxQuiet+1)
	}
}

func TestCorkedFramesAreOneWake(t *testing.T) {
	q, wakes := newQueue(t)
	q.cork()
	q.push(frame())
	q.push(frame())
	q.flush.Stop() // it may have run, on a busy host
	before := wakes()
	q.uncork()
	if n := wakes(); n != 1 || before > 1 {
		t.Errorf("%d wakes for corked frames, %d of them before the cork came off; want 1", n, before)
	}
}
