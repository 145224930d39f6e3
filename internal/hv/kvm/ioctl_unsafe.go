package kvm

// The invariant of this file: what a pointer handed to the kernel points to lives, and is as large as the request says, until
// the call returns; a VM's slots are inside RAM that is mapped until after [VM.Close]; a CPU's area is mapped while anybody looks at it.

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/mem"
)

func ioctl(fd int, request, arg uintptr) (int, error) {
	v, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if e != 0 {
		return int(v), e
	}
	return int(v), nil
}

// ioctlAt makes a request whose argument is p; T is the request's own type.
func ioctlAt[T any](fd int, request uintptr, p *T) (int, error) {
	v, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(p)))
	if e != 0 {
		return int(v), e
	}
	return int(v), nil
}

// setMemory shows host memory to the guest at base. A region of no size takes the slot away.
func setMemory(vm int, slot, flags uint32, base, size uint64, host unsafe.Pointer) error {
	region := memoryRegion{slot: slot, flags: flags, base: base, size: size, host: uint64(uintptr(host))}
	_, err := ioctlAt(vm, setUserMemoryRegion, &region)
	return err
}

// showRegion shows region r of ram to the guest.
func showRegion(vm int, slot, flags uint32, ram *mem.Memory, r mem.Region) error {
	return setMemory(vm, slot, flags, uint64(r.Base), r.Size, ram.Page(r.Base))
}

// dirtyBitmap asks which pages of a slot were written since it was asked last. bitmap has a bit for each page.
func dirtyBitmap(vm int, slot uint32, bitmap []uint64) error {
	log := struct {
		slot, _ uint32
		bitmap  unsafe.Pointer
	}{slot: slot, bitmap: unsafe.Pointer(&bitmap[0])}
	_, err := ioctlAt(vm, getDirtyLog, &log)
	return err
}

// filterMSRs denies accesses to MSRs: each is #GP, or an exit where the VM has such.
func filterMSRs(vm int, ranges []msrRange) error {
	type span struct {
		flags, n, base uint32
		bitmap         unsafe.Pointer
	}
	var filter struct {
		flags uint32
		spans [16]span
	}
	denied := new([1536 / 8]byte) // KVM_MSR_FILTER_MAX_BITMAP_SIZE is larger
	for i, r := range ranges {
		if r.n > uint32(len(denied))*8 {
			panic("BUG: kvm: a range of MSRs that is too long")
		}
		filter.spans[i] = span{flags: 1 | 2, n: r.n, base: r.first, bitmap: unsafe.Pointer(denied)} // reads and writes
	}
	_, err := ioctlAt(vm, setMSRFilter, &filter)
	return err
}

// tscOffset is what KVM adds to the host's counter for a CPU (Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_OFFSET).
func tscOffset(cpu int) (uint64, error) {
	offset := new(uint64)
	attr := struct {
		flags, group uint32
		attr         uint64
		addr         unsafe.Pointer
	}{addr: unsafe.Pointer(offset)}
	_, err := ioctlAt(cpu, getDeviceAttr, &attr)
	return *offset, err
}

// guestComponents are the XSAVE components that KVM can give a guest whose process was permitted them (Documentation/arch/x86/xstate.rst).
func guestComponents(kvm int) (uint64, error) {
	components := new(uint64)
	attr := struct {
		flags, group uint32
		attr         uint64
		addr         unsafe.Pointer
	}{addr: unsafe.Pointer(components)}
	_, err := ioctlAt(kvm, getDeviceAttr, &attr)
	return *components, err
}

// xsaveRequest reads or writes a whole XSAVE area, whose size is KVM_CAP_XSAVE2's.
func xsaveRequest(cpu int, request uintptr, area []byte) error {
	_, err := ioctlAt(cpu, request, &area[0])
	return err
}

// view is the first bytes of b as a T.
func view[T any](b []byte) *T {
	var zero T
	_ = b[unsafe.Sizeof(zero)-1]
	return (*T)(unsafe.Pointer(&b[0]))
}

// immediate is the word of the run page that holds immediate_exit in its second byte. It is changed by others while the CPU runs.
func (r *runPage) immediate() *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(r))
}
