package user

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"

	"vitrine.dev/vitrine/internal/network"
)

// ndpFrame is a message of neighbour discovery from the guest.
func ndpFrame(src, dst netip.Addr, message []byte) []byte {
	m := bytes.Clone(message)
	m[2], m[3] = 0, 0
	be.PutUint16(m[2:], icmpSum(src, dst, m))
	f := ipFrame(src, dst, protoICMP6, m)
	f[network.HeaderSize+7] = ndpHops
	return f
}

// next6 is the next packet for the guest, which must be of ICMPv6 with a right checksum.
func (g *guest) next6() packet {
	g.t.Helper()
	f := g.next()
	p, ok := parseIPv6(f[network.HeaderSize:])
	if !ok || p.proto != protoICMP6 || icmpSum(p.src, p.dst, p.body) != 0 {
		g.t.Fatalf("no ICMPv6 message: %x", f)
	}
	return p
}

func TestNeighboursAreTheRouterAlone(t *testing.T) {
	g := newNetwork(t, Config{})
	ask := func(target string) []byte {
		return append([]byte{icmp6NeighbourAsk, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
	}
	none := netip.IPv6Unspecified()
	for _, c := range []struct {
		name  string
		frame []byte
		to    netip.Addr // of the answer; invalid: there is none
	}{
		{"the gateway", ndpFrame(guest6.Addr(), Gateway6, ask("fec0::2")), guest6.Addr()},
		{"the name server", ndpFrame(guest6.Addr(), DNS6, ask("fec0::3")), guest6.Addr()},
		{"the router", ndpFrame(netip.MustParseAddr("fe80::1234"), router6, ask("fe80::2")), netip.MustParseAddr("fe80::1234")},
		{"somebody who takes our address", ndpFrame(none, allNodes, ask("fec0::2")), allNodes},
		{"somebody who looks whether an address is free", ndpFrame(none, allNodes, ask("fec0::77")), netip.Addr{}},
		{"nobody", ndpFrame(guest6.Addr(), allNodes, ask("fec0::4")), netip.Addr{}},
		{"from a forged address", ndpFrame(netip.MustParseAddr("2001:db8::1"), Gateway6, ask("fec0::2")), netip.Addr{}},
		{"in our name", ndpFrame(DNS6, Gateway6, ask("fec0::2")), netip.Addr{}},
		{"cut off", ndpFrame(guest6.Addr(), Gateway6, ask("fec0::2")[:20]), netip.Addr{}},
		{"from further away", func() []byte {
			f := ndpFrame(guest6.Addr(), Gateway6, ask("fec0::2"))
			f[network.HeaderSize+7] = 254
			return f
		}(), netip.Addr{}},
	} {
		g.send(c.frame)
		if !c.to.IsValid() {
			if f := g.nextOrNone(0); f != nil {
				t.Errorf("%s: answer %x", c.name, f)
			}
			continue
		}
		p := g.next6()
		if p.dst != c.to || p.hops != ndpHops || p.body[0] != icmp6Neighbour || !bytes.HasSuffix(p.body, routerMAC[:]) || netip.AddrFrom16([16]byte(p.body[ndpTarget:])) != p.src {
			t.Errorf("%s: answer %x", c.name, p.bytes)
		}
	}
}

func TestRouterTellsPrefixAndNameServer(t *testing.T) {
	g := newNetwork(t, Config{})
	g.send(ndpFrame(netip.MustParseAddr("fe80::1234"), netip.MustParseAddr("ff02::2"), []byte{icmp6RouterSolicit, 0, 0, 0, 0, 0, 0, 0}))
	p := g.next6()
	if p.src != router6 || p.body[0] != icmp6Router {
		t.Fatalf("answer %x", p.bytes)
	}
	if lifetime := be.Uint16(p.body[6:]); wayOut6() != (lifetime > 0) {
		t.Errorf("the host has a way out: %v; it is told to last %d s", wayOut6(), lifetime)
	}
	seen := map[byte][]byte{}
	for o := p.body[routerAdvertise:]; len(o) > 0; o = o[8*int(o[1]):] {
		seen[o[0]] = o[:8*int(o[1])]
	}
	if b := seen[optPrefix]; len(b) != 32 || b[2] != 64 || b[3] != 0xC0 || netip.AddrFrom16([16]byte(b[16:])) != Subnet6.Addr() {
		t.Errorf("prefix % x", b)
	}
	if b := seen[optRDNSS]; len(b) != 24 || netip.AddrFrom16([16]byte(b[8:])) != DNS6 {
		t.Errorf("name server % x", b)
	}
	if b := seen[optMTU6]; len(b) != 8 || be.Uint32(b[4:]) != network.MTU {
		t.Errorf("MTU % x", b)
	}
}

// on6 is where the guest finds a port of the host's ::1.
func on6(t *testing.T) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp6", &net.TCPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Skipf("this host has no ::1: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l, netip.AddrPortFrom(Gateway6, l.Addr().(*net.TCPAddr).AddrPort().Port())
}

func TestConnectionByIPv6(t *testing.T) {
	for _, c := range eachOffload {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, Config{}, c.offloads)
			l, at := on6(t)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.Copy(c, c)
				c.Close()
			}()
			conn, err := g.dial(at)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			want := random(3 << 20)
			go func() {
				conn.Write(want)
				conn.CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back of %d, error %v", len(got), len(want), err)
			}
		})
	}
}

