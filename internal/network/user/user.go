// Package user is a network for one guest that needs no rights on the host: what the guest sends is taken apart here, and goes out through sockets
// like any program's.
//
// The guest sees 10.0.2.0/24 and fec0::/64, as with QEMU's user networking: the host at .2 and ::2, a name server at .3 and ::3, itself at .15 and where it
// likes. TCP is ended on this side by gVisor's netstack, which is made when the first connection is; all else is answered or sent on without it.
// Each guest has a network of its own: there is nobody else on it.
package user

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
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
	maxTCP     = 4096     // connections, both ways together
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

	again     sync.Once     // the guest has asked for a router: it is told again from now on
	fragments atomic.Uint32 // the last identification

	listeners []closer
	counts    counts
	said      sync.Map // what was logged, by kind
}

type closer interface{ Close() error }

type counts struct {
	spoofed, malformed, unroutable, refused, unanswered atomic.Uint64
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
	fn("refused", c.refused.Load())
	fn("unanswered", c.unanswered.Load())
	fn("overflow", n.out.overflow.Load())
	fn("tcp", uint64(len(n.tcp)))
	fn("udp", uint64(n.udp.count()))
}

var dialer = net.Dialer{Timeout: dialTimeout}

// SetName says what the guest is called. It comes before the first frame.
func (n *Network) SetName(name string) { n.cfg.Name = name }

// Connected tells whether the guest has a driver that uses its card.
func (n *Network) Connected() bool { return n.out.connected() }
