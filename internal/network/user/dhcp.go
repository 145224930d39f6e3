package user

import (
	"encoding/binary"
	"net/netip"

	"vitrine.dev/vitrine/internal/network"
)

// DHCP (RFC 2131, 2132): a fixed header, a cookie, then options of a number, a length and bytes each.
const (
	dhcpServer = 67
	dhcpClient = 68

	dhcpOp      = 0
	dhcpXID     = 4
	dhcpFlags   = 10
	dhcpYours   = 16
	dhcpServerA = 20
	dhcpMAC     = 28
	dhcpCookie  = 236
	dhcpOptions = 240
	dhcpMinimum = 300 // some clients drop what is shorter, as BOOTP was

	optPad, optMask, optRouter, optDNS, optHostName = 0, 1, 3, 6, 12
	optMTU, optRequested, optLease, optType         = 26, 50, 51, 53
	optServer, optEnd                               = 54, 255

	dhcpDiscover, dhcpOffer, dhcpRequest, dhcpACK, dhcpNAK, dhcpInform = 1, 2, 3, 5, 6, 8

	leaseSeconds = 24 * 60 * 60
	magic        = 0x63825363
)

// A dhcpMessage is what counts of a client's message.
type dhcpMessage struct {
	kind      uint8
	xid       [4]byte
	flags     uint16
	mac       network.MAC
	client    netip.Addr // ciaddr
	requested netip.Addr // zero where it is not given
	server    netip.Addr
}

// parseDHCP reads a client's message.
func parseDHCP(b []byte) (m dhcpMessage, ok bool) {
	// op, htype, hlen: a request over Ethernet
	if len(b) < dhcpOptions || b[0] != 1 || b[1] != 1 || b[2] != 6 || be.Uint32(b[dhcpCookie:]) != magic {
		return m, false
	}
	m.xid, m.flags = [4]byte(b[dhcpXID:]), be.Uint16(b[dhcpFlags:])
	m.mac, m.client = network.MAC(b[dhcpMAC:]), netip.AddrFrom4([4]byte(b[12:]))
	for o := b[dhcpOptions:]; len(o) > 0; {
		if o[0] == optEnd {
			break
		}
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return m, false
		}
		v := o[2 : 2+int(o[1])]
		switch {
		case o[0] == optType && len(v) == 1:
			m.kind = v[0]
		case o[0] == optRequested && len(v) == 4:
			m.requested = netip.AddrFrom4([4]byte(v))
		case o[0] == optServer && len(v) == 4:
			m.server = netip.AddrFrom4([4]byte(v))
		}
		o = o[2+int(o[1]):]
	}
	return m, true
}

// dhcp answers a client: there is one address, and it is the guest's.
func (n *Network) dhcp(b []byte) {
	m, ok := parseDHCP(b)
	if !ok || m.mac != GuestMAC {
		n.counts.malformed.Add(1)
		return
	}
	var kind uint8
	yours := Guest
	switch m.kind {
	case dhcpDiscover:
		kind = dhcpOffer
	case dhcpRequest:
		if m.server.IsValid() && m.server != Gateway {
			return // it chose another server's offer
		}
		kind = dhcpACK
		if want := m.requested; want.IsValid() && want != Guest || !want.IsValid() && m.client != Guest {
			kind, yours = dhcpNAK, netip.IPv4Unspecified()
		}
	case dhcpInform:
		kind, yours = dhcpACK, netip.IPv4Unspecified()
	default: // declined or released: it stays the guest's
		return
	}
	r := n.dhcpReply(&m, kind, yours)
	to := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if m.client == Guest && kind == dhcpACK {
		to = Guest
	}
	n.sendUDP(netip.AddrPortFrom(Gateway, dhcpServer), netip.AddrPortFrom(to, dhcpClient), r)
}

func (n *Network) dhcpReply(m *dhcpMessage, kind uint8, yours netip.Addr) []byte {
	r := make([]byte, dhcpOptions, dhcpMinimum+64)
	r[0], r[1], r[2] = 2, 1, 6
	copy(r[dhcpXID:], m.xid[:])
	be.PutUint16(r[dhcpFlags:], m.flags)
	ci, yi, si := m.client.As4(), yours.As4(), Gateway.As4()
	copy(r[12:], ci[:])
	copy(r[dhcpYours:], yi[:])
	copy(r[dhcpServerA:], si[:])
	copy(r[dhcpMAC:], m.mac[:])
	be.PutUint32(r[dhcpCookie:], magic)
	option := func(number uint8, v ...byte) { r = append(append(r, number, uint8(len(v))), v...) }
	option(optType, kind)
	option(optServer, Gateway.AsSlice()...)
	if kind != dhcpNAK {
		mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-Subnet.Bits()))
		option(optMask, mask...)
		option(optRouter, Gateway.AsSlice()...)
		option(optDNS, DNS.AsSlice()...)
		option(optMTU, be.AppendUint16(nil, network.MTU)...)
		if kind == dhcpOffer || m.kind == dhcpRequest {
			option(optLease, be.AppendUint32(nil, leaseSeconds)...)
		}
		if name := n.cfg.Name; name != "" && len(name) < 64 {
			option(optHostName, []byte(name)...)
		}
	}
	r = append(r, optEnd)
	for len(r) < dhcpMinimum {
		r = append(r, optPad)
	}
	return r
}
