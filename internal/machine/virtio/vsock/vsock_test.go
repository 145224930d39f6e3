package vsock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
)

const (
	guestCID = 3
	all      = ^uint64(0)
	credit   = 4096 // the guest's buffer
)

// guest is the guest's side: it sends raw packets and keeps buffers for the host's.
type guest struct {
	*virtiotest.Driver
	buffers []*virtiotest.Request
}

func start(t testing.TB, dev *Device) *guest {
	t.Helper()
	g := &guest{Driver: virtiotest.New(t, dev).Start(all, 0)}
	g.fill()
	return g
}

func (g *guest) fill() {
	for len(g.buffers) < 8 {
		g.buffers = append(g.buffers, g.Queues[rxQueue].Add(nil, headerSize, 1024))
	}
	g.Queues[rxQueue].Kick()
}

// send sends a packet of a stream from the guest's port to the host's.
func (g *guest) send(h header, data string) {
	g.T.Helper()
	h.srcCID, h.dstCID, h.kind, h.length = guestCID, HostCID, typeStream, uint32(len(data))
	if h.bufAlloc == 0 {
		h.bufAlloc = credit
	}
	out := [][]byte{h.append(nil)}
	if data != "" {
		out = append(out, []byte(data))
	}
	g.Queues[txQueue].Do(out)
}

// next takes the host's next packet.
func (g *guest) next() (header, string) {
	g.T.Helper()
	p := g.Queues[rxQueue].Wait(g.buffers[0]).Answer()
	g.buffers = g.buffers[1:]
	g.fill()
	h := parse((*[headerSize]byte)(p))
	if h.srcCID != HostCID || h.dstCID != guestCID || int(h.length) != len(p)-headerSize {
		g.T.Fatalf("packet %+v with %d bytes", h, len(p)-headerSize)
	}
	return h, string(p[headerSize:])
}

func (g *guest) expect(op uint16, data string) header {
	g.T.Helper()
	h, got := g.next()
	if h.op != op || got != data {
		g.T.Fatalf("packet of op %d with %q, want op %d with %q", h.op, got, op, data)
	}
	return h
}

// quiet checks that the host sends nothing.
func (g *guest) quiet() {
	g.T.Helper()
	g.Bus.Pause()
	g.Bus.Resume()
	if g.Queues[rxQueue].Poll(); g.buffers[0].Done {
		h, data := g.next()
		g.T.Errorf("unexpected packet %+v %q", h, data)
	}
}

const hostPort, guestPort = 5000, 77

var to = header{srcPort: guestPort, dstPort: hostPort}

func with(h header, op uint16) header { h.op = op; return h }

