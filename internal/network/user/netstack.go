package user

import (
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nic tcpip.NICID = 1

// buffers is how much TCP keeps of a connection on the guest's side, each way, where there are at most so many. A guest decides how many
// there are: the more, the smaller.
var buffers = []struct{ connections, size int }{{32, largeBuffer}, {512, 64 << 10}, {maxTCP, smallBuffer}}

const (
	largeBuffer = 1 << 20
	smallBuffer = 16 << 10

	// bulk is the size of a packet from which on the guest is taken to send as fast as it is told that it may.
	bulk = 4 << 10

	// A guest is never far away: what it does not acknowledge soon it will not.
	timeWait   = time.Second
	maxRetries = 8
	maxRTO     = 4 * time.Second
)

// A netstack is gVisor's, wired to the guest.
type netstack struct {
	*stack.Stack
	link *link
	tcp  *tcp.Forwarder
	syns syns
}

func (n *Network) makeStack() {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC, udp.NewProtocol},
	})
	ns := &netstack{Stack: s, link: &link{out: &n.out}}
	set := func(opt tcpip.SettableTransportProtocolOption) {
		must(s.SetTransportProtocolOption(tcp.ProtocolNumber, opt))
	}
	sack, timewait, retries, rto := tcpip.TCPSACKEnabled(true), tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPMaxRetriesOption(maxRetries), tcpip.TCPMaxRTOOption(maxRTO)
	set(&sack)
	set(&timewait)
	set(&retries)
	set(&rto)
	set(&tcpip.TCPReceiveBufferSizeRangeOption{Min: smallBuffer, Default: largeBuffer, Max: largeBuffer})
	set(&tcpip.TCPSendBufferSizeRangeOption{Min: smallBuffer, Default: largeBuffer, Max: largeBuffer})

	must(s.CreateNIC(nic, ns.link))
	must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(Gateway.As4()), PrefixLen: Subnet.Bits()},
	}, stack.AddressProperties{}))
	must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv6.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom16(Gateway6.As16()), PrefixLen: Subnet6.Bits()},
	}, stack.AddressProperties{}))
	// The stack answers in the name of every address.
	must(s.SetPromiscuousMode(nic, true))
	must(s.SetSpoofing(nic, true))
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})

	ns.tcp = tcp.NewForwarder(s, largeBuffer, 2*maxOpening, n.acceptTCP)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, n.tcpPacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, n.assembled)
	n.stack = ns
}

// must is for what fails only if this package is wrong.
func must(err tcpip.Error) {
	if err != nil {
		panic("BUG: network: " + err.String())
	}
}

// inject gives the stack a packet of the guest's of an Ethernet type, which it takes over.
func (n *Network) inject(kind uint16, v *buffer.View) {
	n.once.Do(n.makeStack)
	if n.stack == nil { // Close was first
		v.Release()
		return
	}
	n.stack.link.bulk.Store(v.Size() > bulk)
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	n.stack.link.dispatcher.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(kind), pkt)
	pkt.DecRef()
}

// close ends all connections. What is just being made sees n.ctx, or is ended by the next round, until work is done.
func (s *netstack) close(done <-chan struct{}) {
	for {
		for _, e := range s.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-done:
			s.Destroy()
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
