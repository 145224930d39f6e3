package user

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxOpening bounds the guest's connections that are being made.
	maxOpening = 256
	// dialTimeout is how long the host may take for one, and the guest for one of the host's.
	dialTimeout = 20 * time.Second
	// buryTimeout is how long the guest has to acknowledge a connection's end.
	buryTimeout = 10 * time.Second
	// bufferSize is what one frame for the guest carries at most, of Linux's usual segments: with a little more, each full frame would be
	// followed by one of a few bytes.
	bufferSize = 45 * 1448
)

// syns keeps the beginnings of the packets that open connections, for the ICMP error that some of them are answered with.
type syns struct {
	mu  sync.Mutex
	all map[stack.TransportEndpointID]beginning
}

// add notes a SYN. It returns false where it came before, or where there are too many.
func (s *syns) add(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.all[id]; again || len(s.all) >= maxOpening {
		return false
	}
	if s.all == nil {
		s.all = map[stack.TransportEndpointID]beginning{}
	}
	var b beginning
	switch ip := pkt.NetworkHeader().Slice(); {
	case len(ip) >= ip6Header && ip[0]>>4 == 6:
		b.size = copy(b.bytes[:], ip[:ip6Header])
		b.bytes[6] = protoTCP // without extensions
	case len(ip) >= ipHeader:
		b.size = copy(b.bytes[:], ip[:ipHeader])
		b.bytes[0] = 0x45 // without options
	}
	b.size += copy(b.bytes[b.size:][:8], pkt.TransportHeader().Slice())
	s.all[id] = b
	return true
}

// A beginning is a packet's IP header and 8 bytes.
type beginning struct {
	bytes [ip6Header + 8]byte
	size  int
}

func (s *syns) get(id stack.TransportEndpointID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.all[id]
	return b.bytes[:b.size]
}

func (s *syns) remove(id stack.TransportEndpointID) {
	s.mu.Lock()
	delete(s.all, id)
	s.mu.Unlock()
}

// tcpPacket takes what belongs to no connection. What it refuses the stack answers with a reset.
func (n *Network) tcpPacket(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false
	}
	if !n.stack.syns.add(id, pkt) {
		return true // it will ask again
	}
	n.work.Add(1) // acceptTCP's: syns holds all that the forwarder does, so it will be called
	if !n.stack.tcp.HandlePacket(id, pkt) {
		n.stack.syns.remove(id)
		n.work.Done()
		return false
	}
	return true
}

// acceptTCP connects the guest to where it wants, on a goroutine of the connection's own.
func (n *Network) acceptTCP(r *tcp.ForwarderRequest) {
	defer n.work.Done()
	if g, host := n.open(r); g != nil {
		n.connected(g, host)
	}
}

// open makes both halves of a connection of the guest's, or tells it why there is none.
func (n *Network) open(r *tcp.ForwarderRequest) (*guestEnd, *net.TCPConn) {
	id := r.ID()
	defer n.stack.syns.remove(id) // after Complete
	host, err := n.dial(netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort))
	if err != nil {
		n.counts.refused.Add(1)
		code, ok := unreachableCode(err)
		if ok {
			n.unreachable(n.stack.syns.get(id), code)
		}
		r.Complete(!ok)
		return nil, nil
	}
	g := &guestEnd{}
	ep, terr := r.CreateEndpoint(&g.wq)
	r.Complete(false)
	if terr != nil {
		if host != nil {
			breakOff(host)
			host.Close()
		}
		n.giveSlot()
		return nil, nil
	}
	g.Endpoint = ep
	return g, host
}

var errTooMany = errors.New("too many connections")

// dial makes the host's half, and takes a slot. The connection is nil for the name server.
func (n *Network) dial(to netip.AddrPort) (*net.TCPConn, error) {
	select {
	case n.tcp <- struct{}{}:
	default:
		n.say("tcp", "the guest wants more connections than it may have: refused")
		return nil, errTooMany
	}
	if isDNS(to.Addr()) {
		if to.Port() == dnsPort {
			return nil, nil
		}
		n.giveSlot()
		return nil, errTooMany
	}
	c, err := dialer.DialContext(n.ctx, "tcp", netip.AddrPortFrom(outside(to.Addr()), to.Port()).String())
	if err != nil {
		n.giveSlot()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (n *Network) giveSlot() { <-n.tcp }

// connected serves a connection until both sides have ended it, and gives its slot back.
func (n *Network) connected(g *guestEnd, host *net.TCPConn) {
	defer n.giveSlot()
	o := g.SocketOptions()
	o.SetDelayOption(false)
	for _, b := range buffers {
		if len(n.tcp) <= b.connections {
			o.SetSendBufferSize(int64(b.size), true)
			o.SetReceiveBufferSize(int64(b.size), true)
			break
		}
	}
	if host == nil {
		n.serveDNS(gonet.NewTCPConn(&g.wq, g.Endpoint))
	} else {
		relay(g, host, &n.out)
	}
	g.bury()
}

// dialGuest connects to a port of the guest's, from the gateway.
func (n *Network) dialGuest(ctx context.Context, port uint16) (*guestEnd, error) {
	n.once.Do(n.makeStack)
	if n.stack == nil {
		return nil, net.ErrClosed
	}
	g := &guestEnd{}
	ep, err := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &g.wq)
	if err != nil {
		return nil, errors.New(err.String())
	}
	g.Endpoint = ep
	entry, ch := waiter.NewChannelEntry(waiter.WritableEvents)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	err = ep.Connect(tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(Guest.As4()), Port: port})
	if _, ok := err.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-ch:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return nil, ctx.Err()
		}
	}
	if err != nil {
		ep.Close()
		return nil, errors.New(err.String())
	}
	return g, nil
}

