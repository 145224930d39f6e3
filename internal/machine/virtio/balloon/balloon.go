// Package balloon is the virtio memory balloon (virtio 1.2 section 5.5): by it a guest gives memory back to the host, of its own accord
// (free page reporting) or because it is asked to (the balloon's target).
package balloon

import (
	"encoding/binary"
	"encoding/gob"
	"sync"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/mem"
)

// The queues. The driver numbers the last one by the features (virtio 1.2 section 5.5.2) or, as Linux does (vp_modern_find_vqs), leaves no gap for
// the queue of hints, which is not offered: both numbers are the queue of reports.
const (
	inflateQueue = iota
	deflateQueue
	statsQueue
	reportQueue
	otherReportQueue
	queues
)

// Feature bits (virtio 1.2 section 5.5.3). FeaturePoison is not offered: a driver that poisons free pages does not report them then, because they
// would come back as zeros.
const (
	FeatureStats        uint64 = 1 << 1
	FeatureDeflateOnOOM uint64 = 1 << 2
	FeatureReporting    uint64 = 1 << 5
)

// Fields of the configuration (virtio 1.2 section 5.5.4), in pages of 4 KiB.
const (
	configTarget = 0
	configActual = 4
	configSize   = 8
)

// mostPages bounds the pages that one request may name; Linux names up to 256 (VIRTIO_BALLOON_ARRAY_PFNS_MAX).
const mostPages = 1 << 16

// maxTarget is the largest target: the field has 32 bits.
const maxTarget = 1<<32 - 1

var le = binary.LittleEndian

// Device is a balloon.
type Device struct {
	mu             sync.Mutex // guards what follows
	s              *virtio.Session
	target, actual uint32
	stats          [statistics]uint64
	asked          bool          // the driver is to be asked for new statistics
	fresh          chan struct{} // closed when new ones have come
	counters
}

// New makes a balloon that is empty.
func New() *Device { return &Device{fresh: make(chan struct{})} }

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.Balloon }

// Features implements [virtio.Device].
func (*Device) Features() uint64 { return FeatureStats | FeatureDeflateOnOOM | FeatureReporting }

// QueueSizes implements [virtio.Device].
func (*Device) QueueSizes() []uint16 { return []uint16{128, 128, 8, 64, 64} }

// ReadConfig implements [virtio.Device].
func (d *Device) ReadConfig(off uint64, p []byte) {
	var c [configSize]byte
	d.mu.Lock()
	le.PutUint32(c[configTarget:], d.target)
	le.PutUint32(c[configActual:], d.actual)
	d.mu.Unlock()
	virtio.ReadBytes(c[:], off, p)
}

// WriteConfig implements [virtio.Device]: the driver says how large the balloon is.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off == configActual && len(p) == 4 {
		d.mu.Lock()
		d.actual = le.Uint32(p)
		d.mu.Unlock()
	}
}

// Activate implements [virtio.Device].
func (d *Device) Activate(s *virtio.Session) {
	d.mu.Lock()
	d.s = s
	d.mu.Unlock()
}

// Reset implements [virtio.Device]. What was in the balloon is the guest's again.
func (d *Device) Reset() {
	d.mu.Lock()
	d.s, d.actual, d.asked, d.stats = nil, 0, false, [statistics]uint64{}
	d.mu.Unlock()
}

// SetTarget asks the guest to give n bytes away, in whole pages; 0 gives all back. The guest takes its time, and may keep what it needs.
func (d *Device) SetTarget(n uint64) {
	d.mu.Lock()
	d.target = uint32(min(n/mem.PageSize, maxTarget))
	s := d.s
	d.mu.Unlock()
	if s != nil {
		s.ConfigChanged()
	}
}

// Size is what the guest says that it has given away by SetTarget, in bytes.
func (d *Device) Size() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.actual) * mem.PageSize
}

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	d.mu.Lock()
	ram := d.s.RAM
	d.mu.Unlock()
	for {
		c := q.Pop()
		if c == nil {
			return
		}
		switch q.Index {
		case inflateQueue:
			d.inflate(ram, c)
		case statsQueue:
			if !d.takeStats(c) {
				q.Unpop(c) // it stays with us until the driver is asked for another one
				return
			}
		case reportQueue, otherReportQueue:
			d.report(ram, c)
		}
		q.Push(c, 0)
	}
}

// inflate gives the pages away whose numbers the driver lists.
func (d *Device) inflate(ram *mem.Memory, c *virtio.Chain) {
	var p [1024]byte
	var run, end uint64 // pages [run, end) are to be given away
	for n := 0; n < mostPages; {
		k, _ := c.Read(p[:])
		if k < 4 {
			break
		}
		for i := 0; i+4 <= k; i, n = i+4, n+1 {
			page := uint64(le.Uint32(p[i:]))
			switch {
			case page == end && end > run:
				end++
			case page+1 == run: // Linux gives them away from the top down
				run--
			default:
				d.giveAway(ram, run, end)
				run, end = page, page+1
			}
		}
	}
	d.giveAway(ram, run, end)
}

func (d *Device) giveAway(ram *mem.Memory, run, end uint64) {
	if run < end {
		d.discard(ram, mem.Addr(run*mem.PageSize), (end-run)*mem.PageSize, &d.inflated)
	}
}

// report gives pages back that the guest does not use now. It may use them again as soon as the chain is its own.
func (d *Device) report(ram *mem.Memory, c *virtio.Chain) {
	_, pages := c.Segments()
	for _, p := range pages {
		d.discard(ram, p.Addr, uint64(p.Len), &d.reported)
	}
}

type deviceState struct{ Target, Actual uint32 }

// Save implements [virtio.Device].
func (d *Device) Save(enc *gob.Encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return enc.Encode(deviceState{d.target, d.actual})
}

// Load implements [virtio.Device].
func (d *Device) Load(dec *gob.Decoder) error {
	var s deviceState
	err := dec.Decode(&s)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.target, d.actual = s.Target, s.Actual
	return err
}