// connect makes a connection from the guest to a listener.
func connect(t testing.TB, g *guest, l net.Listener, port uint32) net.Conn {
	t.Helper()
	g.send(header{srcPort: port, dstPort: l.Addr().(Addr).Port, op: opRequest}, "")
	if h := g.expect(opResponse, ""); h.bufAlloc != bufAlloc {
		t.Errorf("credit %d", h.bufAlloc)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func listen(t testing.TB, dev *Device) net.Listener {
	t.Helper()
	l, err := dev.Listen(hostPort)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func readN(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func TestGuestConnectsToHost(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	if v := g.Read(g.Config, 8); v != guestCID {
		t.Errorf("guest_cid %d", v)
	}
	c := connect(t, g, listen(t, dev), guestPort)
	if c.LocalAddr().String() != "2:5000" || c.RemoteAddr().String() != "3:77" {
		t.Errorf("from %v to %v", c.RemoteAddr(), c.LocalAddr())
	}
	g.send(with(to, opRW), "hello")
	readN(t, c, "hello")
	if _, err := c.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	if h := g.expect(opRW, "hi"); h.fwdCount != 5 || h.srcPort != hostPort || h.dstPort != guestPort {
		t.Errorf("%+v", h)
	}
	// The guest closes: what it sent is still there, then comes the end.
	g.send(with(to, opRW), "bye")
	h := with(to, opShutdown)
	h.flags = noSend | noReceive
	g.send(h, "")
	g.expect(opRST, "")
	readN(t, c, "bye")
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read: %d, %v; want EOF", n, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v; want EPIPE", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	g.quiet()
}

func TestHostConnectsToGuest(t *testing.T) {
	dev := New(guestCID)
	type result struct {
		c   net.Conn
		err error
	}
	dial := func() chan result {
		ch := make(chan result, 1)
		go func() {
			c, err := dev.Dial(context.Background(), guestPort)
			ch <- result{c, err}
		}()
		return ch
	}
	early := dial() // before there is a driver
	g := start(t, dev)
	h := g.expect(opRequest, "")
	g.send(header{srcPort: guestPort, dstPort: h.srcPort, op: opResponse}, "")
	r := <-early
	if r.err != nil {
		t.Fatal(r.err)
	}
	g.send(header{srcPort: guestPort, dstPort: h.srcPort, op: opRW}, "ready")
	readN(t, r.c, "ready")

	refused := dial()
	h2 := g.expect(opRequest, "")
	if h2.srcPort == h.srcPort {
		t.Error("two connections from one port")
	}
	g.send(header{srcPort: guestPort, dstPort: h2.srcPort, op: opRST}, "")
	if r := <-refused; !errors.Is(r.err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v; want ECONNREFUSED", r.err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := dev.Dial(ctx, guestPort)
		ended <- err
	}()
	g.expect(opRequest, "")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v; want canceled", err)
	}
	g.expect(opRST, "")
}

func TestNobodyListens(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	g.send(with(to, opRequest), "")
	g.expect(opRST, "")
	g.send(with(to, opRW), "data of no connection")
	g.expect(opRST, "")
	g.send(with(to, opRST), "")
	g.quiet()
	l := listen(t, dev)
	if _, err := dev.Listen(hostPort); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	g.send(with(to, opRequest), "")
	g.expect(opResponse, "")
	l.Close() // with a connection that nobody accepted
	g.expect(opRST, "")
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}

func TestHostKeepsToTheGuestsCredit(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	c := connect(t, g, listen(t, dev), guestPort)
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*credit/16)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for len(got) < credit {
		_, p := g.next()
		got = append(got, p...)
	}
	g.expect(opCreditRequest, "")
	g.quiet()
	h := with(to, opCreditUpdate)
	h.fwdCount = 100
	g.send(h, "")
	_, p := g.next()
	if got = append(got, p...); len(p) != 100 {
		t.Errorf("%d bytes for a credit of 100", len(p))
	}
	g.expect(opCreditRequest, "")
	h.bufAlloc, h.fwdCount = 10, 100 // shrunk below what is under way
	g.send(h, "")
	g.expect(opCreditRequest, "")
	h.bufAlloc, h.fwdCount = 1<<20, uint32(len(got))
	g.send(h, "")
	for len(got) < len(data) {
		_, p := g.next()
		got = append(got, p...)
	}
	if !bytes.Equal(got, data) {
		t.Error("the bytes differ")
	}
}

func TestGuestIsToldOfRoomAndHeldToIt(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	c := connect(t, g, listen(t, dev), guestPort)
	chunk := string(bytes.Repeat([]byte("x"), 16<<10))
	for range bufAlloc / len(chunk) {
		g.send(with(to, opRW), chunk)
	}
	g.quiet()
	for range bufAlloc / len(chunk) / 2 {
		readN(t, c, chunk)
	}
	if h := g.expect(opCreditUpdate, ""); h.fwdCount != bufAlloc/2 {
		t.Errorf("fwd_cnt %d, want %d", h.fwdCount, bufAlloc/2)
	}
	g.send(with(to, opCreditRequest), "")
	g.expect(opCreditUpdate, "")
	for range bufAlloc / len(chunk) / 2 {
		g.send(with(to, opRW), chunk)
	}
	g.send(with(to, opRW), "too much")
	g.expect(opRST, "")
	if _, err := c.Write([]byte("x")); !errors.Is(err, errViolation) {
		t.Errorf("write: %v", err)
	}
}

func TestHalfClose(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	c := connect(t, g, listen(t, dev), guestPort)
	if _, err := c.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	g.expect(opRW, "request")
	if h := g.expect(opShutdown, ""); h.flags != noSend {
		t.Errorf("flags %d", h.flags)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v", err)
	}
	g.send(with(to, opRW), "answer")
	h := with(to, opShutdown)
	h.flags = noSend
	g.send(h, "")
	if b, err := io.ReadAll(c); string(b) != "answer" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()
	if h := g.expect(opShutdown, ""); h.flags != noSend|noReceive {
		t.Errorf("flags %d", h.flags)
	}
	g.send(with(to, opRST), "")
	if n := count(dev); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

func count(dev *Device) int {
	dev.mu.Lock()
	defer dev.mu.Unlock()
	return len(dev.conns)
}

func TestCloseSendsWhatWasWrittenFirst(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	c := connect(t, g, listen(t, dev), guestPort)
	c.Write(bytes.Repeat([]byte("x"), 2000))
	c.Close()
	n := 0
	for n < 2000 {
		_, p := g.next()
		n += len(p)
	}
	g.expect(opShutdown, "")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	c := connect(t, g, listen(t, dev), guestPort)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	g.send(with(to, opRW), "x")
	readN(t, c, "x")
	c.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Write(make([]byte, 2*bufAlloc)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
}

func TestHundredsOfConnections(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	l := listen(t, dev)
	conns := map[uint32]net.Conn{}
	for p := range uint32(300) {
		conns[p] = connect(t, g, l, p)
	}
	for p, c := range conns {
		g.send(header{srcPort: p, dstPort: hostPort, op: opRW}, "ping")
		readN(t, c, "ping")
		c.Write([]byte("pong"))
	}
	seen := map[uint32]bool{}
	for range conns {
		seen[g.expect(opRW, "pong").dstPort] = true
	}
	if len(seen) != len(conns) {
		t.Errorf("%d connections answered, want %d", len(seen), len(conns))
	}
}

func TestHostilePeersAreBounded(t *testing.T) {
	dev := New(guestCID)
	d := virtiotest.New(t, dev).Start(all, 0)
	g := &guest{Driver: d} // gives no buffers
	listen(t, dev)
	for i := range uint32(3 * maxReplies) { // connections that die before their answer is sent
		g.send(header{srcPort: i, dstPort: hostPort, op: opRequest}, "")
		g.send(header{srcPort: i, dstPort: hostPort, op: opRST}, "")
		if dev.queuedReplies() >= maxReplies-1 {
			break
		}
	}
	tx := d.Queues[txQueue]
	for i := range 2 * maxReplies { // packets of no connection
		tx.PollHostile()
		if !tx.Room(1) {
			break
		}
		h := header{srcCID: guestCID, dstCID: HostCID, srcPort: uint32(i), op: opRW, kind: typeStream}
		tx.Add([][]byte{h.append(nil)})
		tx.Notify()
	}
	d.Bus.Pause()
	if len(dev.replies) > maxReplies || len(dev.output) > maxConns || len(dev.conns) > maxConns {
		t.Errorf("%d replies, %d in line, %d connections", len(dev.replies), len(dev.output), len(dev.conns))
	}
	d.Bus.Resume()
	// It goes on when there are buffers.
	g.fill()
	for range maxReplies {
		g.next()
	}
}

func (d *Device) queuedReplies() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.replies)
}

func TestPacketsFromOthersAreDropped(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	listen(t, dev)
	for _, h := range []header{
		{srcCID: 9, dstCID: HostCID, kind: typeStream, op: opRequest, dstPort: hostPort},
		{srcCID: guestCID, dstCID: 9, kind: typeStream, op: opRequest, dstPort: hostPort},
		{srcCID: guestCID, dstCID: HostCID, kind: typeStream, op: opRequest, dstPort: hostPort, length: 100}, // longer than it is
	} {
		g.Queues[txQueue].Do([][]byte{h.append(nil)})
	}
	g.Queues[txQueue].Do([][]byte{{1, 2, 3}})
	g.quiet()
	h := header{srcCID: guestCID, dstCID: HostCID, kind: 2, op: opRequest, dstPort: hostPort}
	g.Queues[txQueue].Do([][]byte{h.append(nil)})
	if h := g.expect(opRST, ""); h.kind != 2 {
		t.Errorf("reset of type %d", h.kind)
	}
}

func TestResetAndMigrationEndConnections(t *testing.T) {
	dev := New(guestCID)
	g := start(t, dev)
	c := connect(t, g, listen(t, dev), guestPort)
	g.Start(all, 0)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after the guest's reset: %v", err)
	}
	ev := g.Queues[evQueue].Add(nil, 4)
	g.Queues[evQueue].Kick()
	dev2 := New(guestCID)
	g2 := &guest{Driver: g.Migrate(dev2)}
	if p := g2.Queues[evQueue].Wait(ev).Answer(); !bytes.Equal(p, make([]byte, 4)) {
		t.Errorf("event %v, want a transport reset", p)
	}
	g2.fill()
	connect(t, g2, listen(t, dev2), guestPort)
}

func FuzzDriver(f *testing.F) {
	for _, op := range []uint16{opRequest, opRW, opShutdown} {
		h := header{srcCID: guestCID, dstCID: HostCID, srcPort: 1, dstPort: hostPort, kind: typeStream, op: op, length: 4, bufAlloc: 100}
		f.Add(append([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 1, 4, headerSize + 4}, h.append(nil)...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		dev := New(guestCID)
		l := listen(t, dev)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.CopyN(c, c, 4096)
					c.Close()
				}()
			}
		}()
		virtiotest.Garbage(t, dev, in)
	})
}

// FuzzPackets makes sense of in as packets of two connections.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{0, opRequest, 0, 0, opRW, 50, 1, opRequest, 0, 0, opShutdown, 1, 0, opShutdown, 2, 1, opRST, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		dev := New(guestCID)
		l := listen(t, dev)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.CopyN(c, c, 300)
					c.Close()
				}()
			}
		}()
		g := start(t, dev)
		for n := 0; len(in) >= 3 && n < 100; in, n = in[3:], n+1 {
			h := header{srcPort: uint32(in[0] & 1), dstPort: hostPort, op: uint16(in[1]), flags: uint32(in[2]), fwdCount: uint32(in[2])}
			h.bufAlloc = uint32(in[0]) << 4
			data := ""
			if h.op == opRW {
				data = string(make([]byte, in[2]))
			}
			g.send(h, data)
			for g.Queues[rxQueue].Poll(); g.buffers[0].Done; g.Queues[rxQueue].Poll() {
				g.next()
			}
		}
		if n := count(dev); n > 2 {
			t.Errorf("%d connections of two ports", n)
		}
	})
}
