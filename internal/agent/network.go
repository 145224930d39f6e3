package agent

import (
	"encoding/binary"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// networkUp sets the network card up as m says, by three messages of rtnetlink(7): it has an address before it is ready, and no DHCP
// client is needed. A kernel without a driver for the card has none; the host says so.
func networkUp(m *wire.Network) error {
	name, index := findCard(m.MAC)
	if index == 0 {
		return nil
	}
	// Nobody else is on the network who could have our IPv6 addresses: they need not be asked for, which takes a second.
	os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return place("network", err)
	}
	defer unix.Close(fd)
	for _, r := range requests(m, index) {
		if err := netlink(fd, r); err != nil {
			return place("network "+name, err)
		}
	}
	return writeNames(m)
}

// findCard gives the name and the index of the interface with an address.
func findCard(mac string) (string, uint32) {
	const dir = "/sys/class/net/"
	all, err := os.ReadDir(dir)
	if err != nil {
		return "", 0
	}
	for _, e := range all {
		if b, err := os.ReadFile(dir + e.Name() + "/address"); err == nil && strings.TrimSpace(string(b)) == mac {
			b, _ := os.ReadFile(dir + e.Name() + "/ifindex")
			n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
			return e.Name(), uint32(n)
		}
	}
	return "", 0
}

var le = binary.LittleEndian

// requests are the messages that set the card up: struct nlmsghdr (include/uapi/linux/netlink.h), what belongs to the type, attributes.
func requests(m *wire.Network, index uint32) [][]byte {
	ifaddr := []byte{unix.AF_INET, uint8(m.Bits), 0, unix.RT_SCOPE_UNIVERSE}
	ifaddr = le.AppendUint32(ifaddr, index)
	ifinfo := le.AppendUint32(make([]byte, 4), index)
	ifinfo = le.AppendUint32(ifinfo, unix.IFF_UP)
	ifinfo = le.AppendUint32(ifinfo, unix.IFF_UP) // the flags that change
	route := []byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	return [][]byte{
		request(unix.RTM_NEWADDR, ifaddr, attribute(unix.IFA_LOCAL, m.Address), attribute(unix.IFA_ADDRESS, m.Address)),
		request(unix.RTM_NEWLINK, ifinfo),
		request(unix.RTM_NEWROUTE, route, attribute(unix.RTA_GATEWAY, m.Gateway), attribute(unix.RTA_OIF, le.AppendUint32(nil, index))),
	}
}

func request(kind uint16, body []byte, attributes ...[]byte) []byte {
	flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_ACK)
	if kind != unix.RTM_NEWLINK {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	b := le.AppendUint16(make([]byte, 4), kind)
	b = le.AppendUint16(b, flags)
	b = append(b, make([]byte, 8)...)
	b = append(b, body...)
	for _, a := range attributes {
		b = append(b, a...)
	}
	le.PutUint32(b, uint32(len(b)))
	return b
}

// attribute is a struct rtattr whose value's size is a multiple of 4.
func attribute(kind uint16, value []byte) []byte {
	b := le.AppendUint16(nil, uint16(4+len(value)))
	return append(le.AppendUint16(b, kind), value...)
}

// netlink sends a request and waits for what the kernel says to it: a struct nlmsgerr, which begins with an errno.
func netlink(fd int, request []byte) error {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return err
	}
	if n >= 20 && le.Uint16(b[4:]) == unix.NLMSG_ERROR {
		if errno := int32(le.Uint32(b[16:])); errno != 0 {
			return unix.Errno(-errno)
		}
	}
	return nil
}

// writeNames tells the guest's programs where the name servers are, and the names that are not asked of them. A resolv.conf is often a
// link to what a service of the host keeps in /run.
func writeNames(m *wire.Network) error {
	os.MkdirAll("/etc", 0o755)
	var conf strings.Builder
	for _, s := range m.DNS {
		conf.WriteString("nameserver " + s + "\n")
	}
	os.Remove("/etc/resolv.conf")
	if err := os.WriteFile("/etc/resolv.conf", []byte(conf.String()), 0o644); err != nil {
		return err
	}
	hosts, _ := os.ReadFile("/etc/hosts")
	if n := len(hosts); n > 0 && hosts[n-1] != '\n' {
		hosts = append(hosts, '\n')
	}
	if len(hosts) == 0 {
		hosts = []byte("127.0.0.1 localhost\n")
	}
	for _, line := range m.Hosts {
		hosts = append(append(hosts, line...), '\n')
	}
	os.Remove("/etc/hosts")
	return os.WriteFile("/etc/hosts", hosts, 0o644)
}
