// Package console is the virtio console device (virtio 1.2 section 5.3): a terminal, and named byte streams to programs in the guest.
package console

import (
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"sync"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

var le = binary.LittleEndian

// Feature bits (virtio 1.2 section 5.3.3).
const (
	FeatureSize      uint64 = 1 << 0
	FeatureMultiport uint64 = 1 << 1
	FeatureEmergency uint64 = 1 << 2
)

// Queues: port 0's two, the control queues, then two a port.
const (
	queueSize   = 128
	controlRx   = 2
	controlTx   = 3
	cfgCols     = 0
	cfgRows     = 2
	cfgMaxPorts = 4
	cfgEmergWr  = 8
	cfgSize     = 12
	maxPorts    = 64
)

// PortConfig describes a port beyond the first.
type PortConfig struct {
	// Name is what the guest sees in /sys/class/virtio-ports/*/name and as /dev/virtio-ports/NAME.
	Name string
	// Console makes the port a terminal (hvc1 and so on) instead of a byte stream.
	Console bool
}

// Device is a console device. Port 0 is a terminal, hvc0 in Linux.
type Device struct {
	ports []*Port

	mu         sync.Mutex // guards all below; after a Port's
	session    *virtio.Session
	cols, rows uint16
	pending    []message // control messages that the guest has no buffer for yet
	sized      bool      // the driver was told to read the size
}

// New makes a console with a terminal as port 0, and the ports that more names. Without any it does not offer MULTIPORT, so that
// the size is told by the configuration; with them it is a control message, whose order of columns and rows Linux
// had against the specification until 5326ab737a47 (v6.15). Without MULTIPORT, Linux drops what is written to port 0
// before its driver has listed the port (drivers/char/virtio_console.c, in_intr); with it, the guest says when it is ready.
func New(more ...PortConfig) *Device {
	if len(more) >= maxPorts {
		panic(fmt.Sprintf("BUG: console: %d ports", len(more)+1))
	}
	d := &Device{}
	for i, c := range append([]PortConfig{{Console: true}}, more...) {
		d.ports = append(d.ports, newPort(d, i, c))
	}
	return d
}

// Port is the host's end of port i.
func (d *Device) Port(i int) *Port { return d.ports[i] }

// Resize tells the guest the terminal's size.
func (d *Device) Resize(cols, rows uint16) {
	d.mu.Lock()
	d.cols, d.rows = cols, rows
	s := d.session
	d.mu.Unlock()
	if s == nil {
		return // the driver asks when it comes
	}
	if !s.Has(FeatureMultiport) {
		s.ConfigChanged()
		return
	}
	for _, p := range d.ports {
		p.mu.Lock()
		if p.config.Console && p.ready {
			d.send(d.resize(p.index))
		}
		p.mu.Unlock()
	}
}

// tellSize has the driver read the size at its first output: Linux does so at a change only, once its terminal exists
// (drivers/char/virtio_console.c, config_work_handler).
func (d *Device) tellSize() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.session; s != nil && !d.sized && d.cols != 0 && !s.Has(FeatureMultiport) {
		s.ConfigChanged()
	}
	d.sized = true
}

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.Console }

// Features implements [virtio.Device].
func (d *Device) Features() uint64 {
	f := FeatureSize | FeatureEmergency
	if len(d.ports) > 1 {
		f |= FeatureMultiport
	}
	return f
}

// QueueSizes implements [virtio.Device].
func (d *Device) QueueSizes() []uint16 {
	n := 2
	if len(d.ports) > 1 {
		n += 2 * len(d.ports)
	}
	s := make([]uint16, n)
	for i := range s {
		s[i] = queueSize
	}
	return s
}

// ReadConfig implements [virtio.Device].
func (d *Device) ReadConfig(off uint64, p []byte) {
	var b [cfgSize]byte
	d.mu.Lock()
	le.PutUint16(b[cfgCols:], d.cols)
	le.PutUint16(b[cfgRows:], d.rows)
	d.mu.Unlock()
	le.PutUint32(b[cfgMaxPorts:], uint32(len(d.ports)))
	virtio.ReadBytes(b[:], off, p)
}

// WriteConfig implements [virtio.Device]: a byte to emerg_wr is terminal output that needs no queue.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off == cfgEmergWr {
		d.ports[0].emergency(p[0])
	}
}

// Activate implements [virtio.Device].
func (d *Device) Activate(s *virtio.Session) {
	d.mu.Lock()
	d.session, d.sized = s, false
	d.mu.Unlock()
	for _, p := range d.ports {
		p.activate(s)
	}
}

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	switch i := q.Index; {
	case i == controlRx:
		d.serveControlRx(q)
	case i == controlTx:
		d.serveControlTx(q)
	case i < controlRx:
		d.ports[0].serve(q)
	default:
		d.ports[i/2-1].serve(q)
	}
}

// Reset implements [virtio.Device]. What the guest has written stays readable.
func (d *Device) Reset() {
	for _, p := range d.ports {
		p.reset()
	}
	d.mu.Lock()
	d.session, d.pending = nil, nil
	d.mu.Unlock()
}

// Close ends all ports: Read gives what is left and then io.EOF.
func (d *Device) Close() error {
	for _, p := range d.ports {
		p.end()
	}
	return nil
}

type state struct {
	Cols, Rows uint16
	Pending    [][]byte
	Ports      []portState
}

// Save implements [virtio.Device]: also what is on its way in both directions.
func (d *Device) Save(enc *gob.Encoder) error {
	var s state
	for _, p := range d.ports {
		s.Ports = append(s.Ports, p.state())
	}
	d.mu.Lock()
	s.Cols, s.Rows = d.cols, d.rows
	for _, m := range d.pending {
		s.Pending = append(s.Pending, m)
	}
	d.mu.Unlock()
	return enc.Encode(s)
}

// Load implements [virtio.Device].
func (d *Device) Load(dec *gob.Decoder) error {
	var s state
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if len(s.Ports) != len(d.ports) {
		return fmt.Errorf("console: state of %d ports, here %d", len(s.Ports), len(d.ports))
	}
	if len(s.Pending) > 2*maxPending {
		return errors.New("console: state with too many control messages")
	}
	for i, p := range d.ports {
		p.setState(s.Ports[i])
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cols, d.rows = s.Cols, s.Rows
	for _, m := range s.Pending {
		d.pending = append(d.pending, m)
	}
	return nil
}
