package kvm

// What other processes may know of a CPU's shared area (struct kvm_run): with bits set in its word of valid registers, KVM puts these registers there
// each time that KVM_RUN returns (Documentation/virt/kvm/api.rst, KVM_CAP_SYNC_REGS, Linux 4.17).

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86"
)

// Run is the request by which a thread runs a CPU, KVM_RUN.
const Run = run

// Places in the area, and the word's bits.
const (
	syncedValid   = 288
	syncedRegs    = 304
	syncedSpecial = syncedRegs + unsafe.Sizeof(generalRegs{})

	capSyncRegs  = 74
	syncRegsMask = 1<<0 | 1<<1 // general and special registers
)

// Shared is the first page of a CPU's area, mapped from its descriptor, which may be of another process. KVM writes to it when it likes.
type Shared []byte

// CanShare tells whether this host's KVM puts registers into the area.
func CanShare() bool {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := ioctl(fd, checkExtension, capSyncRegs)
	return err == nil && n&syncRegsMask == syncRegsMask
}

// MapShared maps the area of a CPU's descriptor.
func MapShared(fd int) (Shared, error) {
	return unix.Mmap(fd, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// Unmap unmaps the area.
func (s Shared) Unmap() error { return unix.Munmap(s) }

func (s Shared) valid() *uint64 { return (*uint64)(unsafe.Pointer(&s[syncedValid])) }

// Keep asks KVM to keep the registers in the area from now on. It gives the bits that were not set before.
func (s Shared) Keep() (added uint64) {
	return syncRegsMask &^ atomic.OrUint64(s.valid(), syncRegsMask)
}

// Kept tells whether KVM is still asked to.
func (s Shared) Kept() bool { return atomic.LoadUint64(s.valid())&syncRegsMask == syncRegsMask }

// Forget takes back what Keep added.
func (s Shared) Forget(added uint64) { atomic.AndUint64(s.valid(), ^added) }

// Registers fills r with the area's, and tells whether KVM has put any there. They are whole only while the CPU's thread stands still.
func (s Shared) Registers(r *x86.Regs) bool {
	g := *(*generalRegs)(unsafe.Pointer(&s[syncedRegs]))
	special := *(*specialRegs)(unsafe.Pointer(&s[syncedSpecial]))
	fillRegs(r, &g, &special)
	r.CR8 = special.cr8
	return g.rflags&x86.Fixed != 0 // which is always set (SDM vol. 1 3.4.3)
}
