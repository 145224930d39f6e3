package user

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

var eachOffload = []struct {
	name     string
	offloads bool
}{{"plain", false}, {"offloads", true}}

func random(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func TestConnectionCarriesBytesBothWaysAndEachEnd(t *testing.T) {
	for _, c := range eachOffload {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, Config{}, c.offloads)
			l, at := listenTCP(t)
			up, down := random(5<<20), random(3<<20)
			got := make(chan [32]byte, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				b, _ := io.ReadAll(c) // the guest's end arrives before ours goes out
				got <- sha256.Sum256(b)
				c.Write(down)
			}()
			conn, err := g.dial(at)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(up); err != nil {
				t.Fatal(err)
			}
			conn.CloseWrite()
			if h := <-got; h != sha256.Sum256(up) {
				t.Error("other bytes arrived at the host")
			}
			b, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(b, down) {
				t.Errorf("%d bytes arrived at the guest, want %d, error %v", len(b), len(down), err)
			}
		})
	}
}

func TestRefusedConnectionIsResetForTheGuest(t *testing.T) {
	g := newGuest(t, Config{}, true)
	l, at := listenTCP(t)
	l.Close()
	if c, err := g.dial(at); err == nil {
		c.Close()
		t.Error("a port where nobody listens was connected to")
	}
	if n := g.net.counts.refused.Load(); n != 1 {
		t.Errorf("%d connections refused, want 1", n)
	}
}

func TestBrokenConnectionIsBrokenOnTheOtherSide(t *testing.T) {
	g := newGuest(t, Config{}, true)
	l, at := listenTCP(t)
	t.Run("by the host", func(t *testing.T) {
		conn, err := g.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		h, _ := l.AcceptTCP()
		h.SetLinger(0)
		h.Close()
		if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the guest's read gives %v, want a reset", err)
		}
	})
	t.Run("by the guest", func(t *testing.T) {
		conn, err := g.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		h, _ := l.AcceptTCP()
		defer h.Close()
		for _, e := range g.RegisteredEndpoints() {
			e.Abort()
		}
		conn.Close()
		h.SetDeadline(time.Now().Add(wait))
		if _, err := h.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the host's read gives %v, want a reset", err)
		}
	})
}

func TestSlotsComeBack(t *testing.T) {
	g := newGuest(t, Config{}, true)
	l, at := listenTCP(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for range 50 {
		c, err := g.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadAll(c)
		c.Close()
	}
	for end := time.Now().Add(wait); len(g.net.tcp) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are still counted", len(g.net.tcp))
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	g := newGuest(t, Config{}, true)
	_, at := listenTCP(t)
	for range cap(g.net.tcp) {
		g.net.tcp <- struct{}{}
	}
	if c, err := g.dial(at); err == nil {
		c.Close()
		t.Error("one connection too many was made")
	}
	for range cap(g.net.tcp) {
		<-g.net.tcp
	}
	if !g.logged("more connections") {
		t.Errorf("nothing was said; logged: %q", g.logs)
	}
}

func TestFloodOfSYNsIsBounded(t *testing.T) {
	g := newNetwork(t, Config{})
	to := netip.MustParseAddr("198.51.100.1") // documentation's: nobody answers
	for i := range 4 * maxOpening {
		h := make(header.TCP, header.TCPMinimumSize)
		h.Encode(&header.TCPFields{SrcPort: uint16(1000 + i), DstPort: 80, SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535})
		g.send(ipFrame(Guest, to, protoTCP, h))
	}
	s := &g.net.stack.syns
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) > maxOpening {
		t.Errorf("%d connections are being made, want at most %d", len(s.all), maxOpening)
	}
}

func TestForwardConnectsTheHostToTheGuest(t *testing.T) {
	for _, where := range []string{"0:80", "[::1]:0:80"} {
		t.Run(where, func(t *testing.T) { testForward(t, where) })
	}
}

func testForward(t *testing.T, where string) {
	f, err := ParseForward(where)
	if err != nil {
		t.Fatal(err)
	}
	if f.Host.Addr().Is6() {
		on6(t)
	}
	g := newGuest(t, Config{Forwards: []Forward{f}}, true)
	l, err := gonet.ListenTCP(g.Stack, tcpip.FullAddress{NIC: nic, Port: 80}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		io.WriteString(c, "hello "+from)
	}()
	at := g.net.Listening()[0]
	if !at.Addr().IsLoopback() {
		t.Errorf("listens on %v, want loopback", at)
	}
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	b, err := io.ReadAll(c)
	if string(b) != "hello 10.0.2.2" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestForwardToAClosedPortIsReset(t *testing.T) {
	f, _ := ParseForward("0:80")
	g := newGuest(t, Config{Forwards: []Forward{f}}, true)
	c, err := net.Dial("tcp", g.net.Listening()[0].String())
	if err == nil { // else the reset was faster than Dial
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read gives %v, want a reset", err)
	}
}

func TestPortInUseStartsNothing(t *testing.T) {
	l, at := listenTCP(t)
	free, _ := ParseForward("0:1")
	taken := Forward{Host: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port()), Guest: 80}
	n, err := New(Config{Forwards: []Forward{free, taken}})
	if err == nil {
		n.Close()
		t.Fatal("a taken port was taken again")
	}
	want := "--port " + taken.String() + ": port"
	if s := err.Error(); len(s) < len(want) || s[:len(want)] != want {
		t.Errorf("error %q, want it to begin with %q", s, want)
	}
	l.Close()
	if n, err = New(Config{Forwards: []Forward{taken}}); err != nil {
		t.Fatalf("the port is free: %v", err)
	}
	n.Close()
}

func TestParseForward(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80": "127.0.0.1:8080:80", "0.0.0.0:1:2": "0.0.0.0:1:2", "[::1]:1:2/tcp": "[::1]:1:2", "53:53/udp": "127.0.0.1:53:53/udp", "0:65535": "127.0.0.1:0:65535",
		"": "", "80": "", "a:b": "", "1:0": "", "65536:1": "", "1:65536": "", "x:1:2": "", "1:2/sctp": "", ":": "", "1:2:3:4": "", "-1:2": "",
	} {
		f, err := ParseForward(in)
		if want == "" {
			if err == nil {
				t.Errorf("%q gives %v, want an error", in, f)
			}
			continue
		}
		if err != nil || f.String() != want {
			t.Errorf("%q gives %v, %v; want %s", in, f, err, want)
		}
	}
}

func TestCloseEndsWhatIsOpen(t *testing.T) {
	g := newGuest(t, Config{}, true)
	l, at := listenTCP(t)
	conn, err := g.dial(at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h, _ := l.AcceptTCP()
	defer h.Close()
	g.net.Close()
	h.SetDeadline(time.Now().Add(wait))
	if _, err := h.Read(make([]byte, 1)); err == nil || errors.Is(err, unix.EAGAIN) {
		t.Errorf("the host's read gives %v, want an end", err)
	}
}
