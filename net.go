package vitrine

import (
	"fmt"

	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/helper/network"
	"vitrine.dev/vitrine/internal/machine/virtio"
	virtionet "vitrine.dev/vitrine/internal/machine/virtio/net"
	"vitrine.dev/vitrine/internal/network/user"
)

// Values of Config.Net.
const (
	NetUser = "user" // a network of the guest's own, over sockets of a process of its own
	NetNone = "none" // no network card
)

// HostName is the name by which a guest with a network finds the host; what listens on the host's 127.0.0.1 is there.
const HostName = user.HostName

// A Port is a port of the host behind which a port of the guest is.
type Port = user.Forward

// ParsePort reads [ADDRESS:]HOST:GUEST[/tcp|/udp]. Without an address, only the host itself can connect.
func ParsePort(s string) (Port, error) { return user.ParseForward(s) }

// checkNet fills in Net's default and says what is wrong.
func (c *Config) checkNet() error {
	if c.Net == "" {
		c.Net = NetUser
	}
	switch {
	case c.Net != NetUser && c.Net != NetNone:
		return fmt.Errorf("--net %q: give user or none", c.Net)
	case c.Net == NetNone && len(c.Ports) > 0:
		return fmt.Errorf("--port %v: there is no network (--net none)", c.Ports[0])
	}
	return nil
}

// openNetwork makes the guest's network, with its ports open. It comes before all that takes time: a port in use starts nothing.
func (m *Machine) openNetwork() (err error) {
	if m.cfg.Net == NetUser {
		if m.net, err = network.Start(m.helperOptions(), helperUser(), m.cfg.Ports); err == nil {
			m.helpers = append(m.helpers, m.net.Helper)
		}
	}
	return err
}

// attachNetwork plugs the network card in.
func (m *Machine) attachNetwork(plug func(virtio.Device) error) error {
	if m.net == nil {
		return nil
	}
	if err := m.net.SetName(m.Name()); err != nil {
		return err
	}
	return plug(virtionet.New(user.GuestMAC, m.net))
}

// networkSetup is what the agent is told: it needs no DHCP.
func (m *Machine) networkSetup() *wire.Network {
	if m.net == nil {
		return nil
	}
	return &wire.Network{
		MAC: user.GuestMAC.String(), Address: user.Guest.AsSlice(), Bits: uint64(user.Subnet.Bits()), Gateway: user.Gateway.AsSlice(),
		DNS:   []string{user.DNS.String()},
		Hosts: []string{user.Guest.String() + " " + m.Name(), user.Gateway.String() + " " + user.HostName},
	}
}
