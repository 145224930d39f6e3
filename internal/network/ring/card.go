package ring

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
)

// A Card is the end of a ring that a guest's card is plugged into. It implements [network.Network]. After New it needs no system call but
// read, write and those of the scheduler.
type Card struct {
	mapping []byte
	bell    *os.File // ours
	far     *os.File // the other side's
	pump    sync.WaitGroup

	up   half // of who calls Send, one at a time
	down half // of who calls Front and Pop

	link    *word
	alive   atomic.Bool // until Cut, or until the other side breaks the ring
	starved atomic.Bool // Send waits for room
	front   struct {
		frame network.Frame
		ready bool
	}

	mu    sync.Mutex // guards what follows
	count uint64
	wake  func() // nil while the guest has no driver
	room  func()

	broken, dropped atomic.Uint64
}

var _ network.Network = (*Card)(nil)

// New makes a ring and gives its guest's end, and what the other end is made of, for [Serve]; it is the caller's to close once it was handed over.
func New() (c *Card, far []*os.File, err error) {
	c = &Card{}
	shared, err := newMemory()
	if err != nil {
		return nil, nil, err
	}
	far = append(far, shared)
	for _, bell := range []**os.File{&c.far, &c.bell} {
		var here, there *os.File
		if here, there, err = newBell(); err != nil {
			break
		}
		*bell, far = here, append(far, there)
	}
	if err == nil {
		c.mapping, err = memory(shared)
	}
	if err != nil {
		c.Close()
		for _, f := range far {
			f.Close()
		}
		return nil, nil, err
	}
	c.up, c.down = halves(c.mapping)
	c.link = wordAt(c.mapping, linkAt)
	c.alive.Store(true)
	c.pump.Go(c.listen)
	return c, far, nil
}

// listen passes the bell on to the guest's card.
func (c *Card) listen() {
	var b [8]byte
	for {
		if _, err := c.bell.Read(b[:]); err != nil {
			return
		}
		c.mu.Lock()
		wake, room := c.wake, c.room
		c.mu.Unlock()
		if wake != nil {
			wake()
			if c.starved.Swap(false) {
				room()
			}
		}
	}
}

// Up implements [network.Network].
func (c *Card) Up(takes network.Abilities, wake, room func()) {
	c.mu.Lock()
	c.wake, c.room = wake, room
	c.count += linkCount
	c.link.Store(c.count | linkUp | uint64(takes))
	c.mu.Unlock()
	ring(c.far)
}

// Down implements [network.Network].
func (c *Card) Down() {
	c.mu.Lock()
	c.wake, c.room = nil, nil
	c.link.Store(c.count)
	c.mu.Unlock()
	ring(c.far)
}

// Connected tells whether the guest has a driver that uses its card.
func (c *Card) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wake != nil
}

// Send implements [network.Network]. It is called from one goroutine at a time.
func (c *Card) Send(parts [][]byte, size int, o network.Offload) bool {
	if !c.alive.Load() || size > network.MaxFrame {
		c.dropped.Add(1)
		return true
	}
	if !c.up.room(size) {
		c.starved.Store(true)
		if !c.up.room(size) { // the bell may have been heard in between
			return false
		}
	}
	if c.up.put(parts, size, &o) {
		ring(c.far)
	}
	return true
}

// Front implements [network.Network].
func (c *Card) Front() *network.Frame {
	if c.front.ready {
		return &c.front.frame
	}
	if !c.alive.Load() {
		return nil
	}
	ok, err := c.down.get(&c.front.frame)
	if err != nil {
		c.broken.Add(1)
		c.Cut()
	}
	if !ok {
		return nil
	}
	c.front.ready = true
	return &c.front.frame
}

// Pop implements [network.Network].
func (c *Card) Pop() {
	if !c.front.ready {
		return
	}
	c.front.ready = false
	if c.down.done(c.front.frame.Size) {
		ring(c.far)
	}
}

// Cut says that nobody is at the other end any more: what the guest sends is dropped from now on. It may be called from any goroutine.
func (c *Card) Cut() {
	c.alive.Store(false)
	c.mu.Lock()
	room := c.room
	c.mu.Unlock()
	if room != nil {
		room()
	}
}

// Counters calls fn with each counter's name and value.
func (c *Card) Counters(fn func(name string, value uint64)) {
	fn("ring_broken", c.broken.Load())
	fn("ring_dropped", c.dropped.Load())
}

// Close ends the guest's side. No other method may be called at the same time or afterwards.
func (c *Card) Close() error {
	c.alive.Store(false)
	for _, f := range []*os.File{c.bell, c.far} {
		if f != nil {
			f.Close()
		}
	}
	c.pump.Wait()
	if c.mapping == nil {
		return nil
	}
	b := c.mapping
	c.mapping = nil
	return unix.Munmap(b)
}
