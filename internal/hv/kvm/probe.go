// Package kvm tells what the host's /dev/kvm is good for.
package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of the KVM API (Linux Documentation/virt/kvm/api.rst, include/uapi/linux/kvm.h) and what they give.
const (
	getAPIVersion       = 0xAE00
	createVM            = 0xAE01
	getVCPUMmapSize     = 0xAE04
	createVCPU          = 0xAE41
	setTSSAddr          = 0xAE47
	setUserMemoryRegion = 0x4020AE46
	run                 = 0xAE80

	apiVersion        = 12 // since Linux 2.6.22, for ever
	exitReasonOffset  = 8  // in struct kvm_run
	exitHLT           = 5
	exitInternalError = 17
)

// ErrBroken is returned for a KVM that is there and cannot run a stock kernel.
var ErrBroken = errors.New("/dev/kvm cannot run a stock kernel")

// Probe returns nil where KVM can run a stock kernel, else why not and what can be done about it.
func Probe() error {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("no /dev/kvm here")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("no permission for /dev/kvm (sudo usermod -aG kvm $USER, then log in anew)")
	case err != nil:
		return fmt.Errorf("/dev/kvm: %w", err)
	}
	defer unix.Close(fd)
	if v, err := ioctl(fd, getAPIVersion, 0); err != nil || v != apiVersion {
		return fmt.Errorf("/dev/kvm: API version %d, not %d (%v)", v, apiVersion, err)
	}
	return try(fd)
}

// guestCode is what a kernel built for any x86-64 of the last fifteen years executes early at privilege level 0, and what a KVM that
// emulates privileged code does not know: popcnt %ax,%ax; hlt.
var guestCode = []byte{0xF3, 0x0F, 0xB8, 0xC0, 0xF4}

// try runs guestCode from the reset vector (SDM vol. 3A 9.1.4) and looks at how it ends.
func try(kvm int) error {
	vm, err := ioctl(kvm, createVM, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: a machine cannot be made: %w", err)
	}
	defer unix.Close(vm)
	ioctl(vm, setTSSAddr, 0xFFFBD000) // Intel's before unrestricted guests cannot do without
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	copy(page[0xFF0:], guestCode)
	if err := setMemory(vm, 0xFFFFF000, page); err != nil {
		return fmt.Errorf("/dev/kvm: memory: %w", err)
	}
	cpu, err := ioctl(vm, createVCPU, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: a CPU cannot be made: %w", err)
	}
	defer unix.Close(cpu)
	size, err := ioctl(kvm, getVCPUMmapSize, 0)
	if err != nil || size < 4096 {
		return fmt.Errorf("/dev/kvm: %d bytes of CPU area: %w", size, err)
	}
	area, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("/dev/kvm: CPU area: %w", err)
	}
	defer unix.Munmap(area)
	if err := runFor(cpu, time.Second); err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	switch reason := *exitReason(area); reason {
	case exitHLT:
		return nil
	case exitInternalError:
		return fmt.Errorf("%w (popcnt at privilege level 0 fails to be emulated)", ErrBroken)
	default:
		return fmt.Errorf("%w (its first instruction ended in exit %d)", ErrBroken, reason)
	}
}

// runFor enters the guest, and gets it back with a signal where it does not come by itself.
func runFor(cpu int, limit time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	late := time.AfterFunc(limit, func() { unix.Tgkill(unix.Getpid(), tid, unix.SIGURG) }) // the Go runtime takes SIGURG for its own and goes on
	defer late.Stop()
	_, err := ioctl(cpu, run, 0)
	return err
}
