// Package rng is the virtio entropy device (virtio 1.2 section 5.4): the host's random numbers, at a bounded rate.
package rng

import (
	"crypto/rand"
	"encoding/gob"
	"sync"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

const (
	queueSize = 64
	// rate and burst bound what a guest may take, in bytes a second and at once: a guest in a loop must not cost the host a CPU.
	rate  = 1 << 20
	burst = 64 << 10
	// most is how much one request gets; the driver sees from the length that it was less than it asked for.
	most = 4 << 10
)

// Device is an entropy device.
type Device struct {
	mu     sync.Mutex
	tokens int // bytes that may be given now
	last   time.Time
	timer  *time.Timer
}

// New makes an entropy device.
func New() *Device { return &Device{tokens: burst, last: time.Now()} }

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.RNG }

// Features implements [virtio.Device]: there are none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes implements [virtio.Device].
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig implements [virtio.Device]: there is none.
func (*Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig implements [virtio.Device].
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements [virtio.Device].
func (*Device) Activate(*virtio.Session) {}

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	for d.may(q) {
		c := q.Pop()
		if c == nil {
			return
		}
		n := 0
		for _, p := range c.Writable {
			p = p[:min(len(p), most-n)]
			rand.Read(p) // never fails (crypto/rand since Go 1.24)
			n += len(p)
		}
		d.spend(n)
		q.Push(c, uint64(n))
	}
}

// may tells whether there is something to give, and otherwise has q served again when there is.
func (d *Device) may(q *virtio.Queue) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if gain := int(min(now.Sub(d.last), time.Second) * rate / time.Second); gain > 0 {
		d.tokens = min(burst, d.tokens+gain)
		d.last = now
	}
	if d.tokens > 0 {
		return true
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer = time.AfterFunc(time.Duration(1-d.tokens)*time.Second/rate+time.Millisecond, q.Wake)
	return false
}

func (d *Device) spend(n int) {
	d.mu.Lock()
	d.tokens -= n
	d.mu.Unlock()
}

// Reset implements [virtio.Device].
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
}

// Save implements [virtio.Device]: there is nothing to keep.
func (*Device) Save(*gob.Encoder) error { return nil }

// Load implements [virtio.Device].
func (*Device) Load(*gob.Decoder) error { return nil }
