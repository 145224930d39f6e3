package user

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vitrine.dev/vitrine/internal/network"
)

// tcpFrame is a segment of the guest's without data.
func tcpFrame(src, dst netip.AddrPort, flags header.TCPFlags, seq, ack uint32) []byte {
	h := make(header.TCP, header.TCPMinimumSize)
	h.Encode(&header.TCPFields{SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: seq, AckNum: ack, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535})
	return ipFrame(src.Addr(), dst.Addr(), protoTCP, h)
}

// handshakes makes connections by hand from ports of the guest's, and tells how many were taken.
func (g *guest) handshakes(first, count int, to netip.AddrPort) (made int) {
	g.t.Helper()
	for port := first; port < first+count; port++ {
		g.send(tcpFrame(netip.AddrPortFrom(Guest, uint16(port)), to, header.TCPFlagSyn, 1000, 0))
	}
	for answered := map[uint16]bool{}; len(answered) < count; {
		p, ok := parseIPv4(g.next()[network.HeaderSize:])
		if !ok || p.proto != protoTCP {
			g.t.Fatalf("answer %x", p.bytes)
		}
		h := header.TCP(p.body)
		port := h.DestinationPort()
		if int(port) < first || answered[port] {
			continue // again, or of an earlier one
		}
		answered[port] = true
		if h.Flags()&header.TCPFlagRst == 0 {
			made++
			g.send(tcpFrame(netip.AddrPortFrom(Guest, port), to, header.TCPFlagAck, 1001, h.SequenceNumber()+1))
		}
	}
	return made
}

func inUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

func TestTenThousandConnectionsAreBounded(t *testing.T) {
	const wanted, atOnce, each = 10_000, maxOpening / 2, 32 << 10
	g := newNetwork(t, Config{})
	l, at := listenTCP(t)
	var hosts []net.Conn // which stay open
	defer func() {
		for _, c := range hosts {
			c.Close()
		}
	}()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			hosts = append(hosts, c)
		}
	}()
	before := inUse()
	made := 0
	for i := 0; i < wanted; i += atOnce {
		made += g.handshakes(10_000+i, min(atOnce, wanted-i), at)
	}
	if made != cap(g.net.tcp) {
		t.Errorf("%d connections of %d were made, want %d", made, wanted, cap(g.net.tcp))
	}
	if used := (inUse() - before) / made; used > each {
		t.Errorf("an idle connection takes %d bytes, want at most %d", used, each)
	}
	if !g.logged("more connections") {
		t.Error("nothing was said")
	}
	l.Close()
	<-accepted
}

func TestSlowReaderHoldsUpItselfAlone(t *testing.T) {
	g := newGuest(t, Config{}, true)
	l, at := listenTCP(t)
	slow, err := g.dial(at) // which never reads
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	h, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.SetWriteBuffer(64 << 10)
	before, sent, block := inUse(), 0, make([]byte, 64<<10)
	for {
		h.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := h.Write(block)
		if sent += n; err != nil {
			break
		}
		if sent > 256<<20 {
			t.Fatal("a guest that does not read is sent to without end")
		}
	}
	// Both stacks of the test are in here, the guest's and ours.
	if used := inUse() - before; used > 16<<20 {
		t.Errorf("%d bytes are kept for a guest that does not read", used)
	}
	other, err := g.dial(at)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	h2, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer h2.Close()
	h2.Write([]byte("x"))
	if n, err := other.Read(block); n != 1 {
		t.Errorf("the other connection reads %d bytes, %v", n, err)
	}
}
