package virtio

// run is a queue's goroutine: it serves when woken, until stop.
func (q *Queue) run(serve func(*Queue), stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-q.wake:
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
