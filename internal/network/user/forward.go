package user

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Forward is a port of the host behind which a port of the guest is.
type Forward struct {
	// Host is where the host listens; with port 0, where the kernel chooses.
	Host netip.AddrPort
	// Guest is the guest's port.
	Guest uint16
	UDP   bool
}

// ParseForward reads [ADDRESS:]PORT:GUEST[/tcp|/udp]. Without an address, only the host itself can connect.
func ParseForward(s string) (f Forward, err error) {
	bad := fmt.Errorf("%q is not a forward: give HOST:GUEST, like 8080:80, 0.0.0.0:8080:80 or 5353:53/udp", s)
	rest, proto, given := strings.Cut(s, "/")
	if f.UDP = proto == "udp"; given && !f.UDP && proto != "tcp" {
		return f, bad
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return f, bad
	}
	host, guest := rest[:i], rest[i+1:]
	addr := loopback4
	if j := strings.LastIndexByte(host, ':'); j >= 0 {
		if addr, err = netip.ParseAddr(strings.Trim(host[:j], "[]")); err != nil {
			return f, bad
		}
		host = host[j+1:]
	}
	hp, err1 := strconv.ParseUint(host, 10, 16)
	gp, err2 := strconv.ParseUint(guest, 10, 16)
	if err1 != nil || err2 != nil || gp == 0 {
		return f, bad
	}
	f.Host, f.Guest = netip.AddrPortFrom(addr, uint16(hp)), uint16(gp)
	return f, nil
}

// String writes f as ParseForward reads it.
func (f Forward) String() string {
	s := fmt.Sprintf("%v:%d", f.Host, f.Guest)
	if f.UDP {
		s += "/udp"
	}
	return s
}

// listen opens the host's port.
func (n *Network) listen(f Forward) error {
	var err error
	if f.UDP {
		var c *net.UDPConn
		if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(f.Host)); err == nil {
			n.listeners = append(n.listeners, c)
			n.work.Go(func() { n.forwardUDP(c, f.Guest) })
			return nil
		}
	} else {
		var l *net.TCPListener
		if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(f.Host)); err == nil {
			n.listeners = append(n.listeners, l)
			n.work.Go(func() { n.forwardTCP(l, f.Guest) })
			return nil
		}
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("--port %v: port %d of %v is in use: give another", f, f.Host.Port(), f.Host.Addr())
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("--port %v: only root may listen on port %d: give one from 1024 on", f, f.Host.Port())
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("--port %v: %v is not an address of this host", f, f.Host.Addr())
	}
	return fmt.Errorf("--port %v: %w", f, err)
}

// Listening gives the host's addresses of all forwards, in their order.
func (n *Network) Listening() (all []netip.AddrPort) {
	for _, l := range n.listeners {
		switch l := l.(type) {
		case *net.TCPListener:
			all = append(all, l.Addr().(*net.TCPAddr).AddrPort())
		case *net.UDPConn:
			all = append(all, l.LocalAddr().(*net.UDPAddr).AddrPort())
		}
	}
	return all
}

// forwardTCP connects those who connect to the host's port to the guest.
func (n *Network) forwardTCP(l *net.TCPListener, port uint16) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or the peer has gone again
			if !n.pause() {
				return
			}
			continue
		}
		select {
		case n.tcp <- struct{}{}:
		default:
			n.counts.refused.Add(1)
			c.SetLinger(0)
			c.Close()
			continue
		}
		n.work.Go(func() {
			ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
			defer cancel()
			g, err := n.dialGuest(ctx, port)
			if err != nil { // as if nobody listened
				n.giveSlot()
				n.counts.refused.Add(1)
				c.SetLinger(0)
				c.Close()
				return
			}
			n.connected(g, c)
		})
	}
}

// pause waits a moment after an error. It returns false when the network is being closed.
func (n *Network) pause() bool {
	select {
	case <-n.ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

// forwardUDP sends datagrams on to the guest, a flow for each peer.
func (n *Network) forwardUDP(c *net.UDPConn, port uint16) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, maxUDPPayload)
	guest := netip.AddrPortFrom(Guest, port)
	keys := map[netip.AddrPort]flowKey{} // of peers
	for {
		size, peer, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !n.pause() {
				return
			}
			continue
		}
		k, known := keys[peer]
		if !known || n.udp.get(k) == nil {
			for p, k := range keys {
				if len(keys) < maxUDP {
					break
				}
				if !n.udp.has(k) {
					delete(keys, p)
				}
			}
			f := &flow{key: n.udp.newPeer(guest), end: func() {}}
			if peer.Addr().Zone() == "" {
				f.send = sender(raw, sockaddr(peer))
			} else {
				f.send = func(p []byte) error { _, err := c.WriteToUDPAddrPort(p, peer); return err }
			}
			if !n.udp.add(f) {
				return
			}
			k = f.key
			keys[peer] = k
		}
		n.giveUDP(k.peer, guest, b[:size])
	}
}
