package guest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"vitrine.dev/vitrine/internal/printable"
)

// A Socket is an end of communication that a process of the guest holds. The keys are promised.
type Socket struct {
	Protocol  string   `json:"protocol"` // tcp, tcp6, udp, udp6, unix, netlink, packet, vsock, …; of a family without a name here its number
	State     string   `json:"state"`    // as ss(8) has it: ESTAB, LISTEN, UNCONN, …
	Local     string   `json:"local"`    // address and port, "*" for none; of unix a path, or @ and an abstract name
	Remote    string   `json:"remote"`   // of unix the other end's
	Inode     uint64   `json:"inode"`
	Peer      uint64   `json:"peer_inode,omitempty"` // of unix: the other end
	Received  uint64   `json:"receive_queue"`        // bytes that no program has read; of a listening TCP socket connections not accepted
	Unsent    uint64   `json:"send_queue"`           // bytes that the other end has not confirmed
	UID       uint32   `json:"uid"`
	Namespace uint32   `json:"netns"`
	Holders   []Holder `json:"holders,omitempty"` // whose it is, where all sockets are listed
}

// A Holder is a process that has a socket open.
type Holder struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	FD   int    `json:"fd"`
}

// Address families (include/linux/socket.h).
const (
	familyUnix    = 1
	familyInet    = 2
	familyInet6   = 10
	familyNetlink = 16
	familyPacket  = 17
	familyVsock   = 40
)

// families are the names of those that have neither ports nor protocols that tell more.
var families = map[uint64]string{
	familyUnix: "unix", familyNetlink: "netlink", familyPacket: "packet", familyVsock: "vsock",
	29: "can", 31: "bluetooth", 38: "alg", 44: "xdp", 45: "mctp",
}

// ipProtocols are IP's, as /proc/net calls them (include/uapi/linux/in.h).
var ipProtocols = map[uint64]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmp", 132: "sctp", 136: "udplite", 262: "mptcp"}

// socketStates are those of TCP, which all families use (include/net/tcp_states.h), as ss(8) calls them.
var socketStates = [...]string{"UNKNOWN", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN", "CLOSE-WAIT", "LAST-ACK", "LISTEN",
	"CLOSING", "NEW-SYN-RECV"}

const stateListen = 10

// maxOpen bounds the descriptors of all processes together.
const maxOpen = 1 << 22

// Sockets gives all sockets that processes have open, by protocol and inode.
func (k *Kernel) Sockets() ([]Socket, error) {
	leaders, err := k.leaders()
	if err != nil {
		return nil, err
	}
	var all []Socket
	known := map[uint64]int{} // index in all + 1 by address of the struct socket; 0: of none
	w := k.newWalker()
	total := 0
	for _, addr := range leaders {
		t, err := k.load("task_struct", addr)
		if err != nil {
			continue
		}
		open, err := k.openFiles(t)
		if err != nil {
			continue // it has ended
		}
		if total += len(open); total > maxOpen {
			return all, fmt.Errorf("guest: more than %d open files", maxOpen)
		}
		for _, o := range open {
			i, ok := known[o.addr]
			if !ok && len(known) < maxFiles {
				if f, err := k.load("file", o.addr); err == nil {
					if s, ok := w.socket(f); ok {
						all = append(all, s)
						i = len(all)
					}
				}
				known[o.addr] = i
			}
			if i > 0 && len(all[i-1].Holders) < maxThreads {
				all[i-1].Holders = append(all[i-1].Holders, Holder{int(t.int("tgid")), t.text("comm"), o.fd})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Socket) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Inode, b.Inode))
	})
	return all, nil
}

