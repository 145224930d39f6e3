package user

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"

	"vitrine.dev/vitrine/internal/network"
)

var be = binary.BigEndian

// Ethernet and IPv4 as far as they are looked at here (IEEE 802.3; RFC 791).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86DD

	ipHeader  = 20
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
	udpHeader = 8

	moreFragments = 0x2000
	dontFragment  = 0x4000
	fragmentPlace = 0x1FFF
)

// Send implements [network.Network]. It takes every frame.
func (n *Network) Send(parts [][]byte, size int, _ network.Offload) bool {
	if n.ctx.Err() != nil || size > network.MaxFrame {
		return true
	}
	v := buffer.NewViewSize(size)
	b := v.AsSlice()
	at := 0
	for _, p := range parts {
		at += copy(b[at:], p)
	}
	if at != size || !n.receive(b, v) {
		v.Release()
	}
	return true
}

// receive looks at a frame of the guest's, our copy of which is b, and tells whether it went to the stack, to which v belongs then.
func (n *Network) receive(b []byte, v *buffer.View) (taken bool) {
	if len(b) < network.HeaderSize {
		n.counts.malformed.Add(1)
		return false
	}
	to, from := network.MAC(b[:6]), network.MAC(b[6:12])
	if from != GuestMAC {
		n.counts.spoofed.Add(1)
		n.say("mac", "the guest sends from "+from.String()+", which is not its address "+GuestMAC.String()+": dropped")
		return false
	}
	body := b[network.HeaderSize:]
	switch be.Uint16(b[12:]) {
	case etherARP:
		n.arp(body)
	case etherIPv4:
		p, ok := parseIPv4(body)
		if !ok {
			n.counts.malformed.Add(1)
			return false
		}
		if n.ipv4(&p, to) {
			v.TrimFront(network.HeaderSize)
			v.CapLength(p.size)
			n.inject(v)
			return true
		}
	case etherIPv6:
		n.counts.ipv6.Add(1)
	default:
		n.counts.unroutable.Add(1)
	}
	return false
}

// A packet is an IPv4 packet of the guest's.
type packet struct {
	bytes    []byte // from the header on, to the packet's end
	size     int
	body     []byte // behind the header and its options
	src, dst netip.Addr
	proto    uint8
	fragment bool
}

// parseIPv4 reads a packet that b begins with. Behind it may be padding.
func parseIPv4(b []byte) (p packet, ok bool) {
	if len(b) < ipHeader || b[0]>>4 != 4 {
		return p, false
	}
	header, size := int(b[0]&15)*4, int(be.Uint16(b[2:]))
	if header < ipHeader || size < header || size > len(b) || sum(b[:header], 0) != 0xFFFF {
		return p, false
	}
	p.bytes, p.size, p.body, p.proto = b[:size], size, b[header:size], b[9]
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.fragment = be.Uint16(b[6:])&(moreFragments|fragmentPlace) != 0
	return p, true
}

// ipv4 answers p, or tells that it is the stack's to answer.
func (n *Network) ipv4(p *packet, to network.MAC) (forStack bool) {
	unspecified := p.src == netip.IPv4Unspecified()
	if p.proto == protoUDP && !p.fragment && len(p.body) >= udpHeader && be.Uint16(p.body[2:]) == dhcpServer &&
		(unspecified || p.src == Guest) {
		n.dhcp(p.body[udpHeader:])
		return false
	}
	if p.src != Guest {
		n.counts.spoofed.Add(1)
		n.say("ip", "the guest sends from "+p.src.String()+", which is not its address "+Guest.String()+": dropped")
		return false
	}
	if to != routerMAC || !routable(p.dst) {
		n.counts.unroutable.Add(1)
		return false
	}
	if p.proto != protoTCP && p.size > network.MTU {
		n.counts.malformed.Add(1)
		return false
	}
	switch p.proto {
	case protoTCP:
		return true
	case protoUDP:
		if p.dst == DNS {
			n.dnsPacket(p)
			return false
		}
		return true
	case protoICMP:
		return n.icmp(p)
	}
	n.counts.unroutable.Add(1)
	if !p.fragment {
		n.unreachable(p.bytes, unreachableProtocol)
	}
	return false
}

// putEthernet writes an Ethernet header from the router.
func putEthernet(b []byte, to network.MAC, kind uint16) {
	copy(b, to[:])
	copy(b[6:], routerMAC[:])
	be.PutUint16(b[12:], kind)
}

// ipPacket gives a frame to the guest for size bytes of a protocol, and the place for them. finish completes it.
func ipPacket(src, dst netip.Addr, proto uint8, size int) (frame, body []byte) {
	frame = make([]byte, network.HeaderSize+ipHeader+size)
	putEthernet(frame, GuestMAC, etherIPv4)
	ip := frame[network.HeaderSize:]
	ip[0] = 0x45
	be.PutUint16(ip[2:], uint16(ipHeader+size))
	be.PutUint16(ip[6:], dontFragment)
	ip[8], ip[9] = 64, proto
	s, d := src.As4(), dst.As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	be.PutUint16(ip[10:], ^sum(ip[:ipHeader], 0))
	return frame, ip[ipHeader:]
}

// sendUDP gives the guest one datagram of at most an MTU.
func (n *Network) sendUDP(src, dst netip.AddrPort, payload []byte) {
	size := udpHeader + len(payload)
	frame, b := ipPacket(src.Addr(), dst.Addr(), protoUDP, size)
	be.PutUint16(b, src.Port())
	be.PutUint16(b[2:], dst.Port())
	be.PutUint16(b[4:], uint16(size))
	copy(b[udpHeader:], payload)
	s := ^sum(b, pseudo(src.Addr(), dst.Addr(), protoUDP, size))
	if s == 0 {
		s = 0xFFFF // RFC 768: 0 means that there is none
	}
	be.PutUint16(b[6:], s)
	n.out.push(item{raw: frame})
}

// sum is the Internet checksum's one's complement sum of b (RFC 1071), to which initial belongs.
func sum(b []byte, initial uint32) uint16 {
	s := uint64(initial)
	for len(b) >= 4 {
		s += uint64(be.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		s += uint64(be.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xFFFF {
		s = s>>16 + s&0xFFFF
	}
	return uint16(s)
}

// pseudo is the sum of the pseudo-header (RFC 768).
func pseudo(src, dst netip.Addr, proto uint8, size int) uint32 {
	s, d := src.As4(), dst.As4()
	return uint32(sum(s[:], 0)) + uint32(sum(d[:], 0)) + uint32(proto) + uint32(size)
}
