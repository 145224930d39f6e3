package user

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
)

// ICMP (RFC 792, 1812): type, code, checksum, then an identifier and a sequence number, or what the type says.
const (
	icmpHeader      = 8
	icmpEchoReply   = 0
	icmpUnreachable = 3
	icmpEcho        = 8

	unreachableNetwork  = 0
	unreachableHost     = 1
	unreachableProtocol = 2
	unreachablePort     = 3
	prohibited          = 13

	// echoTimeout is how long an answer is waited for.
	echoTimeout = 10 * time.Second
)

// icmp answers what the guest sends by ICMP, or tells that it is for the stack: errors about what it was sent.
func (n *Network) icmp(p *packet) (forStack bool) {
	if p.fragment {
		n.counts.unroutable.Add(1)
		return false
	}
	if len(p.body) < icmpHeader || sum(p.body, 0) != 0xFFFF {
		n.counts.malformed.Add(1)
		return false
	}
	switch p.body[0] {
	case icmpEcho:
		if p.dst == Gateway || p.dst == DNS {
			n.echoReply(p.dst, [4]byte(p.body[4:]), p.body[icmpHeader:])
		} else {
			n.ping(p)
		}
		return false
	case icmpUnreachable:
		return true
	}
	n.counts.unroutable.Add(1)
	return false
}

// echoReply answers an echo request in the name of from; id is its identifier and sequence number.
func (n *Network) echoReply(from netip.Addr, id [4]byte, data []byte) {
	frame, b := ipPacket(from, Guest, protoICMP, icmpHeader+len(data))
	b[0] = icmpEchoReply
	copy(b[4:], id[:])
	copy(b[icmpHeader:], data)
	be.PutUint16(b[2:], ^sum(b, 0))
	n.out.push(item{raw: frame})
}

// unreachable tells the guest that its packet, of which at least the IP header and 8 bytes are given, did not arrive.
func (n *Network) unreachable(orig []byte, code uint8) {
	if len(orig) < ipHeader {
		return
	}
	keep := min(len(orig), int(orig[0]&15)*4+8)
	from := netip.AddrFrom4([4]byte(orig[16:20]))
	if code == unreachableNetwork || code == unreachableHost {
		from = Gateway
	}
	frame, b := ipPacket(from, Guest, protoICMP, icmpHeader+keep)
	b[0], b[1] = icmpUnreachable, code
	copy(b[icmpHeader:], orig[:keep])
	be.PutUint16(b[2:], ^sum(b, 0))
	n.out.push(item{raw: frame})
}

// unreachableCode is the ICMP code for what the host's kernel said, or false where a reset says it better.
func unreachableCode(err error) (code uint8, ok bool) {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.ENETDOWN):
		return unreachableNetwork, true
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.ETIMEDOUT),
		errors.As(err, &timeout) && timeout.Timeout():
		return unreachableHost, true
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return prohibited, true
	}
	return 0, false
}

// echo are the echo requests under way, each with a socket of its own: it closes itself when it is answered.
type echo struct {
	mu     sync.Mutex
	open   map[*os.File]bool
	closed bool
}

// begin takes a socket for a request, unless there are too many.
func (e *echo) begin() (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.open) >= maxEchoes {
		return nil, nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "ping")
	if e.open == nil {
		e.open = map[*os.File]bool{}
	}
	e.open[f] = true
	return f, nil
}

func (e *echo) end(f *os.File) {
	e.mu.Lock()
	delete(e.open, f)
	e.mu.Unlock()
	f.Close()
}

func (e *echo) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for f := range e.open {
		f.SetDeadline(time.Unix(1, 0))
	}
}

// ping sends an echo request by a ping socket (Linux c319b4d76b9e, v3.0), which rights no program needs but the host may withhold.
func (n *Network) ping(p *packet) {
	f, err := n.echo.begin()
	if err != nil {
		n.say("ping", "no echo requests for the guest: "+err.Error()+": net.ipv4.ping_group_range must hold your group")
		n.unreachable(p.bytes, prohibited)
		return
	}
	if f == nil {
		n.counts.unanswered.Add(1)
		return
	}
	request := append([]byte(nil), p.body...)
	original := append([]byte(nil), p.bytes[:min(len(p.bytes), 68)]...)
	dst := p.dst
	n.work.Go(func() {
		defer n.echo.end(f)
		reply, err := exchange(f, dst, request)
		if err == nil {
			n.echoReply(dst, [4]byte(request[4:8]), reply[icmpHeader:])
		} else if code, ok := unreachableCode(err); ok && !os.IsTimeout(err) {
			n.unreachable(original, code)
		}
	})
}

// exchange sends an echo request and waits for its reply. The kernel puts an identifier of its own into it, and takes only its replies.
func exchange(f *os.File, dst netip.Addr, request []byte) ([]byte, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if failed = unix.Connect(int(fd), &unix.SockaddrInet4{Addr: dst.As4()}); failed == nil {
			_, failed = unix.Write(int(fd), request)
		}
	}); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	f.SetReadDeadline(time.Now().Add(echoTimeout))
	reply := make([]byte, network.MTU)
	for {
		k, err := f.Read(reply)
		if err != nil {
			return nil, err
		}
		// The sequence number is the guest's.
		if k >= icmpHeader && reply[0] == icmpEchoReply && [2]byte(reply[6:]) == [2]byte(request[6:]) {
			return reply[:k], nil
		}
	}
}