// socket reads the socket that a file is; false where it is none. One that is just being opened or closed is looked at again, without waiting:
// there can be a million.
func (w *walker) socket(f object) (s Socket, ok bool) {
	in, err := w.load("inode", f.uint("f_inode"))
	if err != nil {
		return s, false
	}
	sb, err := w.load("super_block", in.uint("i_sb"))
	if err != nil {
		return s, false
	}
	if t, err := w.load("file_system_type", sb.uint("s_type")); err != nil || w.pointed(t, 64, "name") != "sockfs" {
		return s, false
	}
	for range 3 {
		at, err := w.load("socket", f.uint("private_data"))
		if err != nil || at.uint("file") != f.addr {
			continue
		}
		sk, err := w.load("sock", at.uint("sk"))
		if err != nil {
			continue
		}
		if back := sk.uint("sk_socket"); back == at.addr || back == 0 {
			s = w.describeSocket(sk)
			s.Inode = in.uint("i_ino")
			return s, true
		}
	}
	return s, false
}

func (w *walker) describeSocket(sk object) Socket {
	s := Socket{Local: "*", Remote: "*", State: socketStates[0], UID: uint32(sk.uint("sk_uid"))}
	state := sk.uint("__sk_common.skc_state")
	if state < uint64(len(socketStates)) {
		s.State = socketStates[state]
	}
	if f, ok := w.structure("net").field("ns.inum"); ok {
		s.Namespace, _ = w.space.Uint32(sk.uint("__sk_common.skc_net.net") + f.Off)
	}
	switch family := sk.uint("__sk_common.skc_family"); family {
	case familyInet, familyInet6:
		w.inet(sk, &s, family == familyInet6, state)
	case familyUnix:
		w.unix(sk, &s)
	case familyNetlink:
		s.Protocol = families[family]
		if n, err := w.load("netlink_sock", sk.addr); err == nil {
			s.Local = fmt.Sprintf("%s:%d", netlinkName(sk.uint("sk_protocol")), n.uint("portid"))
		}
	case familyVsock:
		s.Protocol = families[family]
		if v, err := w.loadIn("vsock", "vsock_sock", sk.addr); err == nil {
			s.Local = vsockAddress(v.uint("local_addr.svm_cid"), v.uint("local_addr.svm_port"))
			s.Remote = vsockAddress(v.uint("remote_addr.svm_cid"), v.uint("remote_addr.svm_port"))
		}
	case familyPacket:
		s.Protocol = families[family]
		if p, err := w.loadIn("af_packet", "packet_sock", sk.addr); err == nil {
			s.Local = fmt.Sprintf("%#04x:%d", swap16(p.uint("num")), p.int("ifindex")) // what kind of frames, of which interface: 0 is any
		}
	default:
		if s.Protocol = families[family]; s.Protocol == "" {
			s.Protocol = strconv.FormatUint(family, 10)
		}
	}
	return s
}

// inet fills in what TCP, UDP and their like have (include/net/sock.h, struct sock_common).
func (w *walker) inet(sk object, s *Socket, six bool, state uint64) {
	protocol := sk.uint("sk_protocol")
	const raw = 3 // SOCK_RAW
	switch name, ok := ipProtocols[protocol]; {
	case sk.uint("sk_type") == raw:
		s.Protocol = "raw"
	case ok:
		s.Protocol = name
	default:
		s.Protocol = "ip-" + strconv.FormatUint(protocol, 10)
	}
	local, remote := netip.AddrFrom4([4]byte(sk.bytes("__sk_common.skc_rcv_saddr", 4))), netip.AddrFrom4([4]byte(sk.bytes("__sk_common.skc_daddr", 4)))
	if six {
		s.Protocol += "6"
		local, remote = netip.AddrFrom16([16]byte(sk.bytes("__sk_common.skc_v6_rcv_saddr", 16))), netip.AddrFrom16([16]byte(sk.bytes("__sk_common.skc_v6_daddr", 16)))
	}
	s.Local = endpoint(local, uint16(sk.uint("__sk_common.skc_num")))
	s.Remote = endpoint(remote, swap16(sk.uint("__sk_common.skc_dport")))
	s.Received, s.Unsent = sk.uint("sk_backlog.rmem_alloc.counter"), sk.uint("sk_wmem_alloc.refs.counter")
	if s.Unsent > 0 {
		s.Unsent-- // a reference of the socket's own (sk_wmem_alloc_get)
	}
	if protocol != 6 {
		return
	}
	s.Received, s.Unsent = 0, 0
	if state == stateListen {
		s.Received, s.Unsent = sk.uint("sk_ack_backlog"), sk.uint("sk_max_ack_backlog")
		return
	}
	if t, err := w.load("tcp_sock", sk.addr); err == nil {
		distance := func(to, from string) uint64 { return uint64(max(0, int32(t.uint(to)-t.uint(from)))) }
		s.Received, s.Unsent = distance("rcv_nxt", "copied_seq"), distance("write_seq", "snd_una")
	}
}

