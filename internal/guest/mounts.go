package guest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of what a guest can make us walk.
const (
	maxMounts     = 100_000 // fs.mount-max's default, of one namespace
	maxPathDepth  = 512
	maxPathLength = 4096
)

// A Mount is a mounted file system. The keys are promised.
type Mount struct {
	Target  string `json:"target"`
	Source  string `json:"source"`
	FSType  string `json:"fstype"`
	Options string `json:"options"` // the mount's and the file system's flags; what only a file system's own code can print is not here

	ID        int    `json:"id"`
	Parent    int    `json:"parent"`
	Device    string `json:"device"` // major:minor
	Root      string `json:"root"`   // which directory of the file system is mounted
	Namespace uint32 `json:"namespace"`
}

// A place is a directory entry in a mount, both by address.
type place struct{ mount, dentry uint64 }

// A walker knows mounts and directory entries that it has met.
type walker struct {
	*Kernel
	mounts   map[uint64]object
	dentries map[uint64]link
}

type link struct {
	name   string
	parent uint64
}

func (k *Kernel) newWalker() *walker {
	return &walker{k, map[uint64]object{}, map[uint64]link{}}
}

// Mounts gives the mounts that a process sees below its root, in the order of its mountinfo.
func (k *Kernel) Mounts(task uint64) ([]Mount, error) {
	t, err := k.load("task_struct", task)
	if err != nil {
		return nil, err
	}
	proxy, err := k.load("nsproxy", t.uint("nsproxy"))
	if err != nil {
		return nil, errors.New("guest: the process has ended: it has no mounts")
	}
	w := k.newWalker()
	root, err := w.rootOf(t)
	if err != nil {
		return nil, err
	}
	var all []Mount
	err = settled(func() error {
		clear(w.mounts)
		all, err = w.namespace(proxy.uint("mnt_ns"), root)
		return err
	})
	return all, err
}

// rootOf is a process's root directory.
func (w *walker) rootOf(task object) (place, error) {
	fs, err := w.load("fs_struct", task.uint("fs"))
	if err != nil {
		return place{}, errors.New("guest: the process has ended: it has no root directory")
	}
	return w.placeOf(fs.uint("root.mnt"), fs.uint("root.dentry"))
}

// placeOf makes a place of a struct path's fields: its vfsmount is part of a struct mount.
func (w *walker) placeOf(vfsmount, dentry uint64) (place, error) {
	f, ok := w.structure("mount").field("mnt")
	if !ok {
		return place{}, errNoBTF
	}
	return place{vfsmount - f.Off, dentry}, nil
}

// namespace gives a mount namespace's mounts that are below root.
func (w *walker) namespace(addr uint64, root place) ([]Mount, error) {
	ns, err := w.load("mnt_namespace", addr)
	if err != nil {
		return nil, err
	}
	var at []uint64
	// A tree since v6.8 (2eea9ce4310d). There is a counter called mounts before that: the list decides.
	node := "mnt_list"
	if ns.has("list") {
		at, err = w.list(ns.at("list"), maxMounts)
	} else {
		node = "mnt_node"
		at, err = w.tree(ns.at("mounts"), maxMounts)
	}
	if err != nil {
		return nil, err
	}
	f, ok := w.structure("mount").field(node)
	if !ok {
		return nil, fmt.Errorf("guest: the kernel's struct mount has no %s", node)
	}
	var all []Mount
	for _, a := range at {
		m, err := w.mount(a - f.Off)
		if err != nil {
			return nil, errTorn
		}
		const cursor = 0x10000000 // MNT_CURSOR, v5.8 to v6.7: a reader of mountinfo, in the list
		if m.uint("mnt.mnt_flags")&cursor != 0 && ns.has("list") {
			continue
		}
		if m.uint("mnt_ns") != addr {
			return nil, errTorn
		}
		target, ok := w.path(place{m.addr, m.uint("mnt.mnt_root")}, root)
		if !ok {
			continue
		}
		all = append(all, w.describe(m, target, uint32(ns.uint("ns.inum"))))
	}
	return all, nil
}

func (w *walker) mount(addr uint64) (object, error) {
	if m, ok := w.mounts[addr]; ok {
		return m, nil
	}
	m, err := w.load("mount", addr)
	if err == nil && len(w.mounts) < maxMounts {
		w.mounts[addr] = m
	}
	return m, err
}