func TestRefusedConnectionByIPv6(t *testing.T) {
	g := newGuest(t, Config{}, true)
	l, at := on6(t)
	l.Close()
	if c, err := g.dial(at); err == nil {
		c.Close()
		t.Error("a port where nobody listens was connected to")
	}
}

func TestDatagramsByIPv6GoAndComeWhole(t *testing.T) {
	u, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Skipf("this host has no ::1: %v", err)
	}
	defer u.Close()
	go sendBack(u)
	g := newGuest(t, Config{}, true)
	conn := g.dialUDP(netip.AddrPortFrom(Gateway6, u.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
	defer conn.Close()
	for _, size := range []int{0, 1, 1452, 1453, 9000, 60000} {
		want := random(size)
		if _, err := conn.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<16)
		n, err := conn.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Errorf("%d bytes came back of %d, error %v", n, size, err)
		}
	}
}

func TestEchoByIPv6(t *testing.T) {
	g := newNetwork(t, Config{})
	m := append([]byte{icmp6Echo, 0, 0, 0, 1, 2, 3, 4}, "are you there"...)
	be.PutUint16(m[2:], icmpSum(guest6.Addr(), Gateway6, m))
	g.send(ipFrame(guest6.Addr(), Gateway6, protoICMP6, m))
	p := g.next6()
	if p.src != Gateway6 || p.dst != guest6.Addr() || p.body[0] != icmp6EchoReply || string(p.body[4:]) != "\x01\x02\x03\x04are you there" {
		t.Errorf("answer %x", p.bytes)
	}
}

func TestUnknownProtocolOfIPv6IsSaidToBe(t *testing.T) {
	g := newNetwork(t, Config{})
	orig := ipFrame(guest6.Addr(), Gateway6, 132, []byte("sctp....more"))
	g.send(orig)
	p := g.next6()
	if p.body[0] != icmp6Parameter || p.body[1] != 1 || p.body[7] != 6 || !bytes.Equal(p.body[icmpHeader:], orig[network.HeaderSize:]) {
		t.Errorf("answer %x", p.bytes)
	}
}

func TestExtensionHeadersAreBounded(t *testing.T) {
	chain := func(n int) []byte {
		b := make([]byte, ip6Header+8*n+4)
		b[0] = 0x60
		be.PutUint16(b[4:], uint16(8*n+4))
		for i := range n {
			b[ip6Header+8*i] = protoDestination
		}
		if n > 0 {
			b[6] = protoDestination
			b[ip6Header+8*(n-1)] = protoTCP
		}
		return b
	}
	if p, ok := parseIPv6(chain(3)); !ok || p.proto != protoTCP || len(p.body) != 4 {
		t.Errorf("behind 3 headers: protocol %d, %d bytes", p.proto, len(p.body))
	}
	if p, _ := parseIPv6(chain(maxExtensions + 1)); p.proto == protoTCP {
		t.Error("as many headers as one likes are looked behind")
	}
	cut := chain(1)
	cut[ip6Header+1] = 200
	if _, ok := parseIPv6(cut); ok {
		t.Error("a header past the packet's end is taken")
	}
}
