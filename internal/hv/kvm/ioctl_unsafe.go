package kvm

// The invariant of this file: what a pointer handed to the kernel points to lives, and is as large as the request says, until
// the call returns; no CPU enters the guest once its slot's pages are unmapped.

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctl(fd int, request, arg uintptr) (int, error) {
	v, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if e != 0 {
		return int(v), e
	}
	return int(v), nil
}

// setMemory shows page to the guest at base, as slot 0 (struct kvm_userspace_memory_region).
func setMemory(vm int, base uint64, page []byte) error {
	region := struct {
		slot, flags      uint32
		base, size, host uint64
	}{0, 0, base, uint64(len(page)), uint64(uintptr(unsafe.Pointer(&page[0])))}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(vm), setUserMemoryRegion, uintptr(unsafe.Pointer(&region)))
	if e != 0 {
		return e
	}
	return nil
}

func exitReason(area []byte) *uint32 { return (*uint32)(unsafe.Pointer(&area[exitReasonOffset])) }
