package hostfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nobody is the user and group of strangers (the kernel's overflow id).
const nobody = 65534

// Confine takes rights from the calling thread for good: no new privileges, no capabilities, no write to any file but those of a
// writable export (Landlock, where the host has it), and, under the rule Nobody started by root, the file rights of nobody. The goroutine is locked to its thread and must
// end without unlocking it, so that the thread ends too.
//
// Handle works on any thread; on a confined one, a mistake in this package shows a guest no more than nobody may see.
func (s *Server) Confine() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("hostfs: no_new_privs: %w", err)
	}
	if err := s.denyWrites(); err != nil {
		return fmt.Errorf("hostfs: landlock: %w", err)
	}
	if os.Getuid() != 0 {
		return nil
	}
	if s.export.Rule == Nobody {
		// These act on the calling thread alone, as the C library's wrappers do not.
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			return fmt.Errorf("hostfs: setgroups: %w", e)
		}
		unix.RawSyscall(unix.SYS_SETFSGID, nobody, 0, 0)
		unix.RawSyscall(unix.SYS_SETFSUID, nobody, 0, 0)
		if id, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); id != nobody {
			return fmt.Errorf("hostfs: file-system user is %d, not %d", id, nobody)
		}
		return dropCapabilities()
	}
	return nil
}

func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("hostfs: capset: %w", err)
	}
	return nil
}

// writes are Landlock's rights of its first version that change something (landlock(7)).
const writes = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
	unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
	unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
	unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_EXECUTE

// granted are those that a writable export has below its directory.
const granted = writes &^ (unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
	unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_EXECUTE)

// denyWrites gives the thread a Landlock rule set that handles writing and allows it nowhere but in a writable export. A host without
// Landlock goes without.
func (s *Server) denyWrites() error {
	attr := unix.LandlockRulesetAttr{Handled_access_fs: writes}
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e == unix.ENOSYS || e == unix.EOPNOTSUPP {
		return nil
	}
	allowed := uint64(granted)
	if abi >= 2 { // without it, no file may move to another directory
		attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_REFER
		allowed |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if e == unix.ENOSYS || e == unix.EOPNOTSUPP || e == unix.EINVAL {
		return nil
	}
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	if s.export.Writable {
		// struct landlock_path_beneath_attr is packed: 8 bytes of rights, 4 of descriptor.
		var below [12]byte
		binary.LittleEndian.PutUint64(below[:], allowed)
		binary.LittleEndian.PutUint32(below[8:], uint32(s.root.Fd()))
		if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&below)), 0, 0, 0); e != 0 {
			return e
		}
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return e
	}
	return nil
}
