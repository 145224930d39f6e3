package user

import (
	"net"
	"net/netip"
	"time"

	"vitrine.dev/vitrine/internal/network"
)

// Neighbour discovery (RFC 4861): who has an address, and who is the router. The guest makes its addresses itself, of the prefix that the
// router advertises (RFC 4862); with that comes the name server's (RFC 8106).
const (
	icmp6RouterSolicit = 133
	icmp6Router        = 134
	icmp6NeighbourAsk  = 135
	icmp6Neighbour     = 136
	ndpLast            = 137
	mldFirst, mldLast  = 130, 132 // multicast listener discovery (RFC 2710), 143 in its second version (RFC 3810)
	mld2               = 143

	ndpHops   = 255 // of each message: it crossed no router
	ndpTarget = 8
	ndpSize   = 24

	optSourceLink, optTargetLink, optPrefix, optMTU6, optRDNSS = 1, 2, 3, 5, 25

	neighbourRouter, neighbourSolicited, neighbourOverride = 0x80, 0x40, 0x20
	prefixOnLink, prefixAutonomous                         = 0x80, 0x40

	// A router is believed for some hours (RFC 8319 has 65535 seconds as the most), and says so again in time.
	routerLifetime  = 9000
	routerInterval  = routerLifetime / 3 * time.Second
	forEver         = 0xFFFFFFFF
	routerAdvertise = 16 // of an advertisement in front of its options
)

// ndp answers neighbour and router solicitations, and tells whether p was of a kind that ends here.
func (n *Network) ndp(p *packet) bool {
	if len(p.body) < icmpHeader || p.fragment {
		return false
	}
	kind := p.body[0]
	if kind == mld2 || kind >= mldFirst && kind <= mldLast {
		return true // nobody else listens
	}
	if kind < icmp6RouterSolicit || kind > ndpLast {
		return false
	}
	if p.hops != ndpHops || sum(p.body, pseudo(p.src, p.dst, protoICMP6, len(p.body))) != 0xFFFF {
		n.counts.malformed.Add(1)
		return true
	}
	if !p.src.IsUnspecified() && !isGuest(p.src) {
		n.counts.spoofed.Add(1)
		return true
	}
	to := p.src
	if to.IsUnspecified() {
		to = allNodes
	}
	switch {
	case kind == icmp6RouterSolicit:
		n.advertise(to)
		n.again.Do(func() { n.work.Go(n.advertiseAgain) })
	case kind == icmp6NeighbourAsk && len(p.body) >= ndpSize:
		target := netip.AddrFrom16([16]byte(p.body[ndpTarget:]))
		if target == Gateway6 || target == DNS6 || target == router6 {
			n.neighbour(target, to)
		}
	}
	return true
}

// neighbour tells who has one of our addresses.
func (n *Network) neighbour(target, to netip.Addr) {
	b := make([]byte, ndpSize, ndpSize+8)
	b[0], b[4] = icmp6Neighbour, neighbourRouter|neighbourOverride
	if to != allNodes {
		b[4] |= neighbourSolicited
	}
	copy(b[ndpTarget:], target.AsSlice())
	n.sendNDP(target, to, append(append(b, optTargetLink, 1), routerMAC[:]...))
}

// advertise tells of the prefix and the name server, and of the way out if the host has one.
func (n *Network) advertise(to netip.Addr) {
	b := make([]byte, routerAdvertise, 96)
	b[0], b[4] = icmp6Router, hopLimit
	if wayOut6() {
		be.PutUint16(b[6:], routerLifetime)
	}
	b = append(append(b, optSourceLink, 1), routerMAC[:]...)
	b = be.AppendUint32(append(b, optMTU6, 1, 0, 0), network.MTU)
	b = append(b, optPrefix, 4, uint8(Subnet6.Bits()), prefixOnLink|prefixAutonomous)
	b = be.AppendUint32(be.AppendUint32(b, forEver), forEver)
	b = append(append(b, 0, 0, 0, 0), Subnet6.Addr().AsSlice()...)
	b = be.AppendUint32(append(b, optRDNSS, 3, 0, 0), forEver)
	n.sendNDP(router6, to, append(b, DNS6.AsSlice()...))
}

// advertiseAgain advertises before the guest forgets.
func (n *Network) advertiseAgain() {
	t := time.NewTicker(routerInterval)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
			n.advertise(allNodes)
		}
	}
}

func (n *Network) sendNDP(from, to netip.Addr, message []byte) {
	frame, b := ipPacket(from, to, protoICMP6, len(message))
	frame[network.HeaderSize+7] = ndpHops
	copy(b, message)
	be.PutUint16(b[2:], ^sum(b, pseudo(from, to, protoICMP6, len(b))))
	n.out.push(item{raw: frame})
}

// wayOut6 tells whether the host has a route to the world by IPv6. Nothing is sent for that: a datagram socket only asks for the route.
func wayOut6() bool {
	// 2001:db8::/32 is documentation's: only a default route leads there.
	c, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: net.ParseIP("2001:db8::1"), Port: 9})
	if err != nil {
		return false
	}
	c.Close()
	return true
}
