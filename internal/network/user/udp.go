package user

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// udpIdle is how long a flow lasts after its last datagram (RFC 4787 section 4.3 wants two minutes at least; QEMU has four, Linux's
	// connection tracking half or two).
	udpIdle       = 2 * time.Minute
	maxUDPPayload = 1<<16 - 1
)

// A flowKey is one peer behind one port of the guest's: both ends' addresses, the guest's first. For a forward the peer is the one on the host.
type flowKey struct{ guest, peer netip.AddrPort }

// A flow is a stream of datagrams between the guest and one peer. Either half may be read and written by one goroutine each.
type flow struct {
	guest *gonet.UDPConn
	send  func([]byte) error // to the peer
	end   func()             // ends the peer's half
	used  atomic.Int64       // nanoseconds since the Unix epoch
}

func (f *flow) idle() bool { return time.Since(time.Unix(0, f.used.Load())) >= udpIdle }

func (f *flow) touch() { f.used.Store(time.Now().UnixNano()) }

// flows are a network's, bounded: the one that was not used for longest makes room.
type flows struct {
	mu     sync.Mutex
	all    map[flowKey]*flow
	closed bool
}

func (s *flows) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func (s *flows) get(k flowKey) *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[k]
}

// add makes f known, or says that the network is closed.
func (s *flows) add(k flowKey, f *flow) bool {
	f.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.all) >= maxUDP {
		var oldest *flow
		var at flowKey
		for k, f := range s.all {
			if oldest == nil || f.used.Load() < oldest.used.Load() {
				oldest, at = f, k
			}
		}
		delete(s.all, at)
		oldest.close()
	}
	s.all[k] = f
	return true
}

func (s *flows) remove(k flowKey, f *flow) {
	s.mu.Lock()
	if s.all[k] == f {
		delete(s.all, k)
	}
	s.mu.Unlock()
	f.close()
}

func (s *flows) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, f := range s.all {
		f.close()
	}
}

// close may be called more than once.
func (f *flow) close() {
	f.guest.Close()
	f.end()
}

// acceptUDP begins a flow of the guest's. It is called for the first datagram of one, on the goroutine that serves the guest's card.
func (n *Network) acceptUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	guest, to := netip.AddrPortFrom(addr(id.RemoteAddress), id.RemotePort), netip.AddrPortFrom(addr(id.LocalAddress), id.LocalPort)
	host, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(outside(to.Addr()), to.Port())))
	if err != nil {
		n.counts.refused.Add(1)
		n.udpUnreachable(guest, to, err)
		return true
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		host.Close()
		return true
	}
	f := &flow{
		guest: gonet.NewUDPConn(&wq, ep),
		send:  func(b []byte) error { _, err := host.Write(b); return err },
		end:   func() { host.Close() },
	}
	k := flowKey{guest, to}
	if !n.udp.add(k, f) {
		f.close()
		return true
	}
	n.work.Go(func() {
		defer n.udp.remove(k, f)
		b := make([]byte, maxUDPPayload)
		for {
			host.SetReadDeadline(time.Now().Add(udpIdle))
			k, err := host.Read(b)
			switch {
			case err == nil:
				f.touch()
				f.guest.Write(b[:k]) // a datagram may be lost
			case errors.Is(err, unix.ECONNREFUSED):
				n.udpUnreachable(guest, to, err)
			case isTimeout(err) && !f.idle():
			default:
				return
			}
		}
	})
	n.work.Go(func() { n.fromGuest(k, f) })
	return true
}

// fromGuest sends the guest's datagrams of a flow on, until it is closed.
func (n *Network) fromGuest(k flowKey, f *flow) {
	defer n.udp.remove(k, f)
	b := make([]byte, maxUDPPayload)
	for {
		f.guest.SetReadDeadline(time.Now().Add(udpIdle))
		size, err := f.guest.Read(b)
		if isTimeout(err) && !f.idle() {
			continue
		}
		if err != nil {
			return
		}
		f.touch()
		if err := f.send(b[:size]); errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			n.udpUnreachable(k.guest, k.peer, err)
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
	n.unreachable(orig[len(orig)-ipHeader-udpHeader:], code)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// dialGuestUDP makes the guest's half of a forwarded flow: the guest sees a port of the gateway's.
func (n *Network) dialGuestUDP(port uint16) (*gonet.UDPConn, error) {
	n.once.Do(n.makeStack)
	if n.stack == nil {
		return nil, net.ErrClosed
	}
	return gonet.DialUDP(n.stack.Stack, &tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(Gateway.As4())},
		&tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(Guest.As4()), Port: port}, ipv4.ProtocolNumber)
}
