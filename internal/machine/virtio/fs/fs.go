// Package fs is the virtio file system device (virtio 1.2 section 5.11) in front of a FUSE server.
package fs

import (
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

// A Server answers FUSE requests, several at once and in any order.
type Server interface {
	// Start says whom to tell of answers. It comes before the first Submit.
	Start(answered Answered)
	// Submit has the request in c served. It does not wait for that. After an error there will be no answer.
	Submit(slot uint32, c *virtio.Chain) error
	Close() error
}

// Answered says that n bytes of the writable part of the chain that was submitted as slot are its answer; 0 where the request wants none, Failed where
// there will be no answer. It may be called from any goroutine.
type Answered func(slot uint32, n uint64)

// Failed is told of a request that the server could not serve.
const Failed = ^uint64(0)

// tagSize is the size of the tag in the configuration.
const tagSize = 36

// Queues: the first carries FORGET and INTERRUPT, the others requests (virtio 1.2 section 5.11.2).
const (
	queues    = 2
	queueSize = 256
	// slots are how many requests are with the server at once.
	slots = 16
)

// Device is a file system device.
type Device struct {
	config [tagSize + 4]byte
	server Server
	free   chan uint32 // slots without a request

	mu   sync.Mutex // guards jobs
	jobs [slots]job
}

// A job is a request that is with the server.
type job struct {
	q *virtio.Queue
	c *virtio.Chain
}

// New makes a device that the guest mounts by tag. It owns server.
func New(tag string, server Server) (*Device, error) {
	if len(tag) == 0 || len(tag) > tagSize {
		return nil, fmt.Errorf("virtio/fs: tag %q is not 1 to %d bytes long", tag, tagSize)
	}
	d := &Device{server: server, free: make(chan uint32, slots)}
	copy(d.config[:], tag)
	d.config[tagSize] = queues - 1
	for slot := range uint32(slots) {
		d.free <- slot
	}
	server.Start(d.answered)
	return d, nil
}

// Close closes the server. The device must be reset.
func (d *Device) Close() error { return d.server.Close() }

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	for {
		slot := <-d.free
		c := q.Pop()
		if c == nil {
			d.free <- slot
			return
		}
		d.mu.Lock()
		d.jobs[slot] = job{q, c}
		d.mu.Unlock()
		if err := d.server.Submit(slot, c); err != nil {
			d.answered(slot, Failed)
		}
	}
}

// answered gives a request back to the driver. What the server says is checked: it may be another process, that has been taken over.
func (d *Device) answered(slot uint32, n uint64) {
	if slot >= slots {
		return
	}
	d.mu.Lock()
	j := d.jobs[slot]
	d.jobs[slot] = job{}
	d.mu.Unlock()
	if j.c == nil {
		return
	}
	if n == Failed {
		n = fail(j.c)
	} else {
		n = min(n, j.c.WritableLen())
	}
	j.q.Push(j.c, n)
	d.free <- slot
}

// Of struct fuse_in_header and fuse_out_header (linux/fuse.h).
const (
	outHeader = 16
	offUnique = 8
)

// fail answers a request with EIO, where it wants an answer.
func fail(c *virtio.Chain) uint64 {
	var head, answer [outHeader]byte
	if n, _ := c.Read(head[:]); n < len(head) || c.WritableLen() < outHeader {
		return 0
	}
	le := binary.LittleEndian
	le.PutUint32(answer[:], outHeader)
	le.PutUint32(answer[4:], uint32(1<<32-int64(unix.EIO)))
	copy(answer[offUnique:], head[offUnique:])
	c.Write(answer[:])
	return c.Filled()
}

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.FS }

// Features implements [virtio.Device].
func (*Device) Features() uint64 { return 0 }

// QueueSizes implements [virtio.Device].
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// ReadConfig implements [virtio.Device].
func (d *Device) ReadConfig(off uint64, p []byte) { virtio.ReadBytes(d.config[:], off, p) }

// WriteConfig implements [virtio.Device]: there is nothing to write.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements [virtio.Device].
func (*Device) Activate(*virtio.Session) {}

// Reset implements [virtio.Device].
func (*Device) Reset() {}

type state struct{}

// Save implements [virtio.Device]. What the guest has looked up is not carried over yet: a guest restored elsewhere gets ESTALE.
func (*Device) Save(enc *gob.Encoder) error { return enc.Encode(state{}) }

// Load implements [virtio.Device].
func (*Device) Load(dec *gob.Decoder) error { return dec.Decode(&state{}) }
