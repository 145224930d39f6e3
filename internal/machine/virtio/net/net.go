// Package net is the virtio network card (virtio 1.2 section 5.1), plugged into any [network.Network].
package net

import (
	"encoding/gob"
	"fmt"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/network"
)

// Feature bits (virtio 1.2 section 5.1.3). "Guest" is what the driver takes, "Host" what we take.
const (
	FeatureSum       uint64 = 1 << 0 // the driver may leave checksums to us
	FeatureGuestSum  uint64 = 1 << 1
	FeatureMTU       uint64 = 1 << 3
	FeatureMAC       uint64 = 1 << 5
	FeatureGuestTSO4 uint64 = 1 << 7
	FeatureGuestTSO6 uint64 = 1 << 8
	FeatureGuestECN  uint64 = 1 << 9
	FeatureHostTSO4  uint64 = 1 << 11
	FeatureHostTSO6  uint64 = 1 << 12
	FeatureHostECN   uint64 = 1 << 13
	FeatureMergeRX   uint64 = 1 << 15 // a frame may lie in several chains
	FeatureStatus    uint64 = 1 << 16

	features = FeatureSum | FeatureGuestSum | FeatureMTU | FeatureMAC | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN |
		FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostECN | FeatureMergeRX | FeatureStatus
)

// The queues.
const (
	rxQueue = 0
	txQueue = 1

	queueSize = 256
)

// Offsets in the configuration (virtio 1.2 section 5.1.4).
const (
	cfgMAC    = 0
	cfgStatus = 6
	cfgMTU    = 10
	cfgSize   = 12

	statusLinkUp = 1
)

// bulk is the size of a frame from which on the driver hears at once that it was sent: who sends much waits for that (Linux's TCP small queues).
// With little, the interrupt is most of what a frame costs the guest, and the buffer is found sent when the next frame goes out or comes in.
const bulk = 4 << 10

// Device is a network card.
type Device struct {
	mac     network.MAC
	network network.Network

	session atomic.Pointer[virtio.Session]
	takes   network.Abilities // the driver's; written before the session's queues are served
	gives   network.Abilities
	merge   bool

	// Of the receive queue's goroutine: the chains that a frame goes to, and what is written to each.
	chains []*virtio.Chain
	filled []uint64

	stats struct{ sent, received, sentBytes, receivedBytes, refused, dropped atomic.Uint64 }
}

// New makes a card with address mac, plugged into n.
func New(mac network.MAC, n network.Network) *Device { return &Device{mac: mac, network: n} }

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.Net }

// Features implements [virtio.Device].
func (*Device) Features() uint64 { return features }

// QueueSizes implements [virtio.Device].
func (*Device) QueueSizes() []uint16 { return []uint16{rxQueue: queueSize, txQueue: queueSize} }

// ReadConfig implements [virtio.Device].
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [cfgSize]byte
	copy(b[cfgMAC:], d.mac[:])
	le.PutUint16(b[cfgStatus:], statusLinkUp)
	le.PutUint16(b[cfgMTU:], network.MTU)
	virtio.ReadBytes(b[:], off, p)
}

// WriteConfig implements [virtio.Device]: nothing can be written.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements [virtio.Device].
func (d *Device) Activate(s *virtio.Session) {
	d.takes = abilities(s, FeatureGuestSum, FeatureGuestTSO4, FeatureGuestTSO6)
	d.gives = abilities(s, FeatureSum, FeatureHostTSO4, FeatureHostTSO6)
	d.merge = s.Has(FeatureMergeRX)
	d.session.Store(s)
	d.network.Up(d.takes, s.Queues[rxQueue].Wake, s.Queues[txQueue].Wake)
}

func abilities(s *virtio.Session, sums, tso4, tso6 uint64) (a network.Abilities) {
	for f, bit := range map[uint64]network.Abilities{sums: network.Sums, tso4: network.CutsTCP4, tso6: network.CutsTCP6} {
		if s.Has(f) {
			a |= bit
		}
	}
	return a
}

// Reset implements [virtio.Device].
func (d *Device) Reset() {
	d.session.Store(nil)
	d.network.Down()
}

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	if q.Index == rxQueue {
		d.receive(q)
	} else {
		d.send(q)
	}
}

