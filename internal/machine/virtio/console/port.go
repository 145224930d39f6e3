package console

import (
	"io"
	"os"
	"sync"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/fifo"
)

const (
	// limit is how much a port keeps in each direction. Beyond it Write waits, and the guest's buffers are not taken.
	limit = 64 << 10
	// maxChain is how much one of the guest's requests may put beyond the limit; the rest of it is dropped.
	maxChain = 1 << 20
)

// A Port is the host's end of a port. Its Read gives what the guest writes, its Write is what the guest reads. One goroutine may
// read while another writes.
type Port struct {
	d      *Device
	index  int
	config PortConfig

	mu        sync.Mutex // guards all below
	changed   sync.Cond
	in        fifo.Bytes // to the guest
	out       fifo.Bytes // from the guest
	rx, tx    *virtio.Queue
	ready     bool // the guest's driver knows the port
	guestOpen bool
	wasOpen   bool // the guest had it open, so that closed means the end
	closed    bool // Close was called
	announced bool // and the guest was told, after the last byte
	ended     bool // the device is closed
}

func newPort(d *Device, i int, c PortConfig) *Port {
	p := &Port{d: d, index: i, config: c}
	p.changed.L = &p.mu
	return p
}

// Read gives what the guest wrote. It waits for some, and returns io.EOF when the guest closed the port after opening it, until it
// opens it again, and when the device is closed.
func (p *Port) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.out.Len() == 0 {
		switch {
		case p.closed:
			return 0, os.ErrClosed
		case p.ended || p.wasOpen && !p.guestOpen && !p.config.Console:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		p.changed.Wait()
	}
	full := p.out.Len() >= limit
	n := p.out.Read(b)
	if full && p.out.Len() < limit && p.tx != nil {
		p.tx.Wake()
	}
	return n, nil
}

// Write sends b to the guest. It waits while as much as the port keeps is under way already.
func (p *Port) Write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		for p.in.Len() >= limit && !p.closed && !p.ended {
			p.changed.Wait()
		}
		if p.closed || p.ended {
			return n, os.ErrClosed
		}
		k := min(len(b), limit-p.in.Len())
		p.in.Write(b[:k])
		n, b = n+k, b[k:]
		if p.rx != nil {
			p.rx.Wake()
		}
	}
	return n, nil
}

// Close ends both directions. The guest reads what was written before, and then the end.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	p.closed = true
	p.announce()
	p.changed.Broadcast()
	if p.tx != nil {
		p.tx.Wake() // what the guest writes from now on is dropped
	}
	return nil
}

// announce tells the guest of Close once it has all that was written. p.mu is held.
func (p *Port) announce() {
	if p.closed && !p.announced && p.ready && (p.in.Len() == 0 || !p.guestOpen) {
		p.announced = true
		p.d.send(newMessage(p.index, eventPortOpen, 0))
	}
}

// serve takes the guest's buffers in one direction.
func (p *Port) serve(q *virtio.Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.Index%2 == 0 {
		p.serveRx(q)
	} else {
		p.serveTx(q)
	}
	p.changed.Broadcast()
}

func (p *Port) serveRx(q *virtio.Queue) {
	for p.in.Len() > 0 && p.guestOpen {
		c := q.Pop()
		if c == nil {
			return
		}
		n, _ := c.Write(p.in.Peek())
		p.in.Drop(n)
		q.Push(c, c.Filled())
	}
	p.announce()
}

func (p *Port) serveTx(q *virtio.Queue) {
	for p.out.Len() < limit || p.closed || p.ended {
		c := q.Pop()
		if c == nil {
			return
		}
		p.d.tellSize()
		room := maxChain
		for _, b := range c.Readable {
			if p.closed || p.ended || room == 0 {
				break
			}
			b = b[:min(len(b), room)]
			p.out.Write(b)
			room -= len(b)
		}
		q.Push(c, 0)
	}
}

// emergency takes a byte that needs no queue.
func (p *Port) emergency(b byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out.Len() < limit && !p.closed && !p.ended {
		p.out.Write([]byte{b})
		p.changed.Broadcast()
	}
}

func (p *Port) activate(s *virtio.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	multi := s.Has(FeatureMultiport)
	if p.index == 0 {
		p.rx, p.tx = s.Queues[0], s.Queues[1]
	} else {
		if !multi {
			return
		}
		p.rx, p.tx = s.Queues[2*p.index+2], s.Queues[2*p.index+3]
	}
	if !multi {
		p.guestOpen, p.wasOpen = true, true
	}
}

// setReady is the guest's PORT_READY: its driver has set the port up, and wants to know what it is.
func (p *Port) setReady(ready bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ready = ready
	if !ready {
		return
	}
	if p.config.Console {
		p.guestOpen, p.wasOpen = true, true
		p.d.send(newMessage(p.index, eventConsolePort, 1), p.d.resize(p.index))
	}
	if p.config.Name != "" {
		p.d.send(newMessage(p.index, eventPortName, 1, []byte(p.config.Name)...))
	}
	if !p.announced {
		p.d.send(newMessage(p.index, eventPortOpen, 1))
	}
	p.announce()
	p.wake()
}

func (p *Port) setGuestOpen(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.guestOpen = open
	p.wasOpen = p.wasOpen || open
	p.announce()
	p.wake()
}

// wake has everything looked at again. p.mu is held.
func (p *Port) wake() {
	p.changed.Broadcast()
	if p.rx != nil {
		p.rx.Wake()
	}
}

// reset forgets the driver; what is under way stays, for the reader and for the next driver.
func (p *Port) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rx, p.tx, p.ready, p.guestOpen, p.announced = nil, nil, false, false, false
	p.changed.Broadcast()
}

func (p *Port) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.changed.Broadcast()
}

type portState struct {
	In, Out                                      []byte
	Ready, GuestOpen, WasOpen, Closed, Announced bool
}

func (p *Port) state() portState {
	p.mu.Lock()
	defer p.mu.Unlock()
	clone := func(b []byte) []byte { return append([]byte(nil), b...) }
	return portState{clone(p.in.Peek()), clone(p.out.Peek()), p.ready, p.guestOpen, p.wasOpen, p.closed, p.announced}
}

func (p *Port) setState(s portState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.in, p.out = fifo.Of(s.In), fifo.Of(s.Out)
	p.ready, p.guestOpen, p.wasOpen, p.closed, p.announced = s.Ready, s.GuestOpen, s.WasOpen, s.Closed, s.Announced
	p.changed.Broadcast()
}