// mounted tells whether a mount is in a namespace: those that the kernel keeps for itself have none, or an error for a pointer (MNT_NS_INTERNAL).
func (w *walker) mounted(addr uint64) bool {
	m, err := w.mount(addr)
	ns := m.uint("mnt_ns")
	return err == nil && ns >= kernelHalf && ns < errorPointers
}

// errorPointers is where what is an error in place of an address begins (include/linux/err.h, MAX_ERRNO).
const errorPointers = ^uint64(4095) + 1

// dentry reads a directory entry's name and parent.
func (w *walker) dentry(addr uint64) (link, error) {
	if l, ok := w.dentries[addr]; ok {
		return l, nil
	}
	d, err := w.load("dentry", addr)
	if err != nil {
		return link{}, err
	}
	l := link{w.pointed(d, 256, "d_name.name", "__d_name.name"), d.uint("d_parent")}
	if len(w.dentries) < maxTasks {
		w.dentries[addr] = l
	}
	return l, nil
}

// path is the name of a place as who has the given root sees it (fs/d_path.c, prepend_path); false if it is not below.
func (w *walker) path(at, root place) (string, bool) {
	var parts []string
	length := 0
	for range maxPathDepth {
		if at == root {
			return join(parts), true
		}
		m, err := w.mount(at.mount)
		if err != nil {
			return "", false
		}
		if at.dentry == m.uint("mnt.mnt_root") {
			up := m.uint("mnt_parent")
			if up == at.mount || up == 0 {
				return join(parts), false // the top, and root was not on the way
			}
			at = place{up, m.uint("mnt_mountpoint")}
			continue
		}
		l, err := w.dentry(at.dentry)
		if err != nil || l.parent == at.dentry {
			return join(parts), false
		}
		if length += len(l.name) + 1; length > maxPathLength {
			return "", false
		}
		parts = append(parts, l.name)
		at.dentry = l.parent
	}
	return "", false
}

// inside is the name of a directory entry in its own file system.
func (w *walker) inside(dentry uint64) string {
	var parts []string
	for range maxPathDepth {
		l, err := w.dentry(dentry)
		if err != nil {
			return ""
		}
		if l.parent == dentry {
			break
		}
		parts = append(parts, l.name)
		dentry = l.parent
	}
	return join(parts)
}

// join makes a path of its parts, the last first.
func join(parts []string) string {
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

// Flags of mounts and file systems, in the order in which /proc/mounts has them (fs/proc_namespace.c).
var (
	superFlags = []flag{{1 << 4, "sync"}, {1 << 7, "dirsync"}, {1 << 6, "mand"}, {1 << 25, "lazytime"}}
	mountFlags = []flag{{0x01, "nosuid"}, {0x02, "nodev"}, {0x04, "noexec"}, {0x08, "noatime"}, {0x10, "nodiratime"},
		{0x20, "relatime"}, {0x80, "nosymfollow"}}
)

type flag struct {
	bit  uint64
	name string
}

func (w *walker) describe(m object, target string, ns uint32) Mount {
	d := Mount{Target: target, ID: int(m.int("mnt_id")), Namespace: ns, Source: w.pointed(m, 1024, "mnt_devname")}
	if d.Source == "" {
		d.Source = "none"
	}
	if parent, err := w.mount(m.uint("mnt_parent")); err == nil {
		d.Parent = int(parent.int("mnt_id"))
	}
	d.Root = w.inside(m.uint("mnt.mnt_root"))
	flags := m.uint("mnt.mnt_flags")
	const readOnlyMount, readOnly = 0x40, 1
	options := []string{"rw"}
	if sb, err := w.load("super_block", m.uint("mnt.mnt_sb")); err == nil {
		if t, err := w.load("file_system_type", sb.uint("s_type")); err == nil {
			d.FSType = w.pointed(t, 64, "name")
		}
		if sub := w.pointed(sb, 64, "s_subtype"); sub != "" {
			d.FSType += "." + sub
		}
		dev := sb.uint("s_dev")
		d.Device = fmt.Sprintf("%d:%d", dev>>20, dev&0xFFFFF)
		s := sb.uint("s_flags")
		if s&readOnly != 0 {
			options[0] = "ro"
		}
		options = appendFlags(options, s, superFlags)
	}
	if flags&readOnlyMount != 0 {
		options[0] = "ro"
	}
	d.Options = strings.Join(appendFlags(options, flags, mountFlags), ",")
	return d
}

func appendFlags(options []string, v uint64, flags []flag) []string {
	for _, f := range flags {
		if v&f.bit != 0 {
			options = append(options, f.name)
		}
	}
	return options
}
