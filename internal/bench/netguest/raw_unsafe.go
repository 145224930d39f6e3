package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls that wait do so without the scheduler's knowledge: told, it would wake other threads at each of them, and these would be measured
// too. Each goroutine that calls them needs a processor of its own (see main).

// connect gives a socket that is connected to a port of the host's.
func connect(port int, kind uintptr) (uintptr, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, kind, 0)
	if errno != 0 {
		return 0, errno
	}
	// A port is in network order.
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: host, Port: uint16(port)>>8 | uint16(port)<<8}
	if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to)); errno != 0 {
		end(fd)
		return 0, errno
	}
	return fd, nil
}

func read(fd uintptr, b []byte) (int, error) { return transfer(unix.SYS_READ, fd, b) }

func write(fd uintptr, b []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, b) }

// transfer reads or writes b, which is not empty.
func transfer(call, fd uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func end(fd uintptr) { unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0) }
