package user

import (
	"net/netip"

	"vitrine.dev/vitrine/internal/network"
)

// The addresses on the guest's network. They are QEMU's.
var (
	Subnet  = netip.MustParsePrefix("10.0.2.0/24")
	Gateway = netip.MustParseAddr("10.0.2.2") // the host; for the guest also the way out
	DNS     = netip.MustParseAddr("10.0.2.3")
	Guest   = netip.MustParseAddr("10.0.2.15")

	Subnet6  = netip.MustParsePrefix("fec0::/64")
	Gateway6 = netip.MustParseAddr("fec0::2")
	DNS6     = netip.MustParseAddr("fec0::3")
	router6  = netip.MustParseAddr("fe80::2") // as whom the gateway advertises itself
)

// HostName is the name by which the guest finds the host: what listens on the host's 127.0.0.1 is at Gateway, what listens on ::1 at Gateway6.
const HostName = "host.vitrine"

var (
	// GuestMAC is the guest's: nobody else is on its network, so all guests have the same. It is QEMU's first, locally administered.
	GuestMAC  = network.MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}
	routerMAC = network.MAC{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}
)

var (
	linkLocal = netip.MustParsePrefix("fe80::/64")
	allNodes  = netip.MustParseAddr("ff02::1")
	loopback6 = netip.IPv6Loopback()
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

	// routable6 is what of IPv6 is routed: global unicast, unique local, and IPv4 by NAT64 (RFC 4291, 4193, 6052). All else means the host
	// that uses it, its link, or, as ::ffff:0:0/96 does, an address that routable would refuse.
	routable6 = []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("64:ff9b::/96")}
)

func isHost(a netip.Addr) bool { return a == Gateway || a == Gateway6 }

func isDNS(a netip.Addr) bool { return a == DNS || a == DNS6 }

// isGuest tells whether the guest may send from a: from the address that DHCP gives, or from any that it makes of the prefix that it was told.
func isGuest(a netip.Addr) bool {
	if a.Is4() {
		return a == Guest
	}
	return a != Gateway6 && a != DNS6 && a != router6 && a != Subnet6.Addr() && (Subnet6.Contains(a) || linkLocal.Contains(a))
}

// outside is where on the host's network something for a goes: the gateway is the host itself.
func outside(a netip.Addr) netip.Addr {
	switch a {
	case Gateway:
		return loopback4
	case Gateway6:
		return loopback6
	}
	return a
}

// routable tells whether the guest may send to a: one host, and none of those addresses that mean the host that uses them (RFC 6890).
func routable(a netip.Addr) bool {
	if isHost(a) || isDNS(a) {
		return true
	}
	if a.Is4() {
		b := a.As4()
		// Not: this network, loopback, multicast, reserved, broadcast.
		return b[0] != 0 && !a.IsLoopback() && b[0] < 224 && !Subnet.Contains(a)
	}
	for _, p := range routable6 {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
