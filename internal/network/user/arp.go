package user

import (
	"bytes"
	"net/netip"

	"vitrine.dev/vitrine/internal/network"
)

// ARP for IPv4 over Ethernet (RFC 826): hardware type, protocol, lengths, operation, then sender and target with both addresses each.
const (
	arpSize      = 28
	arpOperation = 6
	arpSender    = 8
	arpTarget    = 18
	arpRequest   = 1
	arpReply     = 2
)

var arpKind = []byte{0, 1, etherIPv4 >> 8, etherIPv4 & 0xFF, 6, 4}

// arp answers for the gateway and the name server.
func (n *Network) arp(b []byte) {
	if len(b) < arpSize || !bytes.Equal(b[:6], arpKind) {
		n.counts.malformed.Add(1)
		return
	}
	sender, target := netip.AddrFrom4([4]byte(b[arpSender+6:])), netip.AddrFrom4([4]byte(b[arpTarget+6:]))
	probe := sender == netip.IPv4Unspecified() // RFC 5227
	if network.MAC(b[arpSender:]) != GuestMAC || sender != Guest && !probe {
		n.counts.spoofed.Add(1)
		return
	}
	if be.Uint16(b[arpOperation:]) != arpRequest || target != Gateway && target != DNS {
		return
	}
	frame := make([]byte, network.HeaderSize+arpSize)
	putEthernet(frame, GuestMAC, etherARP)
	r := frame[network.HeaderSize:]
	copy(r, arpKind)
	be.PutUint16(r[arpOperation:], arpReply)
	copy(r[arpSender:], routerMAC[:])
	copy(r[arpSender+6:], b[arpTarget+6:arpTarget+10])
	copy(r[arpTarget:], b[arpSender:arpSender+10])
	n.out.push(item{raw: frame})
}
