package confine

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Below is a file or a directory with all that is in it, and what may be done there.
type Below struct {
	// Path is it; or FD, where Path is empty.
	Path string
	FD   int
	Access
}

// Access is what may be done with files, as bits.
type Access uint8

// The kinds of access.
const (
	Read   Access = 1 << iota // files' bytes
	List                      // directories' names
	Change                    // writing, making and removing of files, directories and symbolic links
	Remove                    // removing of directories
)

// Rights of landlock(7) by the version of its ABI that brought them.
const (
	lockRead   = unix.LANDLOCK_ACCESS_FS_READ_FILE
	lockList   = unix.LANDLOCK_ACCESS_FS_READ_DIR
	lockRemove = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR
	lockChange = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	lockNever = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO
	lockOfFiles = lockRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE

	netBind, netConnect      = 1 << 0, 1 << 1 // LANDLOCK_ACCESS_NET_*, ABI 4
	scopeAbstract, scopeKill = 1 << 0, 1 << 1 // LANDLOCK_SCOPE_*, ABI 6
)

// handled are the rights on files that version abi knows.
func handled(abi int) uint64 {
	all := uint64(lockRead | lockList | lockChange | lockNever)
	if abi < 2 {
		all &^= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi < 3 {
		all &^= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		all |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return all
}

func (a Access) rights(abi int) (r uint64) {
	for bit, more := range map[Access]uint64{Read: lockRead, List: lockList, Change: lockChange, Remove: lockRemove} {
		if a&bit != 0 {
			r |= more
		}
	}
	return r & handled(abi)
}

// ErrNoLandlock is returned on a host without Landlock, or where the program cannot use it on all threads.
var ErrNoLandlock = errors.New("no Landlock here: files are guarded by the layers beside it")

// landlockABI is the version of Landlock's ABI that the kernel has; 0: none.
func landlockABI() int {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(abi)
}

// landlock leaves all threads only these files, and TCP connections where connect is set. What is open stays so. Older kernels
// know less: version 1 files, 3 truncation too, 4 TCP, 6 abstract unix sockets and signals.
func landlock(files []Below, connect bool) error {
	abi := landlockABI()
	if abi == 0 {
		return ErrNoLandlock
	}
	attr := rulesetAttr{fs: handled(abi), net: netBind | netConnect, scoped: scopeAbstract | scopeKill}
	if connect {
		attr.net &^= netConnect
	}
	ruleset, err := createRuleset(abi, &attr)
	if err != nil {
		return err
	}
	defer unix.Close(ruleset)
	for _, b := range files {
		if err := b.allow(ruleset, abi); err != nil {
			return err
		}
	}
	err = allThreads(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0)
	if errors.Is(err, unix.ENOTSUP) { // a program with cgo
		return ErrNoLandlock
	}
	return err
}

func (b Below) allow(ruleset, abi int) error {
	fd := b.FD
	if b.Path != "" {
		var err error
		if fd, err = unix.Open(b.Path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return nil // what cannot be named needs no right: a host without /etc, a mount whose server is gone
		}
		defer unix.Close(fd)
	}
	rights := b.rights(abi)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= lockOfFiles
	}
	if rights == 0 {
		return nil
	}
	return allowBelow(ruleset, fd, rights)
}
