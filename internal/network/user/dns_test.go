package user

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/network"
)

// dnsQuery asks for a name.
func dnsQuery(name string, kind uint16) []byte {
	b := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	b = append(b, 0)
	return be.AppendUint16(be.AppendUint16(b, kind), classIN)
}

func TestOwnNamesAreAnsweredHere(t *testing.T) {
	g := newNetwork(t, Config{Name: "museum", ResolvConf: "/nonexistent"})
	for _, c := range []struct {
		name   string
		kind   uint16
		rcode  byte
		answer netip.Addr
	}{
		{HostName, typeA, 0, Gateway},
		{"HOST.Vitrine", typeA, 0, Gateway},
		{HostName, typeAAAA, 0, Gateway6},
		{"museum", typeAAAA, 0, netip.Addr{}}, // the name exists, the address does not
		{"museum", typeA, 0, Guest},
		{"other.vitrine", typeA, rcodeNoName, netip.Addr{}},
		{"vitrine", typeA, rcodeNoName, netip.Addr{}},
	} {
		g.send(udpFrame(netip.AddrPortFrom(Guest, 4321), netip.AddrPortFrom(DNS, dnsPort), dnsQuery(c.name, c.kind)))
		p, ok := parseIPv4(g.next()[network.HeaderSize:])
		if !ok || p.src != DNS || sum(p.body, pseudo(p.src, p.dst, protoUDP, len(p.body))) != 0xFFFF {
			t.Fatalf("%s: answer %x", c.name, p.bytes)
		}
		r := p.body[udpHeader:]
		if r[0] != 0x12 || r[2]&0x80 == 0 || r[3]&15 != c.rcode {
			t.Errorf("%s %d: header %x, want code %d", c.name, c.kind, r[:dnsHeader], c.rcode)
		}
		if c.answer.IsValid() != (r[7] == 1) || c.answer.IsValid() && !bytes.HasSuffix(r, c.answer.AsSlice()) {
			t.Errorf("%s %d: answer %x, want %v", c.name, c.kind, r, c.answer)
		}
	}
}

// server answers DNS queries on a loopback port, by a function, on UDP and TCP, and gives a resolver's file... which names port 53.
func server(t *testing.T, g *guest, answer func(query []byte, tcp bool) []byte) {
	t.Helper()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", u.LocalAddr().String())
	if err != nil {
		t.Skipf("the same port is not free for TCP: %v", err)
	}
	t.Cleanup(func() { u.Close(); l.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if a := answer(b[:n], false); a != nil {
				u.WriteTo(a, from)
			}
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if q, err := readMessage(c); err == nil {
				writeMessage(c, answer(q, true))
			}
			c.Close()
		}
	}()
	g.net.dns.mu.Lock()
	g.net.dns.servers, g.net.dns.read = []netip.AddrPort{u.LocalAddr().(*net.UDPAddr).AddrPort()}, time.Now().Add(time.Hour)
	g.net.dns.mu.Unlock()
}

func TestOtherNamesAreAskedOfTheHostsServer(t *testing.T) {
	g := newNetwork(t, Config{})
	long := bytes.Repeat([]byte("x"), 2000)
	server(t, g, func(q []byte, tcp bool) []byte {
		name, _, end, _ := question(q)
		r := answer(q, end, 0, netip.MustParseAddr("192.0.2.7"))
		if name == "long.example" {
			r = append(r, long...)
		}
		return r
	})
	ask := func(name string) []byte {
		g.send(udpFrame(netip.AddrPortFrom(Guest, 4321), netip.AddrPortFrom(DNS, dnsPort), dnsQuery(name, typeA)))
		p, ok := parseIPv4(g.next()[network.HeaderSize:])
		if !ok {
			t.Fatal("not a packet")
		}
		return p.body[udpHeader:]
	}
	if r := ask("www.example"); !bytes.HasSuffix(r, []byte{192, 0, 2, 7}) {
		t.Errorf("answer %x", r)
	}
	if r := ask("long.example"); be.Uint16(r[2:])&dnsTruncated == 0 || len(r) > maxDatagram || r[7] != 0 {
		t.Errorf("a long answer is not cut off: %d bytes, header %x", len(r), r[:dnsHeader])
	}
}

func TestLongAnswersComeByTCP(t *testing.T) {
	g := newGuest(t, Config{}, true)
	long := bytes.Repeat([]byte("x"), 5000)
	server(t, g, func(q []byte, tcp bool) []byte {
		_, _, end, _ := question(q)
		return append(answer(q, end, 0, netip.Addr{}), long...)
	})
	c, err := g.dial(netip.AddrPortFrom(DNS, dnsPort))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, name := range []string{"www.example", HostName} {
		if err := writeMessage(c, dnsQuery(name, typeA)); err != nil {
			t.Fatal(err)
		}
		r, err := readMessage(c)
		if err != nil {
			t.Fatal(err)
		}
		if ok := bytes.HasSuffix(r, long); ok != (name != HostName) {
			t.Errorf("%s: %d bytes", name, len(r))
		}
	}
}

func TestNoServerIsAFailureNotSilence(t *testing.T) {
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := u.LocalAddr().(*net.UDPAddr).AddrPort()
	u.Close()
	g := newNetwork(t, Config{})
	g.net.dns.servers, g.net.dns.read = []netip.AddrPort{closed}, time.Now().Add(time.Hour)
	g.send(udpFrame(netip.AddrPortFrom(Guest, 4321), netip.AddrPortFrom(DNS, dnsPort), dnsQuery("www.example", typeA)))
	p, _ := parseIPv4(g.next()[network.HeaderSize:])
	if r := p.body[udpHeader:]; r[3]&15 != rcodeFailed {
		t.Errorf("answer %x, want a failure", r)
	}
}

func TestOtherPortsOfTheNameServerAreClosed(t *testing.T) {
	g := newGuest(t, Config{}, true)
	if c, err := g.dial(netip.AddrPortFrom(DNS, 80)); err == nil {
		c.Close()
		t.Error("port 80 is open")
	}
	g.send(udpFrame(netip.AddrPortFrom(Guest, 4321), netip.AddrPortFrom(DNS, 54), nil))
}

func TestResolvConf(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 192.0.2.1\n# nameserver 192.0.2.9\nnameserver\t192.0.2.2 # x\nsearch example\n": "[192.0.2.1:53 192.0.2.2:53]",
		"nameserver ::1\nnameserver x\n": "[[::1]:53]",
		"":                               "[127.0.0.1:53]",
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4": "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53]",
	} {
		if got := fmt.Sprint(parseResolvConf(text)); got != want {
			t.Errorf("%q gives %s, want %s", text, got, want)
		}
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600)
	r := resolver{path: path}
	if got := fmt.Sprint(r.upstream()); got != "[192.0.2.1:53]" {
		t.Errorf("servers %s", got)
	}
}

func FuzzDNS(f *testing.F) {
	f.Add(dnsQuery(HostName, typeA))
	f.Add(dnsQuery("www.example", 28))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, _, end, ok := question(b)
		if ok && (end > len(b) || len(name) > 255) {
			t.Errorf("a question of %d bytes in %d, name %q", end, len(b), name)
		}
		r := resolver{}
		if a := r.local(b, "museum"); len(a) > 0 && (len(a) < dnsHeader || !answers(a, b)) {
			t.Errorf("answer %x to %x", a, b)
		}
		if len(b) >= dnsHeader {
			questionEnd(bytes.Clone(b))
		}
	})
}
