// Package vsock is the virtio socket device (virtio 1.2 section 5.10): streams between programs on the host and in the guest.
package vsock

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

// HostCID is the host's address.
const HostCID = 2

const (
	queueSize = 128
	rxQueue   = 0
	txQueue   = 1
	evQueue   = 2

	// bufAlloc is what a connection keeps in each direction; the guest is told it as its credit.
	bufAlloc = 128 << 10
	// maxConns bounds the connections, those that are being closed included, and backlog those that wait for Accept.
	maxConns = 1024
	backlog  = 128
	// maxReplies bounds the resets that wait for buffers; with more the guest's packets are not taken.
	maxReplies = 256
	// maxPacket bounds the data of one packet. It is Linux's VIRTIO_VSOCK_MAX_PKT_BUF_SIZE.
	maxPacket = 64 << 10
	// linger bounds how long a closed connection waits for the guest, as Linux's VSOCK_CLOSE_TIMEOUT.
	linger = 8 * time.Second

	firstPort = 1024 // of the host's ends of Dial
)

// Device is a socket device. Its locks are one mutex: what it guards is little work.
type Device struct {
	cid uint64

	mu        sync.Mutex // guards all below, and all of conn and Listener
	session   *virtio.Session
	conns     map[key]*conn
	listeners map[uint32]*listener
	output    []*conn  // those that have something to send, in turn
	replies   []header // resets of what is no connection
	port      uint32   // the last of Dial's
	restored  bool     // the guest must be told that its connections are gone
	closed    bool
}

// key names a connection: ports of host and guest.
type key struct{ host, guest uint32 }

// New makes a socket device for a guest with address cid, 3 or more.
func New(cid uint32) *Device {
	if cid <= HostCID || cid == 1<<32-1 {
		panic(fmt.Sprintf("BUG: vsock: guest CID %d", cid))
	}
	return &Device{cid: uint64(cid), conns: map[key]*conn{}, listeners: map[uint32]*listener{}, port: firstPort}
}

// Dial connects to port of the guest. It waits for the guest's driver to come, and ends with ctx. A guest where nobody listens
// gives ECONNREFUSED.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "vsock", Addr: Addr{uint32(d.cid), port}, Err: err}
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, port uint32) (*conn, error) {
	if d.closed {
		return nil, net.ErrClosed
	}
	if len(d.conns) >= maxConns {
		return nil, syscall.EMFILE
	}
	k := key{d.port, port}
	for d.conns[k] != nil || k.host < firstPort || d.listeners[k.host] != nil {
		k.host++
	}
	d.port = k.host + 1
	c := d.newConn(k)
	c.dialing = true
	c.want(opRequest)
	defer context.AfterFunc(ctx, func() {
		d.mu.Lock()
		c.changed.Broadcast()
		d.mu.Unlock()
	})()
	for c.dialing && c.err == nil {
		if ctx.Err() != nil {
			c.abort(ctx.Err())
			break
		}
		c.changed.Wait()
	}
	if c.err != nil {
		return nil, c.err
	}
	return c, nil
}

// Listen takes connections that the guest makes to port of the host.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := &listener{d: d, port: port}
	l.changed.L = &d.mu
	err := error(nil)
	switch {
	case d.closed:
		err = net.ErrClosed
	case d.listeners[port] != nil:
		err = syscall.EADDRINUSE
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: Addr{HostCID, port}, Err: err}
	}
	d.listeners[port] = l
	return l, nil
}

// Close ends all connections and listeners.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, l := range d.listeners {
		l.close()
	}
	for _, c := range d.conns {
		c.gone(syscall.ECONNRESET)
	}
	return nil
}

// Type implements [virtio.Device].
func (*Device) Type() virtio.Type { return virtio.Vsock }

// Features implements [virtio.Device]: none, which means streams.
func (*Device) Features() uint64 { return 0 }

// QueueSizes implements [virtio.Device].
func (*Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize, queueSize} }

// ReadConfig implements [virtio.Device].
func (d *Device) ReadConfig(off uint64, p []byte) {
	virtio.ReadBytes(le.AppendUint64(nil, d.cid), off, p)
}

// WriteConfig implements [virtio.Device].
func (*Device) WriteConfig(uint64, []byte) {}

// Activate implements [virtio.Device].
func (d *Device) Activate(s *virtio.Session) {
	d.mu.Lock()
	d.session = s
	d.mu.Unlock()
}

// Reset implements [virtio.Device]: all connections are gone, but what the guest has not yet heard of waits for its next driver.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session, d.replies = nil, nil
	for _, c := range d.conns {
		if c.wants&(1<<opRequest) == 0 {
			c.gone(syscall.ECONNRESET)
		}
	}
}

// Serve implements [virtio.Device].
func (d *Device) Serve(q *virtio.Queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch q.Index {
	case rxQueue:
		d.serveRx(q)
	case txQueue:
		d.serveTx(q)
	case evQueue:
		if !d.restored {
			return
		}
		if c := q.Pop(); c != nil {
			_, _ = c.Write(le.AppendUint32(nil, eventTransportReset))
			q.Push(c, c.Filled())
			d.restored = false
		}
	}
}

