package confine

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// install gives all threads the filter at once (SECCOMP_FILTER_FLAG_TSYNC, seccomp(2)), and no_new_privs with it.
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
