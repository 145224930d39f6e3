package user

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// DNS (RFC 1035): a header of six 16-bit numbers, then questions and records. One question is read here; all else passes through.
const (
	dnsPort   = 53
	dnsHeader = 12

	dnsResponse  = 1 << 15
	dnsOpcode    = 0xF << 11
	dnsTruncated = 1 << 9
	dnsDesired   = 1 << 8
	dnsAvailable = 1 << 7
	dnsAuthority = 1 << 10

	rcodeFormat   = 1
	rcodeFailed   = 2
	rcodeNoName   = 3
	typeA         = 1
	typeAAAA      = 28
	typeANY       = 255
	classIN       = 1
	localTTL      = 60
	maxDatagram   = 1452 // what is sent to the guest whole
	maxDNSMessage = 1<<16 - 1

	dnsTry     = 2500 * time.Millisecond // for one name server
	dnsRounds  = 2
	dnsServers = 3 // as many as resolv.conf may have
	// dnsIdle ends a guest's TCP connection to the name server.
	dnsIdle = 10 * time.Second
)

// localZone is ours: nothing below it is asked of anybody.
const localZone = "vitrine"

// A resolver asks the host's name servers.
type resolver struct {
	path  string
	slots chan struct{} // a token for each query

	mu      sync.Mutex // guards what follows: what was read from path
	read    time.Time
	servers []netip.AddrPort
}

// dnsPacket answers a datagram for the name server.
func (n *Network) dnsPacket(from, at netip.AddrPort, query []byte) {
	if at.Port() != dnsPort {
		n.udpUnreachable(from, at, nil)
		return
	}
	reply := func(r []byte) {
		if len(r) > maxDatagram { // the guest asks again, by TCP
			r = r[:questionEnd(r)]
			be.PutUint16(r[2:], be.Uint16(r[2:])|dnsTruncated)
			clear(r[6:dnsHeader])
		}
		n.sendUDP(at, from, r)
	}
	if r := n.dns.local(query, n.cfg.Name); r != nil {
		if len(r) > 0 {
			reply(r)
		}
		return
	}
	select {
	case n.dns.slots <- struct{}{}:
	default:
		n.counts.unanswered.Add(1)
		return
	}
	query = bytes.Clone(query)
	n.work.Go(func() {
		defer func() { <-n.dns.slots }()
		if r := n.dns.ask(n.ctx, "udp", query); r != nil {
			reply(r)
		}
	})
}

// questionEnd is where the question of a message ends whose question was read already, or the header where there is none.
func questionEnd(b []byte) int {
	if _, _, end, ok := question(b); ok {
		return end
	}
	clear(b[4:6])
	return dnsHeader
}

// question reads the only question of a message: its name in lower case without the last dot, and its type.
func question(b []byte) (name string, kind uint16, end int, ok bool) {
	if len(b) < dnsHeader || be.Uint16(b[4:]) != 1 {
		return "", 0, 0, false
	}
	var s strings.Builder
	at := dnsHeader
	for {
		if at >= len(b) {
			return "", 0, 0, false
		}
		n := int(b[at])
		at++
		if n == 0 {
			break
		}
		if n > 63 || at+n > len(b) || s.Len()+n > 254 { // a question has nothing before it that it could point to
			return "", 0, 0, false
		}
		if s.Len() > 0 {
			s.WriteByte('.')
		}
		s.Write(bytes.ToLower(b[at : at+n]))
		at += n
	}
	if at+4 > len(b) {
		return "", 0, 0, false
	}
	return s.String(), be.Uint16(b[at:]), at + 4, true
}

// local answers a query that is malformed or about our own names, else it gives nil.
func (r *resolver) local(query []byte, guest string) []byte {
	if len(query) < dnsHeader || be.Uint16(query[2:])&dnsResponse != 0 {
		return []byte{} // what is no query has no answer
	}
	name, kind, end, ok := question(query)
	if !ok || be.Uint16(query[2:])&dnsOpcode != 0 {
		return answer(query, dnsHeader, rcodeFormat, netip.Addr{})
	}
	if name != localZone && !strings.HasSuffix(name, "."+localZone) && name != strings.ToLower(guest) {
		return nil
	}
	wants := func(t uint16) bool { return be.Uint16(query[end-2:]) == classIN && (kind == t || kind == typeANY) }
	a := netip.Addr{}
	switch {
	case name == HostName && wants(typeA):
		a = Gateway
	case name == HostName && wants(typeAAAA):
		a = Gateway6
	case name == HostName:
	case name != strings.ToLower(guest):
		return answer(query, end, rcodeNoName, a)
	case wants(typeA):
		a = Guest
	}
	return answer(query, end, 0, a)
}

