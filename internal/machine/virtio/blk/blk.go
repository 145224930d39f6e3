// Package blk is the virtio block device (virtio 1.2 section 5.2) on any [Disk].
package blk

import (
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

var le = binary.LittleEndian

// SectorSize is the unit of all sizes and places that the guest gives, whatever the disk's blocks are.
const SectorSize = 512

// ErrUnsupported is returned by a Disk that cannot do what was asked; the guest is told so and does without.
var ErrUnsupported = errors.New("blk: not supported")

// A Disk keeps a block device's bytes. All methods may be called from several goroutines at once, on ranges inside Size.
type Disk interface {
	// Size is in bytes, a multiple of SectorSize, and does not change.
	Size() int64
	ReadOnly() bool
	// ReadAt fills bufs, one after the other, from off. The buffers are guest memory; none is kept.
	ReadAt(bufs [][]byte, off int64) error
	// WriteAt writes bufs, one after the other, at off.
	WriteAt(bufs [][]byte, off int64) error
	// Flush makes what was written last.
	Flush() error
	// Discard says that the guest does not need [off, off+n) any more.
	Discard(off, n int64) error
	// Zero makes [off, off+n) read as zeros, and may give its blocks back if unmap is set.
	Zero(off, n int64, unmap bool) error
	Close() error
}

// Feature bits (virtio 1.2 section 5.2.3).
const (
	FeatureSegMax      uint64 = 1 << 2
	FeatureRO          uint64 = 1 << 5
	FeatureBlkSize     uint64 = 1 << 6
	FeatureFlush       uint64 = 1 << 9
	FeatureConfigWCE   uint64 = 1 << 11
	FeatureMQ          uint64 = 1 << 12
	FeatureDiscard     uint64 = 1 << 13
	FeatureWriteZeroes uint64 = 1 << 14
)

const (
	queueSize = 256
	// segMax leaves room for the request's header and status in the queue, and in one preadv (IOV_MAX is 1024).
	segMax = queueSize - 2
	// maxRange bounds one discard or write-zeroes range, in sectors, and maxRanges how many a request has.
	maxRange  = 1 << 22
	maxRanges = 16
	// inFlight bounds the requests that the host's kernel works on at once, for all queues together.
	inFlight = 32
	idSize   = 20
)

// Offsets in the configuration (virtio 1.2 section 5.2.4).
const (
	cfgCapacity     = 0
	cfgSegMax       = 12
	cfgBlkSize      = 20
	cfgWriteback    = 32
	cfgNumQueues    = 34
	cfgMaxDiscard   = 36
	cfgDiscardSegs  = 40
	cfgDiscardAlign = 44
	cfgMaxZeroes    = 48
	cfgZeroesSegs   = 52
	cfgZeroesUnmap  = 56
	cfgSize         = 60
)

// Device is a block device.
type Device struct {
	disk      Disk
	serial    [idSize]byte
	queues    int
	slots     chan struct{} // a token for each request under way
	writeback atomic.Bool   // written data may stay in the host's cache until a flush
	mu        sync.Mutex    // guards session
	session   *virtio.Session
}

// New makes a block device with the given number of queues (a CPU each serves well) on disk, which it closes at its own Close.
// serial is what the guest reads as the disk's id, 20 bytes at most.
func New(disk Disk, queues int, serial string) *Device {
	d := &Device{disk: disk, queues: max(1, queues), slots: make(chan struct{}, inFlight)}
	copy(d.serial[:], serial)
	d.writeback.Store(true)
	return d
}

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.Block }

// Features implements [virtio.Device].
func (d *Device) Features() uint64 {
	f := FeatureSegMax | FeatureBlkSize | FeatureFlush | FeatureConfigWCE
	if d.queues > 1 {
		f |= FeatureMQ
	}
	if d.disk.ReadOnly() {
		return f | FeatureRO
	}
	return f | FeatureDiscard | FeatureWriteZeroes
}

// QueueSizes implements [virtio.Device].
func (d *Device) QueueSizes() []uint16 {
	s := make([]uint16, d.queues)
	for i := range s {
		s[i] = queueSize
	}
	return s
}

// ReadConfig implements [virtio.Device].
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [cfgSize]byte
	le.PutUint64(b[cfgCapacity:], uint64(d.disk.Size()/SectorSize))
	le.PutUint32(b[cfgSegMax:], segMax)
	le.PutUint32(b[cfgBlkSize:], SectorSize)
	if d.writeback.Load() {
		b[cfgWriteback] = 1
	}
	le.PutUint16(b[cfgNumQueues:], uint16(d.queues))
	le.PutUint32(b[cfgMaxDiscard:], maxRange)
	le.PutUint32(b[cfgDiscardSegs:], maxRanges)
	le.PutUint32(b[cfgDiscardAlign:], 4096/SectorSize)
	le.PutUint32(b[cfgMaxZeroes:], maxRange)
	le.PutUint32(b[cfgZeroesSegs:], maxRanges)
	b[cfgZeroesUnmap] = 1
	virtio.ReadBytes(b[:], off, p)
}

// WriteConfig implements [virtio.Device]: the driver chooses between write-back and write-through.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off != cfgWriteback || len(p) != 1 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil && d.session.Has(FeatureConfigWCE) {
		d.writeback.Store(p[0] != 0)
	}
}

// Activate implements [virtio.Device].
func (d *Device) Activate(s *virtio.Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = s
	// A driver that cannot flush expects each write to last (virtio 1.2 section 5.2.6.2).
	if !s.Has(FeatureFlush) {
		d.writeback.Store(false)
	}
}

// Reset implements [virtio.Device].
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = nil
	d.writeback.Store(true)
}

// Serve implements [virtio.Device]: each request gets a goroutine, as many as there are slots.
func (d *Device) Serve(q *virtio.Queue) {
	for {
		d.slots <- struct{}{}
		c := q.Pop()
		if c == nil {
			<-d.slots
			return
		}
		go func() {
			q.Push(c, d.handle(c))
			<-d.slots
		}()
	}
}

// Close closes the disk.
func (d *Device) Close() error { return d.disk.Close() }

type state struct{ Writeback bool }

// Save implements [virtio.Device].
func (d *Device) Save(enc *gob.Encoder) error { return enc.Encode(state{d.writeback.Load()}) }

// Load implements [virtio.Device].
func (d *Device) Load(dec *gob.Decoder) error {
	var s state
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("blk: %w", err)
	}
	d.writeback.Store(s.Writeback)
	return nil
}

var errBadRequest = errors.New("blk: bad request")

// readFull is io.ReadFull for a chain, where the end is a bad request.
func readFull(c *virtio.Chain, p []byte) error {
	if _, err := io.ReadFull(c, p); err != nil {
		return errBadRequest
	}
	return nil
}
