package vitrine

import (
	"errors"
	"fmt"
	"os"

	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/helper/files"
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
	root := []export{{tag: rootTag, Export: hostfs.HostRoot(rule)}}
	volumes := m.cfg.Volumes
	if d := m.cfg.Dir; d != "" && d != "/" {
		volumes = append([]Volume{{Path: d}}, volumes...)
	}
	home, _ := os.UserHomeDir()
	var shares []export
	for i, v := range volumes {
		e := export{fmt.Sprintf("share%d", i), hostfs.Export{Dir: v.Path, Rule: hostfs.Owner, Home: home, Writable: v.Writable}}
		err := e.Check()
		if errors.Is(err, hostfs.ErrPseudo) && v.Path == m.cfg.Dir {
			continue // we stand in /proc or the like: the guest has its own
		}
		if err != nil {
			return err
		}
		shares = append(shares, e)
		m.shares = append(m.shares, wire.Share{Tag: e.tag, Source: "/", Target: v.Path, Writable: v.Writable})
	}
	// What nobody could read is served without any right; directories of the user need the user's.
	for _, group := range [][]export{root, shares} {
		if err := m.serve(plug, group); err != nil {
			return err
		}
	}
	return nil
}

// An export is a directory that the guest mounts by tag.
type export struct {
	tag string
	hostfs.Export
}

// serve plugs in virtio file systems that show group, served by one process.
func (m *Machine) serve(plug func(virtio.Device) error, group []export) error {
	if len(group) == 0 {
		return nil
	}
	var exports []hostfs.Export
	for _, e := range group {
		exports = append(exports, e.Export)
	}
	process, shares, err := files.Start(m.helperOptions(), m.ram.FD(), helperUser(), exports)
	if err != nil {
		return err
	}
	m.helpers, m.files = append(m.helpers, process), append(m.files, shares...)
	for i, e := range group {
		d, err := fs.New(e.tag, shares[i])
		if err != nil {
			return err
		}
		if err := plug(d); err != nil {
			return err
		}
	}
	return nil
}
