package user

import (
	"net/netip"

	"vitrine.dev/vitrine/internal/network"
)

// IP as far as it is looked at here (RFC 791, 8200).
const (
	ipHeader  = 20
	ip6Header = 40

	protoHopByHop    = 0
	protoICMP        = 1
	protoTCP         = 6
	protoUDP         = 17
	protoFragment    = 44
	protoICMP6       = 58
	protoDestination = 60

	udpHeader      = 8
	fragmentHeader = 8 // of IPv6

	moreFragments  = 0x2000
	dontFragment   = 0x4000
	fragmentPlace  = 0x1FFF
	moreFragments6 = 1
	fragmentPlace6 = 0xFFF8

	hopLimit = 64
	// maxExtensions bounds the extension headers that are looked behind.
	maxExtensions = 8
)

// A packet is an IP packet of the guest's.
type packet struct {
	bytes    []byte // from the header on, to the packet's end
	body     []byte // behind the header, its options or extension headers
	src, dst netip.Addr
	proto    uint8
	hops     uint8
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
	p.bytes, p.body, p.proto, p.hops = b[:size], b[header:size], b[9], b[8]
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.fragment = be.Uint16(b[6:])&(moreFragments|fragmentPlace) != 0
	return p, true
}

// parseIPv6 is parseIPv4 for IPv6. Of a fragment, the body is what of it follows the fragment header.
func parseIPv6(b []byte) (p packet, ok bool) {
	if len(b) < ip6Header || b[0]>>4 != 6 {
		return p, false
	}
	size := ip6Header + int(be.Uint16(b[4:]))
	if size > len(b) {
		return p, false
	}
	next, at := b[6], ip6Header
	for range maxExtensions {
		if next != protoHopByHop && next != protoDestination && next != protoFragment {
			break
		}
		if at+8 > size {
			return p, false
		}
		step := 8
		if next == protoFragment {
			p.fragment = p.fragment || be.Uint16(b[at+2:])&(fragmentPlace6|moreFragments6) != 0
		} else {
			step += 8 * int(b[at+1])
		}
		next, at = b[at], at+step
		if at > size {
			return p, false
		}
	}
	p.bytes, p.body, p.proto, p.hops = b[:size], b[at:size], next, b[7]
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	return p, true
}

// putEthernet writes an Ethernet header from the router.
func putEthernet(b []byte, to network.MAC, kind uint16) {
	copy(b, to[:])
	copy(b[6:], routerMAC[:])
	be.PutUint16(b[12:], kind)
}

// headerSize is the IP header's for an address.
func headerSize(a netip.Addr) int {
	if a.Is4() {
		return ipHeader
	}
	return ip6Header
}

// ipPacket gives a frame to the guest for size bytes of a protocol, and the place for them.
func ipPacket(src, dst netip.Addr, proto uint8, size int) (frame, body []byte) {
	header := headerSize(src)
	frame = newFrame(network.HeaderSize + header + size)
	ip := frame[network.HeaderSize:]
	if src.Is4() {
		putEthernet(frame, GuestMAC, etherIPv4)
		putIPv4(ip, src, dst, proto, len(ip), dontFragment)
	} else {
		to := GuestMAC
		if dst.IsMulticast() { // RFC 2464 section 7
			to = network.MAC{0x33, 0x33}
			copy(to[2:], dst.AsSlice()[12:])
		}
		putEthernet(frame, to, etherIPv6)
		putIPv6(ip, src, dst, proto, size)
	}
	return frame, ip[header:]
}

// putIPv4 writes the header of a packet of size bytes.
func putIPv4(ip []byte, src, dst netip.Addr, proto uint8, size int, fragment uint16) {
	ip[0] = 0x45
	be.PutUint16(ip[2:], uint16(size))
	be.PutUint16(ip[6:], fragment)
	ip[8], ip[9] = hopLimit, proto
	s, d := src.As4(), dst.As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	ip[10], ip[11] = 0, 0
	be.PutUint16(ip[10:], ^sum(ip[:ipHeader], 0))
}

// putIPv6 writes the header of a packet with size bytes behind it.
func putIPv6(ip []byte, src, dst netip.Addr, proto uint8, size int) {
	ip[0] = 0x60
	be.PutUint16(ip[4:], uint16(size))
	ip[6], ip[7] = proto, hopLimit
	s, d := src.As16(), dst.As16()
	copy(ip[8:], s[:])
	copy(ip[24:], d[:])
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

// pseudo is the sum of the pseudo-header (RFC 768; RFC 8200 section 8.1).
func pseudo(src, dst netip.Addr, proto uint8, size int) uint32 {
	s, d := src.As16(), dst.As16()
	from := 0
	if src.Is4() {
		from = 12
	}
	return uint32(sum(s[from:], 0)) + uint32(sum(d[from:], 0)) + uint32(proto) + uint32(size)
}
