package virtio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A bell is what a queue's goroutine sleeps on. A ring while it is awake is kept; several are one.
type bell interface {
	// ring never blocks, and may be called from any goroutine.
	ring()
	// wait returns after a ring, or when stop is closed and a ring followed.
	wait(stop <-chan struct{})
	close()
}

// chanBell is a bell that only this program rings.
type chanBell chan struct{}

func (b chanBell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

func (b chanBell) wait(stop <-chan struct{}) {
	select {
	case <-stop:
	case <-b:
	}
}

func (chanBell) close() {}

// An eventBell is an event counter (eventfd(2)), which the guest rings too. The runtime's poller waits for it, not a thread.
type eventBell struct {
	file *os.File
	fd   int
}

func newEventBell() (eventBell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return eventBell{}, fmt.Errorf("virtio: eventfd: %w", err)
	}
	return eventBell{os.NewFile(uintptr(fd), "eventfd"), fd}, nil
}

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

func (b eventBell) ring() { b.file.Write(one) } // by the file, which knows when it is closed: timers of devices ring late

func (b eventBell) wait(<-chan struct{}) {
	var n [8]byte
	b.file.Read(n[:])
}

func (b eventBell) close() { b.file.Close() }

// run is a queue's goroutine: it serves when woken, until stop.
func (q *Queue) run(serve func(*Queue), stop <-chan struct{}) {
	for {
		q.bell.wait(stop)
		select {
		case <-stop:
			return
		default:
		}
		if q.enter() {
			serve(q)
			q.leave()
		}
	}
}

// enter begins a Serve unless the queue is paused; Resume wakes it then.
func (q *Queue) enter() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.serving = !q.paused
	return q.serving
}

func (q *Queue) leave() {
	q.mu.Lock()
	q.serving = false
	q.idle.Broadcast()
	q.mu.Unlock()
}

// pause makes Pop give nothing; wait returns when no Serve runs and no chain is out.
func (q *Queue) pause() {
	q.mu.Lock()
	q.paused = true
	q.sendLater() // a paused device is silent
	q.mu.Unlock()
}

func (q *Queue) wait() {
	q.mu.Lock()
	for q.serving || q.inflight > 0 {
		q.idle.Wait()
	}
	q.sendLater()
	q.mu.Unlock()
}

func (q *Queue) resume() {
	q.mu.Lock()
	q.paused = false
	q.mu.Unlock()
	q.Wake()
}

// start makes a queue live for a session. It returns an error where the driver's rings turn out to be unusable.
func (q *Queue) start(features uint64, paused bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.live, q.paused = true, paused
	q.event = features&FeatureEventIdx != 0
	q.indir = features&FeatureIndirectDesc != 0
	if !q.ring.Enabled || q.err != nil {
		return nil
	}
	q.err = q.check()
	return q.err
}

// reset puts the queue back to before the driver. It is idle and its goroutine has ended.
func (q *Queue) reset(max uint16) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ring = ring{Size: max}
	q.next, q.used, q.live, q.err = 0, 0, false, nil
	q.later.pending = false
	q.vector.Store(noVector)
}
