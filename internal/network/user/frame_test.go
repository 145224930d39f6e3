package user

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"vitrine.dev/vitrine/internal/network"
)

func arpFrame(sender network.MAC, from, target netip.Addr) []byte {
	b := append(append([]byte(nil), arpKind...), 0, arpRequest)
	b = append(append(b, sender[:]...), from.AsSlice()...)
	b = append(append(b, make([]byte, 6)...), target.AsSlice()...)
	return append(ethernet(etherARP), b...)
}

func TestARPAnswersForTheRouterAlone(t *testing.T) {
	g := newNetwork(t, Config{})
	other := netip.MustParseAddr("10.0.2.77")
	for _, c := range []struct {
		name   string
		frame  []byte
		answer bool
	}{
		{"the gateway", arpFrame(GuestMAC, Guest, Gateway), true},
		{"the name server", arpFrame(GuestMAC, Guest, DNS), true},
		{"a probe", arpFrame(GuestMAC, netip.IPv4Unspecified(), Gateway), true},
		{"nobody", arpFrame(GuestMAC, Guest, other), false},
		{"the guest itself", arpFrame(GuestMAC, netip.IPv4Unspecified(), Guest), false},
		{"a forged address", arpFrame(GuestMAC, other, Gateway), false},
		{"a forged sender", arpFrame(network.MAC{2}, Guest, Gateway), false},
		{"half a question", arpFrame(GuestMAC, Guest, Gateway)[:30], false},
	} {
		g.send(c.frame)
		f := g.nextOrNone(0)
		if (f != nil) != c.answer {
			t.Errorf("%s: answer %x", c.name, f)
			continue
		}
		if f == nil {
			continue
		}
		a := f[network.HeaderSize:]
		if network.MAC(f) != GuestMAC || a[arpOperation+1] != arpReply || network.MAC(a[arpSender:]) != routerMAC ||
			!bytes.Equal(a[arpSender+6:arpSender+10], c.frame[network.HeaderSize+arpTarget+6:]) || network.MAC(a[arpTarget:]) != GuestMAC {
			t.Errorf("%s: answer %x", c.name, f)
		}
	}
}

func dhcpQuery(kind uint8, mac network.MAC, client netip.Addr, options ...byte) []byte {
	b := make([]byte, dhcpOptions)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[dhcpXID:], "xid!")
	copy(b[12:], client.AsSlice())
	copy(b[dhcpMAC:], mac[:])
	be.PutUint32(b[dhcpCookie:], magic)
	b = append(b, optType, 1, kind)
	return append(append(b, options...), optEnd)
}

func TestDHCPGivesTheOneAddress(t *testing.T) {
	g := newNetwork(t, Config{Name: "museum"})
	none := netip.IPv4Unspecified()
	ask := func(a netip.Addr) []byte { return append([]byte{optRequested, 4}, a.AsSlice()...) }
	from := func(a netip.Addr) []byte { return append([]byte{optServer, 4}, a.AsSlice()...) }
	other := netip.MustParseAddr("10.0.2.16")
	for _, c := range []struct {
		name  string
		query []byte
		kind  byte // 0: no answer
		yours netip.Addr
	}{
		{"discover", dhcpQuery(dhcpDiscover, GuestMAC, none), dhcpOffer, Guest},
		{"discover another", dhcpQuery(dhcpDiscover, GuestMAC, none, ask(other)...), dhcpOffer, Guest},
		{"request", dhcpQuery(dhcpRequest, GuestMAC, none, append(ask(Guest), from(Gateway)...)...), dhcpACK, Guest},
		{"request another", dhcpQuery(dhcpRequest, GuestMAC, none, append(ask(other), from(Gateway)...)...), dhcpNAK, none},
		{"request of another server", dhcpQuery(dhcpRequest, GuestMAC, none, append(ask(Guest), from(other)...)...), 0, none},
		{"renew", dhcpQuery(dhcpRequest, GuestMAC, Guest), dhcpACK, Guest},
		{"request of nothing", dhcpQuery(dhcpRequest, GuestMAC, none), dhcpNAK, none},
		{"inform", dhcpQuery(dhcpInform, GuestMAC, Guest), dhcpACK, none},
		{"for a forged card", dhcpQuery(dhcpDiscover, network.MAC{2}, none), 0, none},
		{"an answer", append([]byte{2}, dhcpQuery(dhcpOffer, GuestMAC, none)[1:]...), 0, none},
		{"options cut off", append(dhcpQuery(dhcpDiscover, GuestMAC, none)[:243], 50, 200, 1), 0, none},
		{"nothing", nil, 0, none},
	} {
		f := udpFrame(netip.AddrPortFrom(none, dhcpClient), netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpServer), c.query)
		copy(f, "\xFF\xFF\xFF\xFF\xFF\xFF")
		g.send(f)
		a := g.nextOrNone(0)
		if (a != nil) != (c.kind != 0) {
			t.Errorf("%s: answer %x", c.name, a)
			continue
		}
		if a == nil {
			continue
		}
		p, ok := parseIPv4(a[network.HeaderSize:])
		if !ok || sum(p.body, pseudo(p.src, p.dst, protoUDP, len(p.body))) != 0xFFFF {
			t.Fatalf("%s: wrong checksums in %x", c.name, a)
		}
		m := p.body[udpHeader:]
		if yours := netip.AddrFrom4([4]byte(m[dhcpYours:])); yours != c.yours || string(m[dhcpXID:dhcpXID+4]) != "xid!" || m[dhcpOptions+2] != c.kind {
			t.Errorf("%s: type %d, address %v; want %d, %v", c.name, m[dhcpOptions+2], yours, c.kind, c.yours)
		}
		if c.kind != dhcpNAK {
			for _, want := range [][]byte{{optMask, 4, 255, 255, 255, 0}, {optRouter, 4, 10, 0, 2, 2}, {optDNS, 4, 10, 0, 2, 3}, {optMTU, 2, 5, 220},
				append([]byte{optHostName, 6}, "museum"...)} {
				if !bytes.Contains(m[dhcpOptions:], want) {
					t.Errorf("%s: no option % d", c.name, want)
				}
			}
		}
	}
}

