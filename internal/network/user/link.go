package user

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vitrine.dev/vitrine/internal/network"
)

// A link is the stack's end of the cable: it puts Ethernet headers in front of the stack's packets and queues them for the guest.
// The stack sees a link without addresses: who is on the other side never changes.
type link struct {
	out        *queue
	dispatcher stack.NetworkDispatcher // set once, before the first packet
	bulk       atomic.Bool             // what the guest sent last was large
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// WritePackets implements [stack.LinkWriter].
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		if !l.out.add(item{pkt: pkt.Clone(), o: offload(pkt)}, l.quiet(pkt)) {
			return n, &tcpip.ErrNoBufferSpace{}
		}
		n++
	}
	return n, nil
}

// quiet tells whether pkt only acknowledges, and not so much that the guest may be waiting for that to send more.
func (l *link) quiet(pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	return pkt.TransportProtocolNumber == header.TCPProtocolNumber && pkt.Data().Size() == 0 && len(h) >= header.TCPMinimumSize &&
		len(h) <= header.TCPMinimumSize+timestamps && h.Flags() == header.TCPFlagAck && !l.bulk.Load()
}

// timestamps is the size of the only options in a header that tells of no loss.
const timestamps = 12

// offload is what the stack left undone, in our words.
func offload(pkt *stack.PacketBuffer) (o network.Offload) {
	g := &pkt.GSOOptions
	if g.Type == stack.GSONone || !g.NeedsCsum {
		return o
	}
	ip := len(pkt.NetworkHeader().Slice())
	o.PartialSum = true
	o.SumStart, o.SumOffset = uint16(network.HeaderSize+ip), g.CsumOffset
	if g.MSS > 0 && pkt.Data().Size() > int(g.MSS) {
		o.Segment, o.SegmentSize = network.TCP4, g.MSS
		if g.Type == stack.GSOTCPv6 {
			o.Segment = network.TCP6
		}
		o.HeaderSize = uint16(network.HeaderSize + ip + len(pkt.TransportHeader().Slice()))
	}
	return o
}

// GSOMaxSize implements [stack.GSOEndpoint]: with its headers, a segment is a whole IP packet at most.
func (l *link) GSOMaxSize() uint32 {
	return 1<<16 - 1 - header.IPv4MaximumHeaderSize - header.TCPHeaderMaximumSize
}

// SupportedGSO implements [stack.GSOEndpoint].
func (l *link) SupportedGSO() stack.SupportedGSO {
	takes := l.out.abilities()
	if takes.Takes(network.Offload{Segment: network.TCP4}) && takes.Takes(network.Offload{Segment: network.TCP6}) {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// Capabilities implements [stack.NetworkLinkEndpoint]: what the guest sends has crossed no wire. What it is sent has all sums, save what GSO leaves.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// AddHeader implements [stack.NetworkLinkEndpoint].
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	putEthernet(pkt.LinkHeader().Push(network.HeaderSize), GuestMAC, uint16(pkt.NetworkProtocolNumber)) // which are Ethernet's types
}

// The rest of [stack.NetworkLinkEndpoint] holds no surprise.

func (*link) MTU() uint32                             { return network.MTU }
func (*link) SetMTU(uint32)                           {}
func (*link) MaxHeaderLength() uint16                 { return network.HeaderSize }
func (*link) LinkAddress() tcpip.LinkAddress          { return "" }
func (*link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Attach(d stack.NetworkDispatcher)      { l.dispatcher = d }
func (l *link) IsAttached() bool                      { return l.dispatcher != nil }
func (*link) Wait()                                   {}
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*link) Close()                                  {}
func (*link) SetOnCloseAction(func())                 {}
