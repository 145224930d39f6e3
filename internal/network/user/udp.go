package user

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vitrine.dev/vitrine/internal/network"
)

const (
	// udpIdle is how long a flow lasts after its last datagram (RFC 4787 section 4.3 wants two minutes at least; QEMU has four, Linux's
	// connection tracking half or two).
	udpIdle       = 2 * time.Minute
	maxUDPPayload = 1<<16 - 1
	// maxBurst is how many datagrams of a flow are taken before others have their turn.
	maxBurst = 16
	// The ports of the gateway's behind which are the peers of forwards (RFC 6335).
	firstPeerPort, lastPeerPort = 49152, 65535
)

// A flowKey is one peer behind one port of the guest's. For a forward the peer is a port of the gateway's, which stands for one on the host.
type flowKey struct{ guest, peer netip.AddrPort }

// A flow is a stream of datagrams between the guest and one peer.
type flow struct {
	key  flowKey
	send func([]byte) error // to the peer; it never waits
	end  func()
	used atomic.Int64 // nanoseconds since the Unix epoch
}

func (f *flow) idleAt() time.Time { return time.Unix(0, f.used.Load()).Add(udpIdle) }

func (f *flow) touch() { f.used.Store(time.Now().UnixNano()) }

// flows are a network's, bounded: the one that was not used for longest makes room.
type flows struct {
	mu     sync.Mutex
	all    map[flowKey]*flow
	port   uint16 // the last of newPeer
	closed bool
}

func (s *flows) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// get gives the flow of a key, or nil. It counts as use.
func (s *flows) get(k flowKey) *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.all[k]
	if f == nil {
		return nil
	}
	if time.Now().After(f.idleAt()) {
		delete(s.all, k)
		f.end()
		return nil
	}
	f.touch()
	return f
}

func (s *flows) has(k flowKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[k] != nil
}

// add makes f known, or ends it and says that the network is closed.
func (s *flows) add(f *flow) bool {
	f.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		f.end()
		return false
	}
	if len(s.all) >= maxUDP {
		var oldest *flow
		for _, f := range s.all {
			if oldest == nil || f.used.Load() < oldest.used.Load() {
				oldest = f
			}
		}
		delete(s.all, oldest.key)
		oldest.end()
	}
	s.all[f.key] = f
	return true
}

// newPeer gives a port of the gateway's that stands for no peer of a port of the guest's yet.
func (s *flows) newPeer(guest netip.AddrPort) flowKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.port++; s.port < firstPeerPort || s.port == lastPeerPort {
			s.port = firstPeerPort
		}
		k := flowKey{guest, netip.AddrPortFrom(Gateway, s.port)}
		if s.all[k] == nil { // there are fewer flows than ports
			return k
		}
	}
}

func (s *flows) remove(f *flow) {
	s.mu.Lock()
	if s.all[f.key] == f {
		delete(s.all, f.key)
	}
	s.mu.Unlock()
	f.end()
}

func (s *flows) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, f := range s.all {
		f.end()
	}
}

// udpPacket sends a datagram of the guest's on that is whole.
func (n *Network) udpPacket(p *packet) {
	if len(p.body) < udpHeader {
		n.counts.malformed.Add(1)
		return
	}
	size := int(be.Uint16(p.body[4:]))
	if size < udpHeader || size > len(p.body) {
		n.counts.malformed.Add(1)
		return
	}
	n.datagram(netip.AddrPortFrom(p.src, be.Uint16(p.body)), netip.AddrPortFrom(p.dst, be.Uint16(p.body[2:])), p.body[udpHeader:size])
}

// assembled takes a datagram from the stack, which put its fragments together.
func (n *Network) assembled(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if len(pkt.TransportHeader().Slice()) == header.UDPMinimumSize {
		v := pkt.Data().AsRange().ToView()
		n.datagram(netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort), v.AsSlice())
		v.Release()
	}
	return true
}

// datagram sends the guest's datagram to its peer. It is called on the goroutine that serves the guest's card.
func (n *Network) datagram(guest, peer netip.AddrPort, payload []byte) {
	if isDNS(peer.Addr()) {
		n.dnsPacket(guest, peer, payload)
		return
	}
	f := n.udp.get(flowKey{guest, peer})
	if f == nil {
		var err error
		if f, err = n.newFlow(flowKey{guest, peer}); err != nil {
			n.counts.refused.Add(1)
			n.udpUnreachable(guest, peer, err)
			return
		}
		if f == nil {
			return
		}
	}
	switch err := f.send(payload); {
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, net.ErrClosed): // a datagram may be lost
	default:
		n.udpUnreachable(guest, peer, err)
	}
}

// newFlow opens a socket for a flow of the guest's. The flow is nil where the network is being closed.
func (n *Network) newFlow(k flowKey) (*flow, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(outside(k.peer.Addr()), k.peer.Port())))
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	f := &flow{key: k, send: sender(raw, nil), end: func() { c.Close() }}
	if !n.udp.add(f) {
		return nil, nil
	}
	n.work.Go(func() { n.fromPeer(f, c, raw) })
	return f, nil
}

// sender gives a function that sends a datagram without waiting for room, for one goroutine.
func sender(raw syscall.RawConn, to unix.Sockaddr) func([]byte) error {
	var b []byte
	var failed error
	once := func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to)
		return true
	}
	return func(p []byte) error {
		b = p
		if err := raw.Write(once); err != nil {
			return err
		}
		b = nil
		return failed
	}
}

