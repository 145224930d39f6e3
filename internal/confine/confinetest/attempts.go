package confinetest

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

func raw(number uintptr, args ...uintptr) func() error {
	var a [6]uintptr
	copy(a[:], args)
	return func() error {
		if _, _, e := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
			return e
		}
		return nil
	}
}

func socket(domain, kind, proto int) func() error {
	return func() error { _, err := unix.Socket(domain, kind, proto); return err }
}

// attempts are what whoever takes a process over would try. In dir are the files of makeFiles; open is a descriptor of a directory.
func attempts(dir string, parent, open int) map[string]func() error {
	return map[string]func() error{
		"open":          func() error { _, err := os.Open("/etc/passwd"); return err },
		"open own":      func() error { _, err := os.Open("/proc/self/maps"); return err },
		"create":        func() error { return os.WriteFile(dir+"/new", nil, 0o600) },
		"openat2":       func() error { _, err := unix.Openat2(unix.AT_FDCWD, "/etc/passwd", &unix.OpenHow{}); return err },
		"openat fd":     func() error { _, err := unix.Openat(open, "file", unix.O_RDONLY, 0); return err },
		"by handle":     func() error { _, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/etc/passwd", 0); return err },
		"read inside":   func() error { _, err := os.ReadFile(dir + "/in/file"); return err },
		"list inside":   func() error { _, err := os.ReadDir(dir + "/in"); return err },
		"write inside":  func() error { return os.WriteFile(dir+"/in/file", nil, 0) },
		"make inside":   func() error { return os.WriteFile(dir+"/in/new", nil, 0o600) },
		"utimes":        func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/out/file", make([]unix.Timespec, 2), 0) },
		"execve inside": func() error { return unix.Exec(dir+"/in/file", []string{"file"}, nil) },
		"statx": func() error {
			return unix.Statx(unix.AT_FDCWD, "/etc/passwd", 0, unix.STATX_BASIC_STATS, new(unix.Statx_t))
		},
		"stat":                    func() error { _, err := os.Stat("/etc/passwd"); return err },
		"readlink":                func() error { _, err := os.Readlink("/proc/self/exe"); return err },
		"unlink":                  func() error { return os.Remove(dir + "/out/file") },
		"rename":                  func() error { return os.Rename(dir+"/out/file", dir+"/out/other") },
		"mkdir":                   func() error { return os.Mkdir(dir+"/made", 0o700) },
		"link":                    func() error { return os.Link(dir+"/out/file", dir+"/out/linked") },
		"symlink":                 func() error { return os.Symlink("/etc/passwd", dir+"/out/linked") },
		"chmod":                   func() error { return os.Chmod(dir+"/out/file", 0o777) },
		"chown":                   func() error { return os.Chown(dir+"/out/file", 1, 1) },
		"truncate":                func() error { return os.Truncate(dir+"/out/file", 0) },
		"chdir":                   func() error { return os.Chdir("/etc") },
		"chroot":                  func() error { return unix.Chroot("/") },
		"execve":                  func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"spawn":                   func() error { return exec.Command("/bin/true").Run() },
		"fork":                    raw(unix.SYS_FORK),
		"vfork":                   raw(unix.SYS_VFORK),
		"clone":                   raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
		"clone newuser":           raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER),
		"unshare":                 func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"setns":                   raw(unix.SYS_SETNS, uintptr(open), 0),
		"ptrace":                  func() error { return unix.PtraceAttach(parent) },
		"read of another":         raw(unix.SYS_PROCESS_VM_READV, uintptr(parent)),
		"write to another":        raw(unix.SYS_PROCESS_VM_WRITEV, uintptr(parent)),
		"pidfd_getfd":             raw(unix.SYS_PIDFD_GETFD, uintptr(open), 0, 0),
		"pidfd_open":              raw(unix.SYS_PIDFD_OPEN, uintptr(parent), 0),
		"kill":                    func() error { return unix.Kill(parent, 0) },
		"kill all":                func() error { return unix.Kill(-1, 0) },
		"tgkill":                  func() error { return unix.Tgkill(parent, parent, 0) },
		"queue signal":            raw(unix.SYS_RT_SIGQUEUEINFO, uintptr(parent)),
		"signals by a descriptor": func() error { _, err := unix.FcntlInt(uintptr(open), unix.F_SETOWN, parent); return err },
		"mount":                   func() error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
		"umount":                  func() error { return unix.Unmount("/proc", 0) },
		"fsopen":                  raw(unix.SYS_FSOPEN),
		"bpf":                     raw(unix.SYS_BPF),
		"io_uring":                raw(unix.SYS_IO_URING_SETUP, 1),
		"userfaultfd":             raw(unix.SYS_USERFAULTFD),
		"perf":                    raw(unix.SYS_PERF_EVENT_OPEN),
		"keyctl":                  raw(unix.SYS_KEYCTL),
		"module":                  raw(unix.SYS_INIT_MODULE),
		"kexec":                   raw(unix.SYS_KEXEC_LOAD),
		"reboot":                  raw(unix.SYS_REBOOT),
		"clock":                   raw(unix.SYS_CLOCK_SETTIME, 0, 0),
		"memfd":                   raw(unix.SYS_MEMFD_CREATE),
		"setuid":                  func() error { return syscall.Setuid(0) },
		"ioctl TIOCSTI":           raw(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0),
		"raise a limit":           func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}) },
		"tcp":                     socket(unix.AF_INET, unix.SOCK_STREAM, 0),
		"udp":                     socket(unix.AF_INET6, unix.SOCK_DGRAM, 0),
		"unix":                    socket(unix.AF_UNIX, unix.SOCK_STREAM, 0),
		"netlink":                 socket(unix.AF_NETLINK, unix.SOCK_RAW, 0),
		"packet":                  socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
		"vsock":                   socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"connect":                 raw(unix.SYS_CONNECT, 0),
		"bind":                    raw(unix.SYS_BIND, 0),
		"code": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return err
		},
		"data made code": func() error {
			p, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				say("no memory: %v", err)
			}
			return unix.Mprotect(p, unix.PROT_READ|unix.PROT_EXEC)
		},
	}
}
