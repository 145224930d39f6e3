package confine

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file has the system calls that take structures. Each pointer is to a Go variable that outlives its call.

// install gives all threads the filter at once (SECCOMP_FILTER_FLAG_TSYNC, seccomp(2)).
func install(filter []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return e
	}
	if r != 0 { // the number of a thread with another filter
		return unix.EBUSY
	}
	return nil
}

// rulesetAttr is struct landlock_ruleset_attr (linux/landlock.h); a kernel takes as much of it as it knows.
type rulesetAttr struct{ fs, net, scoped uint64 }

// rulesetSize is how much of it Landlock's version abi knows.
func rulesetSize(abi int) uintptr {
	switch {
	case abi >= 6:
		return 24
	case abi >= 4:
		return 16
	}
	return 8
}

func createRuleset(abi int, attr *rulesetAttr) (int, error) {
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), rulesetSize(abi), 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// allowBelow adds a rule for the file or directory fd and all that is below.
func allowBelow(ruleset, fd int, access uint64) error {
	// struct landlock_path_beneath_attr is packed: 8 bytes of rights, 4 of descriptor.
	var b [12]byte
	binary.NativeEndian.PutUint64(b[:], access)
	binary.NativeEndian.PutUint32(b[8:], uint32(fd))
	_, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&b)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// allThreads makes a system call on every thread of the process. It has to have the same result on all.
func allThreads(number, a, b, c uintptr) error {
	if _, _, e := syscall.AllThreadsSyscall(number, a, b, c); e != 0 {
		return e
	}
	return nil
}

// Permitted are the capabilities that the calling thread may have, as bits.
func Permitted() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("confine: capget: %w", err)
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
}

// capset gives all threads these capabilities, as permitted and effective ones.
func capset(keep uint64) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)}, {Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
	return err
}
