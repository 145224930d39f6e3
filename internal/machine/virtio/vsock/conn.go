package vsock

import (
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/fifo"
)

// conn is a stream; it implements [net.Conn] and CloseWrite. The device's mutex guards all of it.
type conn struct {
	d       *Device
	key     key
	changed sync.Cond

	rx, tx  fifo.Bytes
	dialing bool   // the guest has not answered yet
	wants   uint16 // packets without data to send, a bit an op
	queued  bool   // in the device's output

	peerAlloc, peerFwd uint32 // the guest's credit: its buffer, and what it took out of it
	txCount            uint32 // data sent
	asked              bool   // for more credit
	fwdCount, toldFwd  uint32 // what Read took, and what the guest knows of it

	peerFlags uint32 // the guest's shutdown
	flags     uint32 // ours, to be sent after the last byte
	flagsSent uint32
	closed    bool  // Close was called
	err       error // the connection is gone
	timer     *time.Timer

	readBy, writeBy deadline
}

// newConn makes a connection that the device knows.
func (d *Device) newConn(k key) *conn {
	c := &conn{d: d, key: k}
	c.changed.L = &d.mu
	d.conns[k] = c
	return c
}

// receive acts on a packet of this connection; its data is what is left of chain.
func (c *conn) receive(h *header, chain *virtio.Chain) {
	c.credit(h)
	switch {
	case h.op == opRST:
		c.gone(c.resetError())
	case c.dialing && h.op == opResponse:
		c.dialing = false
	case c.dialing || h.op == opResponse || h.op == opRequest:
		c.abort(errViolation)
	case h.op == opRW:
		c.data(h, chain)
	case h.op == opShutdown:
		if c.peerFlags |= h.flags & (noReceive | noSend); c.peerFlags == noReceive|noSend {
			// All that the guest sent is in rx: the answer to a whole shutdown is a reset (virtio 1.2 section 5.10.6.6).
			c.abort(syscall.EPIPE)
		} else if c.peerFlags&noReceive != 0 {
			c.tx = fifo.Bytes{}
		}
	case h.op == opCreditRequest:
		c.want(opCreditUpdate)
	case h.op != opCreditUpdate:
		c.abort(errViolation)
	}
	c.changed.Broadcast()
}

// resetError is what a reset means where it happens.
func (c *conn) resetError() error {
	switch {
	case c.dialing:
		return syscall.ECONNREFUSED
	case c.closed || c.peerFlags&noSend != 0:
		return syscall.EPIPE
	}
	return syscall.ECONNRESET
}

// data takes the guest's bytes, which its credit must cover.
func (c *conn) data(h *header, chain *virtio.Chain) {
	if c.closed {
		return
	}
	if uint64(h.length)+uint64(c.rx.Len()) > bufAlloc || c.peerFlags&noSend != 0 {
		c.abort(errViolation)
		return
	}
	left := int(h.length)
	for _, b := range chain.Readable {
		b = b[:min(len(b), left)]
		c.rx.Write(b)
		left -= len(b)
	}
}

// credit takes what every packet says of the guest's buffer.
func (c *conn) credit(h *header) {
	if h.bufAlloc != c.peerAlloc || h.fwdCount != c.peerFwd {
		c.asked = false
	}
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCount
	c.enqueue()
}

// room is how much the guest can take. A guest may shrink its buffer below what is in it.
func (c *conn) room() uint32 {
	if used := c.txCount - c.peerFwd; used < c.peerAlloc {
		return c.peerAlloc - used
	}
	return 0
}

// want has a packet without data sent.
func (c *conn) want(op uint16) {
	c.wants |= 1 << op
	c.enqueue()
}

// enqueue puts the connection in line if it has something to send.
func (c *conn) enqueue() {
	if c.sends() && !c.queued {
		c.queued = true
		c.d.output = append(c.d.output, c)
	}
	if c.queued {
		c.d.wake(rxQueue)
	}
}

// sends tells whether next would give a packet.
func (c *conn) sends() bool { return c.op() != 0 }

// op is what is to be sent now, or 0. The order matters: nothing comes before the first packet.
func (c *conn) op() uint16 {
	for _, op := range []uint16{opRequest, opResponse, opCreditUpdate} {
		if c.wants&(1<<op) != 0 {
			return op
		}
	}
	switch {
	case c.dialing || c.err != nil:
		return 0
	case c.tx.Len() > 0 && c.room() > 0:
		return opRW
	case c.tx.Len() > 0 && !c.asked:
		return opCreditRequest
	case c.tx.Len() == 0 && c.flags != c.flagsSent:
		return opShutdown
	}
	return 0
}

