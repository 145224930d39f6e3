package user

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"

	"vitrine.dev/vitrine/internal/network"
)

var be = binary.BigEndian

// Ethernet's types (IEEE 802.3).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86DD
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
	var p packet
	var ok bool
	kind := be.Uint16(b[12:])
	switch kind {
	case etherARP:
		n.arp(body)
		return false
	case etherIPv4:
		p, ok = parseIPv4(body)
	case etherIPv6:
		p, ok = parseIPv6(body)
	default:
		n.counts.unroutable.Add(1)
		return false
	}
	if !ok {
		n.counts.malformed.Add(1)
		return false
	}
	if !n.ip(&p, to) {
		return false
	}
	v.TrimFront(network.HeaderSize)
	v.CapLength(len(p.bytes))
	n.inject(kind, v)
	return true
}

// ip answers p or sends it on, or tells that it is the stack's to answer.
func (n *Network) ip(p *packet, to network.MAC) (forStack bool) {
	switch {
	case p.proto == protoUDP && !p.fragment && len(p.body) >= udpHeader && be.Uint16(p.body[2:]) == dhcpServer &&
		p.src.Is4() && (p.src == netip.IPv4Unspecified() || p.src == Guest):
		n.dhcp(p.body[udpHeader:])
		return false
	case p.proto == protoICMP6 && p.src.Is6() && n.ndp(p):
		return false
	}
	if !isGuest(p.src) {
		n.counts.spoofed.Add(1)
		n.say("ip", "the guest sends from "+p.src.String()+", which is not its address: dropped")
		return false
	}
	if to != routerMAC || !routable(p.dst) {
		n.counts.unroutable.Add(1)
		return false
	}
	if p.proto != protoTCP && len(p.bytes) > network.MTU {
		n.counts.malformed.Add(1)
		return false
	}
	switch {
	case p.proto == protoTCP:
		return true
	case p.proto == protoUDP && p.fragment:
		return true // which puts it together, and gives it to datagram
	case p.proto == protoUDP:
		n.udpPacket(p)
		return false
	case p.proto == protoICMP && p.src.Is4(), p.proto == protoICMP6 && p.src.Is6():
		return n.icmp(p)
	}
	n.counts.unroutable.Add(1)
	if !p.fragment {
		n.unreachable(p.bytes, unreachableProtocol)
	}
	return false
}