// send hands what the driver made available to the network.
func (d *Device) send(q *virtio.Queue) {
	for {
		c := q.Pop()
		if c == nil {
			return
		}
		var h [headerSize]byte
		n, _ := c.Read(h[:])
		size := c.ReadableLen()
		o, err := network.Offload{}, errSum
		if n == headerSize && size >= network.HeaderSize && size <= network.MaxFrame {
			o, err = parseHeader(&h, int(size), d.gives)
		}
		switch {
		case err != nil:
			d.stats.refused.Add(1)
		case !d.network.Send(c.Readable, int(size), o):
			q.Unpop(c)
			return // the network wakes us when it has room
		default:
			d.stats.sent.Add(1)
			d.stats.sentBytes.Add(size)
		}
		if size < bulk {
			q.PushLater(c, 0)
		} else {
			q.Push(c, 0)
		}
	}
}

// receive gives the driver what the network has for it, as far as its buffers go.
func (d *Device) receive(q *virtio.Queue) {
	for {
		f := d.network.Front()
		if f == nil {
			return
		}
		if !d.takes.Takes(f.Offload) || f.Size > network.MaxFrame {
			d.drop()
			continue
		}
		room := d.collect(q, f.Size+headerSize)
		if room < f.Size+headerSize {
			full := len(d.chains) >= q.Size() || len(d.chains) > 0 && (!d.merge || room == 0)
			d.giveBack(q)
			if !full {
				return // the driver's next notify brings us back
			}
			d.drop() // it fits into none of its buffers
			continue
		}
		d.fill(f)
		q.PushAll(d.chains, d.filled)
		d.stats.received.Add(1)
		d.stats.receivedBytes.Add(uint64(f.Size))
		d.network.Pop()
	}
}

func (d *Device) drop() {
	d.stats.dropped.Add(1)
	d.network.Pop()
}

// collect pops chains for size bytes and returns how many they take. The first has room for the header, or is the only one.
func (d *Device) collect(q *virtio.Queue, size int) (room int) {
	d.chains, d.filled = d.chains[:0], d.filled[:0]
	for room < size {
		c := q.Pop()
		if c == nil {
			break
		}
		d.chains = append(d.chains, c)
		n := int(min(c.WritableLen(), uint64(size-room)))
		room += n
		if len(d.chains) == 1 && (n < headerSize || !d.merge) {
			if n < size {
				return 0
			}
			break
		}
	}
	return room
}

func (d *Device) giveBack(q *virtio.Queue) {
	for i := len(d.chains) - 1; i >= 0; i-- {
		q.Unpop(d.chains[i])
	}
	d.chains = d.chains[:0]
}

// fill writes f to the chains.
func (d *Device) fill(f *network.Frame) {
	var h [headerSize]byte
	putHeader(&h, &f.Offload, len(d.chains))
	i := 0
	d.chains[0].Write(h[:])
	for _, p := range f.Parts {
		for len(p) > 0 {
			n, _ := d.chains[i].Write(p)
			if p = p[n:]; len(p) > 0 {
				i++
			}
		}
	}
	for _, c := range d.chains {
		d.filled = append(d.filled, c.Filled())
	}
}

// Counters calls fn with each counter's name and value.
func (d *Device) Counters(fn func(name string, value uint64)) {
	s := &d.stats
	fn("frames_sent", s.sent.Load())
	fn("frames_received", s.received.Load())
	fn("bytes_sent", s.sentBytes.Load())
	fn("bytes_received", s.receivedBytes.Load())
	fn("frames_refused", s.refused.Load())
	fn("frames_dropped", s.dropped.Load())
}

type state struct{ MAC network.MAC }

// Save implements [virtio.Device]. What the network knows of connections is not saved.
func (d *Device) Save(enc *gob.Encoder) error { return enc.Encode(state{d.mac}) }

// Load implements [virtio.Device].
func (d *Device) Load(dec *gob.Decoder) error {
	var s state
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("virtio/net: %w", err)
	}
	d.mac = s.MAC
	return nil
}
