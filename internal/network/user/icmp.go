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

// ICMP (RFC 792, 1812, 4443): type, code, checksum, then an identifier and a sequence number, or what the type says.
const (
	icmpHeader      = 8
	icmpEchoReply   = 0
	icmpUnreachable = 3
	icmpEcho        = 8

	icmp6LastError   = 4
	icmp6Echo        = 128
	icmp6EchoReply   = 129
	icmp6Unreachable = 1
	icmp6Parameter   = 4

	unreachableNetwork  = 0
	unreachableHost     = 1
	unreachableProtocol = 2
	unreachablePort     = 3
	prohibited          = 13

	// echoTimeout is how long an answer is waited for.
	echoTimeout = 10 * time.Second
	// quoted is how much of a packet its error shows.
	quoted = 68
)

// unreachable6 is what the codes above are in IPv6: type and code.
var unreachable6 = map[uint8][2]uint8{
	unreachableNetwork: {icmp6Unreachable, 0}, unreachableHost: {icmp6Unreachable, 3}, unreachableProtocol: {icmp6Parameter, 1},
	unreachablePort: {icmp6Unreachable, 4}, prohibited: {icmp6Unreachable, 1},
}

// icmp answers what the guest sends by ICMP, or tells that it is for the stack: errors about what it was sent.
func (n *Network) icmp(p *packet) (forStack bool) {
	if p.fragment {
		n.counts.unroutable.Add(1)
		return false
	}
	if len(p.body) < icmpHeader || icmpSum(p.src, p.dst, p.body) != 0 {
		n.counts.malformed.Add(1)
		return false
	}
	kind := p.body[0]
	echo := p.src.Is4() && kind == icmpEcho || p.src.Is6() && kind == icmp6Echo
	switch {
	case echo && (isHost(p.dst) || isDNS(p.dst)):
		n.echoReply(p.dst, p.src, [4]byte(p.body[4:]), p.body[icmpHeader:])
	case echo:
		n.ping(p)
	case p.src.Is4() && kind == icmpUnreachable, p.src.Is6() && kind <= icmp6LastError:
		return true
	default:
		n.counts.unroutable.Add(1)
	}
	return false
}

// icmpSum is the checksum of a message in which there is 0 for it. Of one with its checksum it is 0. That of IPv6 covers a pseudo-header.
func icmpSum(src, dst netip.Addr, b []byte) uint16 {
	if src.Is4() {
		return ^sum(b, 0)
	}
	return ^sum(b, pseudo(src, dst, protoICMP6, len(b)))
}

// sendICMP gives the guest a message: type, code, what they say, and what follows.
func (n *Network) sendICMP(from, to netip.Addr, kind, code uint8, word [4]byte, data []byte) {
	proto := uint8(protoICMP)
	if from.Is6() {
		proto = protoICMP6
	}
	frame, b := ipPacket(from, to, proto, icmpHeader+len(data))
	b[0], b[1] = kind, code
	copy(b[4:], word[:])
	copy(b[icmpHeader:], data)
	be.PutUint16(b[2:], icmpSum(from, to, b))
	n.out.push(item{raw: frame})
}

// echoReply answers an echo request in the name of from; id is its identifier and sequence number.
func (n *Network) echoReply(from, to netip.Addr, id [4]byte, data []byte) {
	kind := uint8(icmpEchoReply)
	if from.Is6() {
		kind = icmp6EchoReply
	}
	n.sendICMP(from, to, kind, 0, id, data)
}

// unreachable tells the guest that its packet, of which at least the IP header and 8 bytes are given, did not arrive.
func (n *Network) unreachable(orig []byte, code uint8) {
	if len(orig) >= ip6Header && orig[0]>>4 == 6 {
		from, to := netip.AddrFrom16([16]byte(orig[24:40])), netip.AddrFrom16([16]byte(orig[8:24]))
		if code == unreachableNetwork || code == unreachableHost {
			from = Gateway6
		}
		var word [4]byte
		if code == unreachableProtocol {
			word[3] = 6 // where in the header the protocol is
		}
		c := unreachable6[code]
		n.sendICMP(from, to, c[0], c[1], word, orig[:min(len(orig), quoted)])
		return
	}
	if len(orig) < ipHeader {
		return
	}
	from, to := netip.AddrFrom4([4]byte(orig[16:20])), netip.AddrFrom4([4]byte(orig[12:16]))
	if code == unreachableNetwork || code == unreachableHost {
		from = Gateway
	}
	n.sendICMP(from, to, icmpUnreachable, code, [4]byte{}, orig[:min(len(orig), int(orig[0]&15)*4+8)])
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

// begin takes a socket for a request to an address, unless there are too many.
func (e *echo) begin(to netip.Addr) (*os.File, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.open) >= maxEchoes {
		return nil, nil
	}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
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
	f, err := n.echo.begin(p.dst)
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
	original := append([]byte(nil), p.bytes[:min(len(p.bytes), quoted)]...)
	src, dst := p.src, p.dst
	n.work.Go(func() {
		defer n.echo.end(f)
		reply, err := exchange(f, dst, request)
		if err == nil {
			n.echoReply(dst, src, [4]byte(request[4:8]), reply[icmpHeader:])
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
		if failed = unix.Connect(int(fd), sockaddr(netip.AddrPortFrom(dst, 0))); failed == nil {
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
		if k >= icmpHeader && (reply[0] == icmpEchoReply || reply[0] == icmp6EchoReply) && [2]byte(reply[6:]) == [2]byte(request[6:]) {
			return reply[:k], nil
		}
	}
}

// sockaddr is an address without a zone as the kernel takes it.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
