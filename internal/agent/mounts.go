package agent

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// A mount is one row of what every guest has.
type mount struct {
	fstype, target string
	flags          uintptr
	data           string
	may            bool // its absence is no error
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// system is mounted in the new root, in this order.
var system = []mount{
	{"proc", "/proc", safe, "", false},
	{"sysfs", "/sys", safe, "", false},
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755", false},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", false},
	{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
	{"cgroup2", "/sys/fs/cgroup", safe, "", true},
}

// Places in the initramfs, which stays below the new root, out of sight.
const (
	lowerDir = "/lower" // the host's tree, read-only
	spaceDir = "/space" // a tmpfs for what the guest writes
	rootDir  = "/root"  // the new root, before it is /
)

// setup makes the world that m describes around this process.
func setup(m *wire.Setup) error {
	if err := unix.Sethostname([]byte(m.Hostname)); err != nil {
		return place("hostname "+m.Hostname, err)
	}
	root := ""
	if m.RootTag != "" {
		root = rootDir
		if err := overlayRoot(m.RootTag); err != nil {
			return err
		}
	}
	for _, dir := range m.Tmpfs {
		if err := mountAt(mount{"tmpfs", dir, unix.MS_NOSUID | unix.MS_NODEV, "mode=" + tmpfsMode(dir), false}, root); err != nil {
			return err
		}
	}
	for _, row := range system {
		if err := mountAt(row, root); err != nil && !row.may {
			return err
		}
	}
	for i, s := range m.Shares {
		if err := share(s, i, root); err != nil {
			return err
		}
	}
	if root != "" {
		if err := switchRoot(root); err != nil {
			return err
		}
	}
	devLinks()
	if err := loopbackUp(); err != nil || m.Network == nil {
		return err
	}
	return networkUp(m.Network)
}

// overlayRoot mounts the host's tree, with a tmpfs over it for what is written, at rootDir.
func overlayRoot(tag string) error {
	for _, row := range []mount{
		{"virtiofs", lowerDir, unix.MS_RDONLY, "", false},
		{"tmpfs", spaceDir, 0, "mode=0755", false},
	} {
		source := row.fstype
		if row.fstype == "virtiofs" {
			source = tag
		}
		if err := os.MkdirAll(row.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, row.target, row.fstype, row.flags, row.data); err != nil {
			return place("mount "+row.fstype+" "+source, err)
		}
	}
	upper, work := spaceDir+"/upper", spaceDir+"/work"
	for _, dir := range []string{upper, work, rootDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	data := "lowerdir=" + lowerDir + ",upperdir=" + upper + ",workdir=" + work
	return place("mount overlay", unix.Mount("overlay", rootDir, "overlay", 0, data))
}

func mountAt(m mount, root string) error {
	target := root + m.target
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return place("mount "+m.fstype+" at "+m.target, unix.Mount(m.fstype, target, m.fstype, m.flags, m.data))
}

// tmpfsMode is the mode that the root of a directory's tmpfs has by custom.
func tmpfsMode(dir string) string {
	switch dir {
	case "/tmp", "/var/tmp":
		return "1777"
	case "/root":
		return "0700"
	}
	return "0755"
}

// share shows a directory of a virtio file system at its place, number i of all.
func share(s wire.Share, i int, root string) error {
	from := lowerDir
	if s.Tag != "" {
		from = "/share" + string(rune('a'+i%26)) + string(rune('a'+i/26%26))
		if err := os.MkdirAll(from, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(s.Tag, from, "virtiofs", readOnly(s), ""); err != nil {
			return place("mount virtiofs "+s.Tag, err)
		}
	}
	target := root + s.Target
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from+strings.TrimSuffix(s.Source, "/"), target, "", unix.MS_BIND, ""); err != nil {
		return place("share "+s.Target, err)
	}
	// A bind takes its flags from where it came; read-only needs a second step.
	return place("share "+s.Target, unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|readOnly(s), ""))
}

func readOnly(s wire.Share) uintptr {
	if s.Writable {
		return 0
	}
	return unix.MS_RDONLY
}

// switchRoot makes root /. An initramfs can be neither unmounted nor pivoted away, so the new root is moved over it.
func switchRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return place("move the new root", err)
	}
	if err := unix.Chroot("."); err != nil {
		return place("chroot", err)
	}
	return os.Chdir("/")
}

// devLinks makes the names of /dev that devtmpfs leaves to user space.
func devLinks() {
	for _, l := range []string{"fd /proc/self/fd", "stdin /proc/self/fd/0", "stdout /proc/self/fd/1", "stderr /proc/self/fd/2"} {
		name, to, _ := strings.Cut(l, " ")
		os.Symlink(to, "/dev/"+name)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil // a kernel without IP
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return place("loopback up", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req))
}