func TestOnlyTheGuestsOwnAddressesPass(t *testing.T) {
	g := newNetwork(t, Config{})
	to := netip.MustParseAddrPort("198.51.100.1:9")
	good := udpFrame(netip.AddrPortFrom(Guest, 9), to, []byte("x"))
	badMAC := bytes.Clone(good)
	badMAC[6] ^= 2
	for _, c := range []struct {
		name  string
		frame []byte
		count func() uint64
	}{
		{"another card's address", badMAC, g.net.counts.spoofed.Load},
		{"another IP address", udpFrame(netip.MustParseAddrPort("10.0.2.99:9"), to, nil), g.net.counts.spoofed.Load},
		{"no IP address", udpFrame(netip.MustParseAddrPort("0.0.0.0:9"), to, nil), g.net.counts.spoofed.Load},
		{"to loopback", udpFrame(netip.AddrPortFrom(Guest, 9), netip.MustParseAddrPort("127.0.0.1:9"), nil), g.net.counts.unroutable.Load},
		{"to nowhere", udpFrame(netip.AddrPortFrom(Guest, 9), netip.MustParseAddrPort("0.0.0.0:9"), nil), g.net.counts.unroutable.Load},
		{"to many", udpFrame(netip.AddrPortFrom(Guest, 9), netip.MustParseAddrPort("224.0.0.251:5353"), nil), g.net.counts.unroutable.Load},
		{"to all", udpFrame(netip.AddrPortFrom(Guest, 9), netip.MustParseAddrPort("255.255.255.255:9"), nil), g.net.counts.unroutable.Load},
		{"to itself", udpFrame(netip.AddrPortFrom(Guest, 9), netip.AddrPortFrom(Guest, 9), nil), g.net.counts.unroutable.Load},
		{"no IPv6", append(ethernet(etherIPv6), make([]byte, 40)...), g.net.counts.malformed.Load},
		{"another IPv6 address", udpFrame(netip.MustParseAddrPort("[2001:db8::9]:9"), netip.AddrPortFrom(Gateway6, 9), nil), g.net.counts.spoofed.Load},
		{"the gateway's IPv6 address", udpFrame(netip.AddrPortFrom(Gateway6, 9), netip.AddrPortFrom(DNS6, 9), nil), g.net.counts.spoofed.Load},
		{"to IPv6 loopback", udpFrame(guest6, netip.MustParseAddrPort("[::1]:9"), nil), g.net.counts.unroutable.Load},
		{"to IPv4 loopback as IPv6", udpFrame(guest6, netip.MustParseAddrPort("[::ffff:127.0.0.1]:9"), nil), g.net.counts.unroutable.Load},
		{"to the host's link", udpFrame(guest6, netip.MustParseAddrPort("[fe80::1]:9"), nil), g.net.counts.unroutable.Load},
		{"to many by IPv6", udpFrame(guest6, netip.MustParseAddrPort("[ff02::fb]:5353"), nil), g.net.counts.unroutable.Load},
		{"to a neighbour that is not there", udpFrame(guest6, netip.MustParseAddrPort("[fec0::99]:9"), nil), g.net.counts.unroutable.Load},
		{"a wrong header checksum", func() []byte { f := bytes.Clone(good); f[network.HeaderSize+10]++; return f }(), g.net.counts.malformed.Load},
		{"a length past the end", good[:len(good)-1], g.net.counts.malformed.Load},
		{"a datagram longer than the wire", udpFrame(netip.AddrPortFrom(Guest, 9), to, make([]byte, 3000)), g.net.counts.malformed.Load},
	} {
		before := c.count()
		g.send(c.frame)
		if c.count() != before+1 {
			t.Errorf("%s: not counted", c.name)
		}
		if f := g.nextOrNone(0); f != nil {
			t.Errorf("%s: answered with %x", c.name, f)
		}
	}
	if g.net.stack != nil || g.net.udp.count() != 0 {
		t.Error("something went through")
	}
	if !g.logged("10.0.2.99") {
		t.Errorf("nothing was said of the forged address: %q", g.logs)
	}
}