// answer is a reply to query, whose question ends at end, with an address if it is valid.
func answer(query []byte, end int, rcode uint16, a netip.Addr) []byte {
	r := append([]byte(nil), query[:end]...)
	flags := be.Uint16(r[2:])&(dnsOpcode|dnsDesired) | dnsResponse | dnsAvailable | rcode
	clear(r[4:dnsHeader])
	if end > dnsHeader {
		r[5] = 1
	}
	if a.IsValid() {
		flags |= dnsAuthority
		r[7] = 1
		kind := uint8(typeA)
		if a.Is6() {
			kind = typeAAAA
		}
		r = append(r, 0xC0, dnsHeader, 0, kind, 0, classIN) // the name is the question's
		r = be.AppendUint32(r, localTTL)
		r = append(append(r, 0, uint8(a.BitLen()/8)), a.AsSlice()...)
	}
	be.PutUint16(r[2:], flags)
	return r
}

// ask sends query to the host's name servers in turn, and gives the first answer. It is nil where ctx ends first.
func (r *resolver) ask(ctx context.Context, kind string, query []byte) []byte {
	servers := r.upstream()
	for range dnsRounds {
		for _, s := range servers {
			if a, err := askOne(ctx, kind, s, query); err == nil {
				return a
			}
			if ctx.Err() != nil {
				return nil
			}
		}
	}
	_, _, end, _ := question(query)
	return answer(query, end, rcodeFailed, netip.Addr{})
}

var errMismatch = errors.New("dns: an answer to something else")

func askOne(ctx context.Context, kind string, server netip.AddrPort, query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTry)
	defer cancel()
	c, err := dialer.DialContext(ctx, kind, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if kind == "tcp" {
		if err := writeMessage(c, query); err != nil {
			return nil, err
		}
		a, err := readMessage(c)
		if err == nil && !answers(a, query) {
			err = errMismatch
		}
		return a, err
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxDNSMessage)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], query) {
			return bytes.Clone(buf[:n]), nil
		}
	}
}

// answers tells whether a is an answer to query: the connected socket takes only what the server sent.
func answers(a, query []byte) bool {
	return len(a) >= dnsHeader && [2]byte(a) == [2]byte(query) && be.Uint16(a[2:])&dnsResponse != 0
}

// upstream gives the host's name servers, read anew when they may have changed.
func (r *resolver) upstream() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.servers == nil || now.Sub(r.read) > 5*time.Second {
		r.read = now
		if text, err := os.ReadFile(r.path); err == nil {
			r.servers = parseResolvConf(string(text))
		}
	}
	return r.servers
}

// parseResolvConf gives the name servers of a resolv.conf(5), or the host itself where it names none.
func parseResolvConf(text string) (servers []netip.AddrPort) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" && len(servers) < dnsServers {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				servers = append(servers, netip.AddrPortFrom(a, dnsPort))
			}
		}
	}
	if len(servers) == 0 {
		servers = append(servers, netip.AddrPortFrom(loopback4, dnsPort))
	}
	return servers
}

// serveDNS answers the queries that come over a TCP connection.
func (n *Network) serveDNS(c net.Conn) {
	defer c.Close()
	for n.ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(dnsIdle))
		query, err := readMessage(c)
		if err != nil {
			return
		}
		r := n.dns.local(query, n.cfg.Name)
		if r == nil {
			r = n.dns.ask(n.ctx, "tcp", query)
		}
		if len(r) == 0 || writeMessage(c, r) != nil {
			return
		}
	}
}

// readMessage and writeMessage are DNS over TCP (RFC 1035 section 4.2.2).
func readMessage(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, be.Uint16(size[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

func writeMessage(c io.Writer, b []byte) error {
	_, err := c.Write(append(be.AppendUint16(nil, uint16(len(b))), b...))
	return err
}