// A guestEnd is the guest's half of a connection.
type guestEnd struct {
	tcpip.Endpoint
	wq waiter.Queue
}

var blocks = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// relay carries bytes both ways until both ends have ended their half, or one of them broke the connection: then so is the other.
func relay(g *guestEnd, host *net.TCPConn, out *queue) {
	// Both directions may be waiting for the host when the guest breaks the connection.
	watch := waiter.NewFunctionEntry(waiter.EventErr, func(waiter.EventMask) { go g.checkBroken(host) })
	g.wq.EventRegister(&watch)
	defer g.wq.EventUnregister(&watch)

	var down sync.WaitGroup
	down.Go(func() {
		if err := g.fromHost(host, out); err != nil {
			g.Abort()
			breakOff(host)
		}
	})
	if err := g.toHost(host); err != nil {
		g.Abort()
		breakOff(host)
	}
	down.Wait()
	host.Close()
}

func (g *guestEnd) state() tcp.EndpointState { return tcp.EndpointState(g.State()) }

func (g *guestEnd) checkBroken(host *net.TCPConn) {
	if g.state() == tcp.StateError {
		breakOff(host)
	}
}

// breakOff resets the host's half, and wakes who waits for it.
func breakOff(host *net.TCPConn) {
	host.SetLinger(0)
	host.SetDeadline(time.Unix(1, 0))
}

// toHost copies what the guest sends, and its end. An error is a broken connection.
func (g *guestEnd) toHost(host *net.TCPConn) error {
	entry, ch := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	for {
		b := blocks.Get().(*[bufferSize]byte)
		w := tcpip.SliceWriter(b[:])
		res, err := g.Read(&w, tcpip.ReadOptions{})
		var werr error
		if err == nil {
			_, werr = host.Write(b[:res.Count])
		}
		blocks.Put(b)
		switch err.(type) {
		case nil:
			if werr != nil {
				return werr
			}
		case *tcpip.ErrWouldBlock:
			<-ch
		case *tcpip.ErrClosedForReceive:
			return host.CloseWrite()
		default:
			return errors.New(err.String())
		}
	}
}

// fromHost copies what the host sends, and its end, to the guest, to which out leads.
func (g *guestEnd) fromHost(host *net.TCPConn, out *queue) error {
	entry, ch := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	raw, err := host.SyscallConn()
	if err != nil {
		return err
	}
	var r bytes.Reader
	for {
		b, n, end, err := readSome(raw)
		if err != nil {
			return err
		}
		if end { // what is left and the end are one frame after the other
			out.cork()
		}
		err = nil
		if n > 0 {
			r.Reset(b[:n])
			err = g.writeAll(&r, ch)
		}
		if end && err == nil {
			g.Shutdown(tcpip.ShutdownWrite)
		}
		if end {
			out.uncork()
		}
		if b != nil {
			blocks.Put(b)
		}
		if end || err != nil {
			return err
		}
	}
}

// writeAll gives the guest all of r. ch gets something when there may be room.
func (g *guestEnd) writeAll(r *bytes.Reader, ch <-chan struct{}) error {
	for r.Len() > 0 {
		switch _, err := g.Write(r, tcpip.WriteOptions{}); err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-ch
		default:
			return errors.New(err.String())
		}
	}
	return nil
}

// readSome waits until there is something to read, or the end, and takes all that is there as far as it goes into a buffer. Only then is a
// buffer taken: most connections are idle. An error comes alone.
func readSome(raw syscall.RawConn) (b *[bufferSize]byte, n int, end bool, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		b = blocks.Get().(*[bufferSize]byte)
		for n < len(b) && !end {
			var k int
			if k, err = unix.Read(int(fd), b[n:]); err == unix.EINTR {
				continue
			} else if err != nil {
				break
			}
			n += k
			end = k == 0
		}
		if n > 0 {
			err = nil // it comes again
		} else {
			blocks.Put(b)
			b = nil
		}
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		err = waitErr
	}
	return b, n, end, err
}

// bury waits until the stack has forgotten the connection, or breaks it: what the guest does not acknowledge must not pile up.
func (g *guestEnd) bury() {
	entry, ch := waiter.NewChannelEntry(waiter.EventHUp)
	g.wq.EventRegister(&entry)
	defer g.wq.EventUnregister(&entry)
	g.Close()
	end := time.NewTimer(buryTimeout)
	defer end.Stop()
	for {
		switch g.state() {
		case tcp.StateClose, tcp.StateError, tcp.StateTimeWait:
			return
		}
		select {
		case <-ch:
		case <-end.C:
			g.Abort()
			return
		}
	}
}

func addr(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}