func icmpFrame(dst netip.Addr, kind uint8, data []byte) []byte {
	b := append([]byte{kind, 0, 0, 0, 1, 2, 3, 4}, data...)
	be.PutUint16(b[2:], ^sum(b, 0))
	return ipFrame(Guest, dst, protoICMP, b)
}

func TestEchoOfTheGatewayNeedsNoRights(t *testing.T) {
	g := newNetwork(t, Config{})
	g.send(icmpFrame(Gateway, icmpEcho, []byte("are you there")))
	p, ok := parseIPv4(g.next()[network.HeaderSize:])
	if !ok || p.src != Gateway || p.dst != Guest || sum(p.body, 0) != 0xFFFF || p.body[0] != icmpEchoReply || string(p.body[4:]) != "\x01\x02\x03\x04are you there" {
		t.Errorf("answer %x", p.bytes)
	}
	if g.net.stack != nil {
		t.Error("a stack was made for it")
	}
}

// ownAddress is an address of this host that the guest may send to, if there is one.
func ownAddress() (netip.Addr, bool) {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP.To4()); ok && routable(a) && !Subnet.Contains(a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

func TestEchoOfOthersIsSentOnOrRefused(t *testing.T) {
	g := newNetwork(t, Config{})
	to, ok := ownAddress()
	if !ok {
		to = netip.MustParseAddr("198.51.100.1")
	}
	f, err := g.net.echo.begin(to)
	allowed := err == nil
	if allowed {
		g.net.echo.end(f)
		if !ok {
			t.Skip("this host has no address to send an echo request to")
		}
	}
	g.send(icmpFrame(to, icmpEcho, []byte("are you there")))
	p, ok := parseIPv4(g.next()[network.HeaderSize:])
	if !ok || sum(p.body, 0) != 0xFFFF {
		t.Fatalf("answer %x", p.bytes)
	}
	switch {
	case allowed:
		if p.src != to || p.body[0] != icmpEchoReply || string(p.body[4:]) != "\x01\x02\x03\x04are you there" {
			t.Errorf("answer %x", p.bytes)
		}
	case p.body[0] != icmpUnreachable || p.body[1] != prohibited:
		t.Errorf("answer %x, want a refusal", p.bytes)
	case !g.logged("ping_group_range"):
		t.Errorf("nothing was said: %q", g.logs)
	}
}

func TestUnknownProtocolIsSaidToBe(t *testing.T) {
	g := newNetwork(t, Config{})
	orig := ipFrame(Guest, netip.MustParseAddr("198.51.100.1"), 132, []byte("sctp....more"))
	g.send(orig)
	p, ok := parseIPv4(g.next()[network.HeaderSize:])
	if !ok || p.body[0] != icmpUnreachable || p.body[1] != unreachableProtocol || !bytes.Equal(p.body[icmpHeader:], orig[network.HeaderSize:][:28]) {
		t.Errorf("answer %x", p.bytes)
	}
}

func TestFramesForTheGuestAreBounded(t *testing.T) {
	g := newNetwork(t, Config{})
	for range 2 * maxFrames {
		g.send(icmpFrame(Gateway, icmpEcho, nil))
	}
	for range maxFrames {
		g.next()
	}
	if f := g.nextOrNone(0); f != nil {
		t.Error("more frames were kept")
	}
	if n := g.net.out.overflow.Load(); n != maxFrames {
		t.Errorf("%d frames were dropped, want %d", n, maxFrames)
	}
	big := make([]byte, 1<<20)
	for range maxBytes/len(big) + 3 {
		g.net.out.push(item{raw: big})
	}
	if g.net.out.bytes > maxBytes {
		t.Errorf("%d bytes are kept, want at most %d", g.net.out.bytes, maxBytes)
	}
}

func TestFramesWithoutADriverAreDropped(t *testing.T) {
	g := newNetwork(t, Config{})
	g.send(icmpFrame(Gateway, icmpEcho, nil))
	g.net.Down()
	g.send(icmpFrame(Gateway, icmpEcho, nil))
	if g.net.Connected() {
		t.Error("a driver is said to be there")
	}
	g.net.Up(0, func() {}, func() {})
	if f := g.nextOrNone(0); f != nil {
		t.Errorf("the next driver gets %x", f)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(ndpFrame(guest6.Addr(), allNodes, append([]byte{icmp6NeighbourAsk, 0, 0, 0, 0, 0, 0, 0}, Gateway6.AsSlice()...)))
	f.Add(udpFrame(guest6, netip.AddrPortFrom(DNS6, dnsPort), dnsQuery(HostName, typeAAAA)))
	f.Add(append(ethernet(etherIPv6), append([]byte{0x60, 0, 0, 0, 0, 16, 0, 64}, make([]byte, 48)...)...))
	f.Add(arpFrame(GuestMAC, Guest, Gateway))
	f.Add(icmpFrame(Gateway, icmpEcho, []byte("hello")))
	f.Add(udpFrame(netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpClient), netip.AddrPortFrom(Gateway, dhcpServer), dhcpQuery(dhcpDiscover, GuestMAC, Guest)))
	f.Add(udpFrame(netip.AddrPortFrom(Guest, 99), netip.AddrPortFrom(DNS, dnsPort), dnsQuery(HostName, typeA)))
	g := newNetwork(f, Config{ResolvConf: "/nonexistent"})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < network.HeaderSize+ipHeader {
			return
		}
		// Most of what is not well-addressed is dropped at once: address it well. Nothing may leave this host.
		copy(b, ethernet(be.Uint16(b[12:])))
		if be.Uint16(b[12:]) == etherIPv4 {
			ip := b[network.HeaderSize:]
			copy(ip[12:], Guest.AsSlice())
			if a := netip.AddrFrom4([4]byte(ip[16:])); routable(a) && a != DNS {
				copy(ip[16:], Gateway.AsSlice())
			}
			if ip[9] == protoUDP || ip[9] == protoTCP {
				copy(ip[16:], DNS.AsSlice())
			}
			if h := int(ip[0]&15) * 4; h >= ipHeader && h <= len(ip) {
				ip[10], ip[11] = 0, 0
				be.PutUint16(ip[10:], ^sum(ip[:h], 0))
			}
		}
		if be.Uint16(b[12:]) == etherIPv6 && len(b) >= network.HeaderSize+ip6Header {
			ip := b[network.HeaderSize:]
			copy(ip[8:], guest6.Addr().AsSlice())
			if a := netip.AddrFrom16([16]byte(ip[24:])); routable(a) {
				copy(ip[24:], DNS6.AsSlice())
			}
		}
		g.send(b)
		for f := g.nextOrNone(0); f != nil; f = g.nextOrNone(0) {
			if len(f) < network.HeaderSize || len(f) > network.MaxFrame || network.MAC(f) != GuestMAC {
				t.Errorf("answer %x", f)
			}
		}
	})
}

func FuzzDHCP(f *testing.F) {
	f.Add(dhcpQuery(dhcpRequest, GuestMAC, Guest, optServer, 4, 10, 0, 2, 2))
	g := newNetwork(f, Config{})
	f.Fuzz(func(t *testing.T, b []byte) {
		g.net.dhcp(b)
		g.nextOrNone(0)
	})
}
