package kvm

// What other processes may know of a CPU's shared area (struct kvm_run): with bits set in its word of valid registers, KVM puts these registers there
// each time that the CPU leaves its guest (Documentation/virt/kvm/api.rst, KVM_CAP_SYNC_REGS, Linux 4.17).

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86"
)

// Places in the area, the word's bits, and what else tells of an exit.
const (
	syncedValid   = 288
	syncedRegs    = 304
	syncedSpecial = syncedRegs + unsafe.Sizeof(generalRegs{})

	capSyncRegs  = 74
	syncRegsMask = 1<<0 | 1<<1 // general and special registers

	// SharedSize is how much of the area holds them, in bytes.
	SharedSize = 4096
)

// Shared is the first page of a CPU's area, mapped from its descriptor. KVM writes to it when it likes.
type Shared []byte

// CanShare tells whether this host's KVM keeps registers in the area.
func CanShare() bool {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, err := ioctl(fd, checkExtension, capSyncRegs)
	return err == nil && n&syncRegsMask == syncRegsMask
}

func (s Shared) valid() *uint64 { return (*uint64)(unsafe.Pointer(&s[syncedValid])) }

// Keep asks KVM to keep the registers in the area from the next exit on. It returns what to give to Restore.
func (s Shared) Keep() (was uint64) {
	for {
		was = atomic.LoadUint64(s.valid())
		if atomic.CompareAndSwapUint64(s.valid(), was, was|syncRegsMask) {
			return was
		}
	}
}

// Restore puts back what Keep found.
func (s Shared) Restore(was uint64) { atomic.StoreUint64(s.valid(), was) }

// Registers fills r with the area's, and tells whether KVM has put any there. They are whole only while the CPU's thread does not run.
func (s Shared) Registers(r *x86.Regs) bool {
	g := *(*generalRegs)(unsafe.Pointer(&s[syncedRegs]))
	special := *(*specialRegs)(unsafe.Pointer(&s[syncedSpecial]))
	fillRegs(r, &g, &special)
	r.CR8 = special.cr8
	return g.rflags&x86.Fixed != 0 // which is always set (SDM vol. 1 3.4.3)
}