// serveRx fills the guest's buffers with what is to be sent: resets, then a packet of each connection in turn.
func (d *Device) serveRx(q *virtio.Queue) {
	for {
		for len(d.output) > 0 && !d.output[0].sends() {
			d.output[0].queued = false
			d.output = d.output[1:]
		}
		if len(d.replies) == 0 && len(d.output) == 0 {
			d.output = nil
			return
		}
		c := q.Pop()
		if c == nil {
			return
		}
		if c.WritableLen() < headerSize {
			q.Push(c, 0) // Linux's are 4 KiB and more
			continue
		}
		var b [headerSize]byte
		if len(d.replies) > 0 {
			_, _ = c.Write(d.replies[0].append(b[:0]))
			if d.replies = d.replies[1:]; len(d.replies) == maxReplies/2 {
				d.wake(txQueue)
			}
		} else {
			from := d.output[0]
			d.output = d.output[1:]
			h, data := from.next(c.WritableLen() - headerSize)
			_, _ = c.Write(h.append(b[:0]))
			_, _ = c.Write(data)
			from.sent(len(data))
		}
		q.Push(c, c.Filled())
	}
}

// serveTx takes the guest's packets.
func (d *Device) serveTx(q *virtio.Queue) {
	for len(d.replies) < maxReplies {
		c := q.Pop()
		if c == nil {
			return
		}
		if h, ok := readHeader(c); ok {
			d.receive(&h, c)
		}
		q.Push(c, 0)
	}
}

// receive acts on a packet whose data, h.length bytes, is what is left of c.
func (d *Device) receive(h *header, c *virtio.Chain) {
	if h.srcCID != d.cid || h.dstCID != HostCID {
		return // from or to somebody else: dropped (virtio 1.2 section 5.10.6.4.1)
	}
	k := key{h.dstPort, h.srcPort}
	to := d.conns[k]
	switch {
	case h.kind != typeStream:
		d.reply(h)
	case h.op == opRequest && to == nil:
		d.accept(h, k)
	case to == nil:
		d.reply(h)
	default:
		to.receive(h, c)
	}
}

// reply answers what belongs to no connection with a reset; a reset is never answered.
func (d *Device) reply(h *header) {
	if h.op != opRST {
		d.reset(h.dstPort, h.srcPort, h.kind)
	}
}

// reset sends a reset from port host to port guest. What calls for one is bounded: connections are, and the guest's packets are
// not taken while many resets wait.
func (d *Device) reset(host, guest uint32, kind uint16) {
	d.replies = append(d.replies, header{
		srcCID: HostCID, dstCID: d.cid, srcPort: host, dstPort: guest, kind: kind, op: opRST,
	})
	d.wake(rxQueue)
}

// accept makes a connection of the guest's request where somebody listens.
func (d *Device) accept(h *header, k key) {
	l := d.listeners[k.host]
	if l == nil || len(l.waiting) >= backlog || len(d.conns) >= maxConns {
		d.reply(h)
		return
	}
	c := d.newConn(k)
	c.credit(h)
	c.want(opResponse)
	l.waiting = append(l.waiting, c)
	l.changed.Broadcast()
}

func (d *Device) wake(queue int) {
	if d.session != nil {
		d.session.Queues[queue].Wake()
	}
}

type state struct{ CID uint64 }

// Save implements [virtio.Device]. Connections end at the host's programs and are not carried over.
func (d *Device) Save(enc *gob.Encoder) error { return enc.Encode(state{d.cid}) }

// Load implements [virtio.Device]: the guest is told that its connections are gone (virtio 1.2 section 5.10.6.7).
func (d *Device) Load(dec *gob.Decoder) error {
	var s state
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	if s.CID != d.cid {
		return fmt.Errorf("vsock: state of CID %d, here %d", s.CID, d.cid)
	}
	d.mu.Lock()
	d.restored = true
	d.mu.Unlock()
	return nil
}

// Addr is one end of a connection.
type Addr struct{ CID, Port uint32 }

// Network implements [net.Addr].
func (Addr) Network() string { return "vsock" }

// String implements [net.Addr]: the CID, a colon and the port.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// listener is a [net.Listener] on a port of the host.
type listener struct {
	d       *Device
	port    uint32
	changed sync.Cond
	waiting []*conn
	closed  bool
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	for len(l.waiting) == 0 {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.Addr(), Err: net.ErrClosed}
		}
		l.changed.Wait()
	}
	c := l.waiting[0]
	l.waiting = l.waiting[1:]
	return c, nil
}

// Close implements [net.Listener]; connections that nobody accepted are reset.
func (l *listener) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.close()
	return nil
}

// close is Close with the lock held.
func (l *listener) close() {
	l.closed = true
	delete(l.d.listeners, l.port)
	for _, c := range l.waiting {
		c.abort(net.ErrClosed)
	}
	l.waiting = nil
	l.changed.Broadcast()
}

// Addr implements [net.Listener].
func (l *listener) Addr() net.Addr { return Addr{HostCID, l.port} }

var errDeadline = os.ErrDeadlineExceeded

// errViolation ends a connection whose peer sends more than its credit or what makes no sense.
var errViolation = errors.New("vsock: the guest broke the protocol")