// next is the packet to send, with at most n bytes of data. The data stays in tx until sent.
func (c *conn) next(n uint64) (header, []byte) {
	op := c.op()
	c.wants &^= 1 << op
	h := header{
		srcCID: HostCID, dstCID: c.d.cid, srcPort: c.key.host, dstPort: c.key.guest,
		kind: typeStream, op: op, bufAlloc: bufAlloc, fwdCount: c.fwdCount,
	}
	c.toldFwd = c.fwdCount
	switch op {
	case opRW:
		h.length = uint32(min(n, uint64(c.tx.Len()), uint64(c.room()), maxPacket))
		return h, c.tx.Peek()[:h.length]
	case opCreditRequest:
		c.asked = true
	case opShutdown:
		h.flags, c.flagsSent = c.flags, c.flags
	}
	return h, nil
}

// sent drops the n bytes that went out, and puts the connection at the line's end if it has more.
func (c *conn) sent(n int) {
	c.tx.Drop(n)
	c.txCount += uint32(n)
	c.queued = false
	c.enqueue()
	if n > 0 {
		c.changed.Broadcast()
	}
}

// abort ends the connection with a reset to the guest.
func (c *conn) abort(err error) {
	if c.err != nil {
		return
	}
	if c.wants&(1<<opRequest) == 0 { // else the guest never heard of it
		c.d.reset(c.key.host, c.key.guest, typeStream)
	}
	c.gone(err)
}

// gone ends the connection: its ports are free again, and what Read did not take yet stays for it.
func (c *conn) gone(err error) {
	if c.err != nil {
		return
	}
	c.err, c.wants = err, 0
	c.tx = fifo.Bytes{}
	if c.queued {
		c.queued = false
		c.d.output = slices.DeleteFunc(c.d.output, func(o *conn) bool { return o == c })
	}
	if c.closed {
		c.rx = fifo.Bytes{}
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	delete(c.d.conns, c.key)
	c.changed.Broadcast()
}

// Read implements [net.Conn].
func (c *conn) Read(p []byte) (int, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.readBy.over():
			return 0, c.opError("read", errDeadline)
		case c.rx.Len() > 0 && len(p) > 0:
			n := c.rx.Read(p)
			c.fwdCount += uint32(n)
			if c.err == nil && c.fwdCount-c.toldFwd >= bufAlloc/2 {
				c.want(opCreditUpdate)
			}
			return n, nil
		case len(p) == 0:
			return 0, nil
		case c.peerFlags&noSend != 0:
			return 0, io.EOF
		case c.err != nil:
			return 0, c.opError("read", c.err)
		}
		c.changed.Wait()
	}
}

// Write implements [net.Conn].
func (c *conn) Write(p []byte) (n int, err error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for {
		switch {
		case c.closed:
			return n, c.opError("write", net.ErrClosed)
		case c.writeBy.over():
			return n, c.opError("write", errDeadline)
		case c.err != nil:
			return n, c.opError("write", c.err)
		case c.flags&noSend != 0 || c.peerFlags&noReceive != 0:
			return n, c.opError("write", syscall.EPIPE)
		case len(p) == 0:
			return n, nil
		case c.tx.Len() < bufAlloc:
			k := min(len(p), bufAlloc-c.tx.Len())
			c.tx.Write(p[:k])
			n, p = n+k, p[k:]
			c.enqueue()
			continue
		}
		c.changed.Wait()
	}
}

// CloseWrite tells the guest, after what was written, that nothing more comes.
func (c *conn) CloseWrite() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.flags |= noSend
	c.enqueue()
	c.changed.Broadcast()
	return nil
}

// Close implements [net.Conn]. What was written is still sent, for a few seconds if the guest takes it.
func (c *conn) Close() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.readBy.stop()
	c.writeBy.stop()
	c.rx = fifo.Bytes{}
	if c.err == nil {
		c.flags = noReceive | noSend
		c.timer = time.AfterFunc(linger, func() {
			c.d.mu.Lock()
			c.abort(net.ErrClosed)
			c.d.mu.Unlock()
		})
		c.enqueue()
	}
	c.changed.Broadcast()
	return nil
}

// LocalAddr implements [net.Conn].
func (c *conn) LocalAddr() net.Addr { return Addr{HostCID, c.key.host} }

// RemoteAddr implements [net.Conn].
func (c *conn) RemoteAddr() net.Addr { return Addr{uint32(c.d.cid), c.key.guest} }

// SetDeadline implements [net.Conn].
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readBy, t) }

// SetWriteDeadline implements [net.Conn].
func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeBy, t) }

func (c *conn) setDeadline(d *deadline, t time.Time) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	d.stop()
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			c.d.mu.Lock()
			c.changed.Broadcast()
			c.d.mu.Unlock()
		})
	}
	c.changed.Broadcast()
	return nil
}

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "vsock", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// deadline is a time at which a wait ends; zero is never.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}
