package vitrine

import (
	"errors"
	"fmt"
	"os"

	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/hostfs"
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/fs"
	"vitrine.dev/vitrine/internal/machine/virtio/vsock"
)

// guestCID is the guest's address on its vsock; each guest has a host of its own.
const guestCID = 3

// rootTag names the root's virtio file system; each share has one of its own.
const rootTag = "root"

// attachAgent plugs in what our agent needs: its line to us, the root, and the directories that are shared over it.
func (m *Machine) attachAgent(plug func(virtio.Device) error) error {
	line := vsock.New(guestCID)
	if err := plug(line); err != nil {
		return err
	}
	var err error
	if m.agents, err = line.Listen(wire.Port); err != nil {
		return err
	}
	rule := hostfs.Nobody
	if m.cfg.Root == RootHostAll {
		m.cfg.Log("--root host-all: the guest sees every file that you can read")
		rule = hostfs.Owner
	}
	if err := serve(plug, rootTag, hostfs.HostRoot(rule)); err != nil {
		return err
	}
	volumes := m.cfg.Volumes
	if d := m.cfg.Dir; d != "" && d != "/" {
		volumes = append([]Volume{{Path: d}}, volumes...)
	}
	home, _ := os.UserHomeDir()
	for i, v := range volumes {
		tag := fmt.Sprintf("share%d", i)
		err := serve(plug, tag, hostfs.Export{Dir: v.Path, Rule: hostfs.Owner, Home: home, Writable: v.Writable})
		if errors.Is(err, hostfs.ErrPseudo) && v.Path == m.cfg.Dir {
			continue // we stand in /proc or the like: the guest has its own
		}
		if err != nil {
			return err
		}
		m.shares = append(m.shares, wire.Share{Tag: tag, Source: "/", Target: v.Path, Writable: v.Writable})
	}
	return nil
}

// serve plugs in a virtio file system that shows e.
func serve(plug func(virtio.Device) error, tag string, e hostfs.Export) error {
	server, err := hostfs.New(e)
	if err != nil {
		return err
	}
	d, err := fs.New(tag, server)
	if err != nil {
		return err
	}
	return plug(d)
}
