// Package network is the helper that connects a guest to the host's network: the user network, with its sockets, in a process of its own.
//
// Frames go through shared memory (internal/network/ring). The guest's process holds no socket of the network and can make none.
package network

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/network/ring"
	"vitrine.dev/vitrine/internal/network/user"
)

// Kind is the helper's, for [helper.Run].
const Kind = "network"

// setup is what the helper is told first. With it come the ring's files.
type setup struct {
	Forwards []user.Forward
	User     int // what it becomes where it is root
}

// A packet to the helper has the guest's name; from it, a line for the log.
type packet struct {
	Name string `json:"name,omitempty"`
	Log  string `json:"log,omitempty"`
}

// maxLines bounds what the helper may log.
const maxLines = 100

// How the helper's run time is set: a connection is some hops between goroutines, which on several processors are wake-ups of threads; and what lives is
// little beside what passes through.
const (
	processors = 1
	collect    = 400 // percent
)

// A Network is the helper, and the card's end of its ring.
type Network struct {
	*ring.Card
	Helper *helper.Process
}

// Start starts the helper and returns when all forwards listen, or with the reason why one does not.
func Start(o helper.Options, uid int, forwards []user.Forward) (*Network, error) {
	card, far, err := ring.New()
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, f := range far {
		defer f.Close()
		fds = append(fds, descriptor(f))
	}
	p, err := helper.Start(Kind, o, setup{forwards, uid}, fds...)
	if err == nil {
		_, err = p.Ready()
	}
	if err != nil {
		card.Close()
		return nil, err
	}
	n := &Network{card, p}
	go n.listen(o.Log)
	return n, nil
}

// descriptor is a file's. [os.File.Fd] would make it block.
func descriptor(f *os.File) (fd int) {
	fd = -1
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(u uintptr) { fd = int(u) })
	}
	return fd
}

// listen passes the helper's lines on until it ends; then the card is cut off.
func (n *Network) listen(log func(string)) {
	defer n.Cut()
	for lines := 0; ; {
		var p packet
		if _, err := n.Helper.Recv(&p); err != nil {
			return
		}
		if lines++; p.Log != "" && lines <= maxLines {
			log(p.Log)
		}
	}
}

// SetName says what the guest is called. It comes before the first frame.
func (n *Network) SetName(name string) error { return n.Helper.Send(packet{Name: name}) }

// Close ends the helper, then the card. The guest's card must not be used any more.
func (n *Network) Close() error { return errors.Join(n.Helper.Close(), n.Card.Close()) }

// Main is the helper.
func Main(c *helper.Conn) error {
	runtime.GOMAXPROCS(processors)
	debug.SetGCPercent(collect)
	var s setup
	fds, err := c.Recv(&s)
	if err != nil {
		return err
	}
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "ring"))
	}
	lines := make(chan string, maxLines)
	n, err := user.New(user.Config{Forwards: s.Forwards, Log: func(line string) {
		select {
		case lines <- line:
		default:
		}
	}})
	if err != nil {
		return c.Refuse(err)
	}
	if err := c.Confine(rights(s.User)); err != nil {
		return err
	}
	go func() {
		for line := range lines {
			c.Send(packet{Log: line})
		}
	}()
	for first := true; ; first = false {
		var p packet
		if _, err := c.Recv(&p); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if first {
			n.SetName(p.Name)
			go serve(files, n)
		}
	}
}

// serve carries frames. A ring that is broken is the guest's process's doing, and the end.
func serve(files []*os.File, n *user.Network) {
	if err := ring.Serve(context.Background(), files, n); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
	}
	os.Exit(1)
}

// calls are those of sockets of IP, without MPTCP, which Landlock would let listen. What is to listen does already.
var calls = slices.Concat(
	sockets(unix.AF_INET, unix.IPPROTO_ICMP), sockets(unix.AF_INET6, unix.IPPROTO_ICMPV6),
	confine.Calls(
		unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SPLICE,
		unix.SYS_OPENAT, // the host's name servers
	),
)

// sockets are those of a family that may be made.
func sockets(family, icmp uint32) (all []confine.Call) {
	for _, s := range [][2]uint32{
		{unix.SOCK_STREAM, 0}, {unix.SOCK_STREAM, unix.IPPROTO_TCP}, {unix.SOCK_DGRAM, 0}, {unix.SOCK_DGRAM, unix.IPPROTO_UDP}, {unix.SOCK_DGRAM, icmp},
	} {
		all = append(all, confine.Call{Number: unix.SYS_SOCKET, Args: []confine.Arg{
			{Index: 0, Value: family}, {Index: 1, Mask: 0xF, Value: s[0]}, {Index: 2, Value: s[1]}, // SOCK_TYPE_MASK, linux/net.h
		}})
	}
	return all
}

// resolvConf has the host's name servers, and is often a link to elsewhere. It is replaced when they change, so the directory must be readable.
const resolvConf = "/etc/resolv.conf"

func rights(uid int) confine.Rights {
	r := confine.Rights{Calls: calls, User: uid, Connect: true}
	dirs := []string{filepath.Dir(resolvConf)}
	if path, err := filepath.EvalSymlinks(resolvConf); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, dir := range dirs {
		r.Files = append(r.Files, confine.Below{Path: dir, Access: confine.Read})
	}
	return r
}
