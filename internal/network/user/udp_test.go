package user

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vitrine.dev/vitrine/internal/network"
)

// echoUDP gives back what is sent to a port of the host's loopback.
func echoUDP(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go sendBack(c)
	return netip.AddrPortFrom(Gateway, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
}

func sendBack(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		c.WriteToUDPAddrPort(b[:n], from)
	}
}

func TestDatagramsGoAndComeWhole(t *testing.T) {
	for _, c := range eachOffload {
		g := newGuest(t, Config{}, c.offloads)
		conn := g.dialUDP(echoUDP(t))
		for _, size := range []int{0, 1, 1472, 1473, 9000, 60000} {
			want := random(size)
			if _, err := conn.Write(want); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 1<<16)
			n, err := conn.Read(got)
			if err != nil || !bytes.Equal(got[:n], want) {
				t.Errorf("%s: %d bytes came back of %d, error %v", c.name, n, size, err)
			}
		}
		conn.Close()
	}
}

func TestClosedPortIsUnreachableByUDP(t *testing.T) {
	g := newNetwork(t, Config{})
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := u.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	u.Close()
	g.send(udpFrame(netip.AddrPortFrom(Guest, 4321), netip.AddrPortFrom(Gateway, port), []byte("x")))
	p, ok := parseIPv4(g.next()[network.HeaderSize:])
	if !ok || p.body[0] != icmpUnreachable || p.body[1] != unreachablePort || p.src != Gateway {
		t.Fatalf("answer %x", p.bytes)
	}
	orig, ok := p.body[icmpHeader:], true
	if be.Uint16(orig[ipHeader:]) != 4321 || be.Uint16(orig[ipHeader+2:]) != port {
		t.Errorf("the error is about %x", orig)
	}
}

func TestFlowsAreBoundedAndTheOldestGoes(t *testing.T) {
	g := newGuest(t, Config{}, true)
	to := echoUDP(t)
	first := g.dialUDP(to)
	first.Write([]byte("x"))
	first.Read(make([]byte, 10))
	for range maxUDP + 10 {
		c := g.dialUDP(to)
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.net.udp.count(); n != maxUDP {
		t.Errorf("%d flows, want %d", n, maxUDP)
	}
	// The first is forgotten, and simply begins again.
	first.SetDeadline(time.Now().Add(wait))
	first.Write([]byte("again"))
	if n, err := first.Read(make([]byte, 10)); n != 5 {
		t.Errorf("the first flow reads %d bytes, %v", n, err)
	}
}

func TestForwardOfDatagrams(t *testing.T) {
	f, err := ParseForward("0:5353/udp")
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, Config{Forwards: []Forward{f}}, true)
	s, err := gonet.DialUDP(g.Stack, &tcpip.FullAddress{NIC: nic, Port: 5353}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			s.WriteTo(append([]byte("re: "), b[:n]...), from)
		}
	}()
	for _, text := range []string{"one", "two"} { // two peers
		c, err := net.Dial("udp", g.net.Listening()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(wait))
		c.Write([]byte(text))
		b := make([]byte, 100)
		if n, err := c.Read(b); string(b[:n]) != "re: "+text {
			t.Errorf("read %q, %v", b[:n], err)
		}
		c.Close()
	}
}
