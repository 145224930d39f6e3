// Package user is a network for one guest that needs no rights on the host: what the guest sends is taken apart here, and goes out through sockets
// like any program's.
//
// The guest sees 10.0.2.0/24, as with QEMU's user networking: itself at .15, the host at .2, a name server at .3. TCP is ended on this side by gVisor's
// netstack, which is made when the first connection is; ARP, DHCP, DNS and echo requests are answered without it. Each guest has a network
// of its own: there is nobody else on it.
package user

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
)

// The addresses on the guest's network. They are QEMU's.
var (
	Subnet  = netip.MustParsePrefix("10.0.2.0/24")
	Gateway = netip.MustParseAddr("10.0.2.2") // the host; for the guest also the way out
	DNS     = netip.MustParseAddr("10.0.2.3")
	Guest   = netip.MustParseAddr("10.0.2.15")
)

// HostName is the name by which the guest finds the host: what listens on the host's 127.0.0.1 is at Gateway.
const HostName = "host.vitrine"

var (
	// GuestMAC is the guest's: nobody else is on its network, so all guests have the same. It is QEMU's first, locally administered.
	GuestMAC  = network.MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	routerMAC = network.MAC{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
)

// Config says what a network is to do.
type Config struct {
	// Name is the guest's, which DHCP tells it.
	Name string
	// Forwards are ports of the host behind which the guest listens.
	Forwards []Forward
	// Log gets a line when something does not work as the guest expects, each kind once. May be nil.
	Log func(line string)
	// ResolvConf names the file with the host's name servers; empty: /etc/resolv.conf.
	ResolvConf string
}

// Limits on what a guest can make us hold. Beyond them, what is new is refused, or what is oldest forgotten.
const (
	maxTCP     = 1024     // connections, both ways together
	maxUDP     = 256      // flows
	maxQueries = 64       // DNS queries under way
	maxEchoes  = 64       // echo requests under way
	maxFrames  = 4096     // frames waiting for the guest
	maxBytes   = 16 << 20 // and their bytes
	spareFDs   = 256      // descriptors that are left to the rest of the program
)

// A Network is one guest's. It implements [network.Network]; Close ends it.
type Network struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // all goroutines
	out    queue
	tcp    chan struct{} // a token for each connection
	udp    flows
	dns    resolver
	echo   echo

	once  sync.Once
	stack *netstack // made by once

	listeners []closer
	counts    counts
	said      sync.Map // what was logged, by kind
}

type closer interface{ Close() error }

type counts struct {
	spoofed, malformed, unroutable, ipv6, refused, unanswered atomic.Uint64
}

// New makes a network, with all of its forwards listening, or none: an error then says which could not.
func New(cfg Config) (*Network, error) {
	if cfg.Log == nil {
		cfg.Log = func(string) {}
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	n := &Network{cfg: cfg, tcp: make(chan struct{}, tcpLimit())}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.dns = resolver{path: cfg.ResolvConf, slots: make(chan struct{}, maxQueries)}
	n.udp.all = map[flowKey]*flow{}
	for _, f := range cfg.Forwards {
		if err := n.listen(f); err != nil {
			n.Close()
			return nil, err
		}
	}
	return n, nil
}

// tcpLimit is how many connections there may be, each with a descriptor.
func tcpLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 64
	}
	return int(max(64, min(maxTCP, (int64(min(l.Cur, 1<<20))-spareFDs-maxUDP-maxQueries)/2)))
}

// Close ends all connections and waits for what was under way. Send must not be called afterwards.
func (n *Network) Close() error {
	n.cancel()
	for _, l := range n.listeners {
		l.Close()
	}
	n.once.Do(func() {}) // no stack is made any more
	n.udp.close()
	n.echo.close()
	done := make(chan struct{})
	go func() { n.work.Wait(); close(done) }()
	if n.stack != nil {
		n.stack.close(done)
	}
	<-done
	n.out.close()
	return nil
}

// Up implements [network.Network].
func (n *Network) Up(takes network.Abilities, wake, _ func()) { n.out.up(takes, wake) }

// Down implements [network.Network]. Connections are kept: a driver that comes back goes on with them.
func (n *Network) Down() { n.out.down() }

// Front implements [network.Network].
func (n *Network) Front() *network.Frame { return n.out.front() }

// Pop implements [network.Network].
func (n *Network) Pop() { n.out.pop() }

// say logs the first line of a kind.
func (n *Network) say(kind, line string) {
	if _, again := n.said.LoadOrStore(kind, true); !again {
		n.cfg.Log("network: " + line)
	}
}

// Counters calls fn with each counter's name and value.
func (n *Network) Counters(fn func(name string, value uint64)) {
	c := &n.counts
	fn("spoofed", c.spoofed.Load())
	fn("malformed", c.malformed.Load())
	fn("unroutable", c.unroutable.Load())
	fn("ipv6", c.ipv6.Load())
	fn("refused", c.refused.Load())
	fn("unanswered", c.unanswered.Load())
	fn("overflow", n.out.overflow.Load())
	fn("tcp", uint64(len(n.tcp)))
	fn("udp", uint64(n.udp.count()))
}

// outside is where on the host's network something for a goes: the gateway is the host itself.
func outside(a netip.Addr) netip.Addr {
	if a == Gateway {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return a
}

// routable tells whether the guest may send to a: one host, and none of those addresses that mean the host that uses them (RFC 6890).
func routable(a netip.Addr) bool {
	b := a.As4()
	switch {
	case b[0] == 0, a.IsLoopback(), b[0] >= 224: // this network, loopback, multicast, reserved, broadcast
		return false
	case Subnet.Contains(a):
		return a == Gateway || a == DNS
	}
	return true
}

var dialer = net.Dialer{Timeout: dialTimeout}

// SetName says what the guest is called. It comes before the first frame.
func (n *Network) SetName(name string) { n.cfg.Name = name }

// Connected tells whether the guest has a driver that uses its card.
func (n *Network) Connected() bool { return n.out.connected() }
