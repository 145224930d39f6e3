package user

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vitrine.dev/vitrine/internal/network"
)

const wait = 20 * time.Second

// guest6 is an address that the guest gives itself, and a port.
var guest6 = netip.MustParseAddrPort("[fec0::5054:ff:fe12:3456]:4321")

// A guest is a machine on a Network: a TCP/IP stack of its own, or a test that reads frames itself.
type guest struct {
	*stack.Stack
	t    testing.TB
	net  *Network
	link *channel.Endpoint
	done chan struct{}
	wg   sync.WaitGroup
	came chan struct{} // a frame may be there for who takes frames by hand

	mu   sync.Mutex
	logs []string
}

// newNetwork makes a network whose guest takes frames by hand.
func newNetwork(t testing.TB, cfg Config) *guest {
	t.Helper()
	g := &guest{t: t, done: make(chan struct{}), came: make(chan struct{}, 1)}
	cfg.Log = func(s string) {
		g.mu.Lock()
		g.logs = append(g.logs, s)
		g.mu.Unlock()
	}
	var err error
	if g.net, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(g.done)
		g.wg.Wait()
		g.net.Close()
		if g.Stack != nil {
			g.Destroy()
		}
	})
	g.net.Up(network.Sums|network.CutsTCP4|network.CutsTCP6, notify(g.came).WriteNotify, func() {})
	return g
}

// newGuest makes a network whose guest has a stack, with or without offloads.
func newGuest(t testing.TB, cfg Config, offloads bool) *guest {
	t.Helper()
	g := newNetwork(t, cfg)
	g.link = channel.New(4096, network.MTU, "")
	takes := network.Abilities(0)
	if offloads {
		g.link.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
		g.link.SupportedGSOKind = stack.HostGSOSupported
		takes = network.Sums | network.CutsTCP4 | network.CutsTCP6
	}
	g.Stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	must(g.CreateNIC(nic, g.link))
	must(g.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(Guest.As4()), PrefixLen: 24},
	}, stack.AddressProperties{}))
	must(g.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv6.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom16(guest6.Addr().As16()), PrefixLen: 64},
	}, stack.AddressProperties{}))
	g.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	wake := make(chan struct{}, 1)
	g.net.Up(takes, func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}, func() {})
	out := make(chan struct{}, 1)
	g.link.AddNotify(notify(out))
	g.wg.Go(func() {
		for {
			select {
			case <-g.done:
				return
			case <-wake:
				g.fromNetwork()
			}
		}
	})
	g.wg.Go(func() {
		for {
			select {
			case <-g.done:
				return
			case <-out:
				g.toNetwork()
			}
		}
	})
	return g
}

type notify chan struct{}

func (n notify) WriteNotify() {
	select {
	case n <- struct{}{}:
	default:
	}
}

func (g *guest) fromNetwork() {
	for f := g.net.Front(); f != nil; f = g.net.Front() {
		var b []byte
		for _, p := range f.Parts {
			b = append(b, p...)
		}
		g.net.Pop()
		kind := be.Uint16(b[12:])
		if len(b) != f.Size || kind != etherIPv4 && kind != etherIPv6 {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[network.HeaderSize:])})
		g.link.InjectInbound(tcpip.NetworkProtocolNumber(kind), pkt)
		pkt.DecRef()
	}
}

func (g *guest) toNetwork() {
	for pkt := g.link.Read(); pkt != nil; pkt = g.link.Read() {
		g.net.Send(append([][]byte{ethernet(uint16(pkt.NetworkProtocolNumber))}, pkt.AsSlices()...), network.HeaderSize+pkt.Size(), network.Offload{})
		pkt.DecRef()
	}
}

// ethernet is the header of a frame that the guest sends.
func ethernet(kind uint16) []byte {
	b := make([]byte, network.HeaderSize)
	copy(b, routerMAC[:])
	copy(b[6:], GuestMAC[:])
	be.PutUint16(b[12:], kind)
	return b
}

// send sends a frame.
func (g *guest) send(b []byte) { g.net.Send([][]byte{b}, len(b), network.Offload{}) }

// packet makes a frame with an IPv4 packet of the guest's.
func ipFrame(src, dst netip.Addr, proto uint8, body []byte) []byte {
	f, b := ipPacket(src, dst, proto, len(body))
	copy(b, body)
	copy(f, ethernet(be.Uint16(f[12:])))
	return f
}

func udpFrame(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, udpHeader, udpHeader+len(payload))
	be.PutUint16(b, src.Port())
	be.PutUint16(b[2:], dst.Port())
	be.PutUint16(b[4:], uint16(udpHeader+len(payload)))
	return ipFrame(src.Addr(), dst.Addr(), protoUDP, append(b, payload...))
}

// next gives the next frame for the guest, within a time.
func (g *guest) next() []byte {
	g.t.Helper()
	b := g.nextOrNone(wait)
	if b == nil {
		g.t.Fatal("no frame came")
	}
	return b
}

func (g *guest) nextOrNone(d time.Duration) []byte {
	end := time.After(d)
	for {
		if f := g.net.Front(); f != nil {
			var b []byte
			for _, p := range f.Parts {
				b = append(b, p...)
			}
			g.net.Pop()
			return b
		}
		if d == 0 {
			return nil
		}
		select {
		case <-g.came:
		case <-end:
			return nil
		}
	}
}

func (g *guest) logged(what string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.logs {
		if strings.Contains(l, what) {
			return true
		}
	}
	return false
}

// dial connects the guest to a port of an address.
func (g *guest) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	at, kind := address(to)
	c, err := gonet.DialTCP(g.Stack, at, kind)
	if err == nil {
		c.SetDeadline(time.Now().Add(wait))
	}
	return c, err
}

// address is an address as the guest's stack takes it.
func address(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	if a.Addr().Is4() {
		return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}, ipv4.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom16(a.Addr().As16()), Port: a.Port()}, ipv6.ProtocolNumber
}

func (g *guest) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	g.t.Helper()
	at, kind := address(to)
	c, err := gonet.DialUDP(g.Stack, nil, &at, kind)
	if err != nil {
		g.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(wait))
	return c
}

// listen listens on the host's loopback and gives where the guest finds it.
func listenTCP(t testing.TB) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, netip.AddrPortFrom(Gateway, l.Addr().(*net.TCPAddr).AddrPort().Port())
}
