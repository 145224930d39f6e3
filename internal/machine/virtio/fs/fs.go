// Package fs is the virtio file system device (virtio 1.2 section 5.11) in front of a FUSE server.
package fs

import (
	"encoding/gob"
	"errors"
	"fmt"
	"sync"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

// A Server answers FUSE requests.
type Server interface {
	// Confine takes from the calling thread the rights that Handle does not need. Each of the device's threads calls it once.
	Confine() error
	// Handle serves the request in in and returns how many bytes of out are its answer; 0 where the request wants none.
	Handle(in, out [][]byte) int
	Close() error
}

// tagSize is the size of the tag in the configuration.
const tagSize = 36

// Queues: the first carries FORGET and INTERRUPT, the others requests (virtio 1.2 section 5.11.2).
const (
	queues    = 2
	queueSize = 256
	// workers serve requests at once; each is a thread of the host.
	workers = 6
)

// Device is a file system device.
type Device struct {
	config [tagSize + 4]byte
	server Server
	work   chan job
	done   sync.WaitGroup
	slots  chan struct{}
}

type job struct {
	q *virtio.Queue
	c *virtio.Chain
}

// New makes a device that the guest mounts by tag. It owns server.
func New(tag string, server Server) (*Device, error) {
	if len(tag) == 0 || len(tag) > tagSize {
		return nil, fmt.Errorf("virtio/fs: tag %q is not 1 to %d bytes long", tag, tagSize)
	}
	d := &Device{server: server, work: make(chan job), slots: make(chan struct{}, workers)}
	copy(d.config[:], tag)
	d.config[tagSize] = queues - 1
	confined := make(chan error, workers)
	for range workers {
		d.done.Go(func() { d.worker(confined) })
	}
	var errs []error
	for range workers {
		errs = append(errs, <-confined)
	}
	if err := errors.Join(errs...); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// worker is a thread that serves requests.
func (d *Device) worker(confined chan<- error) {
	err := d.server.Confine()
	confined <- err
	if err != nil {
		return
	}
	for j := range d.work {
		n := d.server.Handle(j.c.Readable, j.c.Writable)
		j.q.Push(j.c, uint64(n))
		<-d.slots
	}
}

// Close ends the workers and closes the server. The device must be reset.
func (d *Device) Close() error {
	close(d.work)
	d.done.Wait()
	return d.server.Close()
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

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	for {
		d.slots <- struct{}{}
		c := q.Pop()
		if c == nil {
			<-d.slots
			return
		}
		d.work <- job{q, c}
	}
}

type state struct{}

// Save implements [virtio.Device]. What the guest has looked up is not carried over yet: a guest restored elsewhere gets ESTALE.
func (*Device) Save(enc *gob.Encoder) error { return enc.Encode(state{}) }

// Load implements [virtio.Device].
func (*Device) Load(dec *gob.Decoder) error { return dec.Decode(&state{}) }