var datagrams = sync.Pool{New: func() any { return new([maxUDPPayload]byte) }}

// fromPeer gives the guest what the peer of a flow sends, until the flow is closed or idle.
func (n *Network) fromPeer(f *flow, c *net.UDPConn, raw syscall.RawConn) {
	defer n.udp.remove(f)
	var failed error
	take := func(fd uintptr) bool {
		b := datagrams.Get().(*[maxUDPPayload]byte)
		defer datagrams.Put(b)
		n.out.cork()
		defer n.out.uncork()
		for i := 0; i < maxBurst; i++ {
			k, err := unix.Read(int(fd), b[:])
			if err == unix.EAGAIN {
				return i > 0
			}
			if failed = err; err != nil {
				return true
			}
			n.giveUDP(f.key.peer, f.key.guest, b[:k])
		}
		return true
	}
	for {
		c.SetReadDeadline(f.idleAt())
		err := raw.Read(take)
		switch {
		case err == nil && failed == nil:
			f.touch()
		case err == nil && failed == unix.EINTR:
		case err == nil && failed == unix.ECONNREFUSED:
			n.udpUnreachable(f.key.guest, f.key.peer, failed)
		case isTimeout(err) && time.Now().Before(f.idleAt()):
		default:
			return
		}
	}
}

// udpUnreachable tells the guest that a datagram did not arrive. Its length is not known any more; Linux looks at the ports.
func (n *Network) udpUnreachable(guest, to netip.AddrPort, err error) {
	code, ok := unreachableCode(err)
	if !ok {
		code = unreachablePort
	}
	orig, b := ipPacket(guest.Addr(), to.Addr(), protoUDP, udpHeader)
	be.PutUint16(b, guest.Port())
	be.PutUint16(b[2:], to.Port())
	be.PutUint16(b[4:], udpHeader)
	n.unreachable(orig[network.HeaderSize:], code)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// sendUDP gives the guest one datagram with a checksum, of at most an MTU.
func (n *Network) sendUDP(src, dst netip.AddrPort, payload []byte) {
	frame, b := ipPacket(src.Addr(), dst.Addr(), protoUDP, udpHeader+len(payload))
	putUDP(b, src, dst, payload)
	putUDPSum(b, src.Addr(), dst.Addr())
	n.out.push(item{raw: frame})
}

// giveUDP is sendUDP for a datagram of a peer's, which may be longer. A guest that takes frames without a checksum need not add it up.
func (n *Network) giveUDP(src, dst netip.AddrPort, payload []byte) {
	header := headerSize(src.Addr())
	size := udpHeader + len(payload)
	if header+size > network.MTU {
		n.sendFragments(src, dst, payload)
		return
	}
	frame, b := ipPacket(src.Addr(), dst.Addr(), protoUDP, size)
	putUDP(b, src, dst, payload)
	o := network.Offload{PartialSum: true, SumStart: uint16(network.HeaderSize + header), SumOffset: 6}
	if n.out.abilities().Takes(o) {
		be.PutUint16(b[6:], sum(nil, pseudo(src.Addr(), dst.Addr(), protoUDP, size)))
	} else {
		o = network.Offload{}
		putUDPSum(b, src.Addr(), dst.Addr())
	}
	n.out.push(item{raw: frame, o: o})
}

func putUDP(b []byte, src, dst netip.AddrPort, payload []byte) {
	be.PutUint16(b, src.Port())
	be.PutUint16(b[2:], dst.Port())
	be.PutUint16(b[4:], uint16(len(b)))
	be.PutUint16(b[6:], 0)
	copy(b[udpHeader:], payload)
}

func putUDPSum(b []byte, src, dst netip.Addr) {
	s := ^sum(b, pseudo(src, dst, protoUDP, len(b)))
	if s == 0 {
		s = 0xFFFF // RFC 768: 0 means that there is none
	}
	be.PutUint16(b[6:], s)
}

// sendFragments gives the guest a datagram that is longer than a frame (RFC 791 section 3.2; RFC 8200 section 4.5).
func (n *Network) sendFragments(src, dst netip.AddrPort, payload []byte) {
	b := make([]byte, udpHeader+len(payload))
	putUDP(b, src, dst, payload)
	putUDPSum(b, src.Addr(), dst.Addr())
	id := n.fragments.Add(1)
	v4 := src.Addr().Is4()
	room := network.MTU - headerSize(src.Addr())
	if !v4 {
		room -= fragmentHeader
	}
	room &^= 7
	n.out.cork()
	defer n.out.uncork()
	for at := 0; at < len(b); at += room {
		part := b[at:min(at+room, len(b))]
		last := at+room >= len(b)
		var frame, body []byte
		if v4 {
			frame, body = ipPacket(src.Addr(), dst.Addr(), protoUDP, len(part))
			place := uint16(at / 8)
			if !last {
				place |= moreFragments
			}
			ip := frame[network.HeaderSize:]
			be.PutUint16(ip[4:], uint16(id))
			putIPv4(ip, src.Addr(), dst.Addr(), protoUDP, len(ip), place)
		} else {
			frame, body = ipPacket(src.Addr(), dst.Addr(), protoFragment, fragmentHeader+len(part))
			place := uint16(at)
			if !last {
				place |= moreFragments6
			}
			body[0], body[1] = protoUDP, 0
			be.PutUint16(body[2:], place)
			be.PutUint32(body[4:], id)
			body = body[fragmentHeader:]
		}
		copy(body, part)
		n.out.push(item{raw: frame})
	}
}