// unix fills in what a socket of the host's own has (include/net/af_unix.h).
func (w *walker) unix(sk object, s *Socket) {
	s.Protocol = families[familyUnix]
	u, err := w.loadIn("unix", "unix_sock", sk.addr)
	if err != nil {
		return
	}
	s.Local = w.unixName(u)
	peer := u.uint("peer")
	if peer == 0 {
		return
	}
	if p, err := w.loadIn("unix", "unix_sock", peer); err == nil {
		s.Remote = w.unixName(p)
	}
	if p, err := w.load("sock", peer); err == nil {
		s.Peer = w.socketInode(p.uint("sk_socket"))
	}
}

// unixName is the name that a socket is bound to, or "*".
func (w *walker) unixName(u object) string {
	a, err := w.load("unix_address", u.uint("addr"))
	if err != nil {
		return "*"
	}
	const most = 110 // sizeof(struct sockaddr_un): the family's two bytes, and the name
	f, ok := a.field("name")
	n := a.uint("len")
	if !ok || n <= 2 || n > most {
		return "*"
	}
	b := make([]byte, n-2)
	if w.space.ReadAt(b, a.addr+f.Off+2) != nil {
		return "*"
	}
	if b[0] == 0 {
		b[0] = '@'
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	for i, c := range b { // within an abstract name, as ss(8) has it
		if c == 0 {
			b[i] = '@'
		}
	}
	return printable.Text(string(b))
}

// socketInode is the number of a socket's inode: both are parts of a struct socket_alloc.
func (w *walker) socketInode(socket uint64) uint64 {
	alloc := w.structure("socket_alloc")
	in, ok := alloc.field("socket")
	if socket < kernelHalf || !ok {
		return 0
	}
	a, err := w.load("socket_alloc", socket-in.Off)
	if err != nil {
		return 0
	}
	return a.uint("vfs_inode.i_ino")
}

// endpoint is an address and a port; 0 is any.
func endpoint(a netip.Addr, port uint16) string {
	text := a.String()
	if a.Is6() {
		text = "[" + text + "]"
	}
	if port == 0 {
		return text + ":*"
	}
	return text + ":" + strconv.Itoa(int(port))
}

// vsockAddress is a context's number and a port; the largest number is any.
func vsockAddress(cid, port uint64) string {
	one := func(v uint64) string {
		if uint32(v) == ^uint32(0) {
			return "*"
		}
		return strconv.FormatUint(uint64(uint32(v)), 10)
	}
	return one(cid) + ":" + one(port)
}

// netlinkName is what a netlink socket talks to, as ss(8) calls it (include/uapi/linux/netlink.h).
func netlinkName(protocol uint64) string {
	names := map[uint64]string{0: "rtnl", 4: "tcpdiag", 5: "nflog", 6: "xfrm", 7: "selinux", 9: "audit", 10: "fiblookup", 11: "connector", 12: "nft", 15: "uevent", 16: "genl",
		18: "scsi-trans", 19: "ecryptfs", 20: "rdma", 21: "crypto", 22: "smc"}
	if name, ok := names[protocol]; ok {
		return name
	}
	return strconv.FormatUint(protocol, 10)
}

// swap16 makes a number of two bytes in the network's order.
func swap16(v uint64) uint16 {
	var b [2]byte
	le.PutUint16(b[:], uint16(v))
	return binary.BigEndian.Uint16(b[:])
}
