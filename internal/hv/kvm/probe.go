package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrBroken is returned for a KVM that is there and cannot run a stock kernel.
var ErrBroken = errors.New("/dev/kvm cannot run a stock kernel")

// Open opens /dev/kvm. Its error says in a line why that cannot be used, and what can be done about it. What is opened may still be no good for
// stock kernels: [Backend.Stock] tells.
func Open() (*Backend, error) { return open("/dev/kvm", "/proc/cpuinfo") }

func open(path, cpuinfo string) (*Backend, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, explain(err, path, cpuinfo)
	}
	b := &Backend{fd: fd}
	if err := b.look(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return b, nil
}

// look finds out what this KVM has.
func (b *Backend) look() error {
	if v, err := ioctl(b.fd, getAPIVersion, 0); err != nil || v != apiVersion {
		return fmt.Errorf("/dev/kvm: API version %d, not %d (%v)", v, apiVersion, err)
	}
	for _, c := range []struct {
		cap  uintptr
		name string
	}{
		{capUserMemory, "user memory"}, {capVCPUEvents, "vCPU events"}, {capDebugRegs, "debug registers"}, {capXSave, "XSAVE"},
		{capImmediateExit, "immediate exit"},
	} {
		if b.has(c.cap) == 0 {
			return fmt.Errorf("/dev/kvm: no %s: the kernel is older than 4.11", c.name)
		}
	}
	b.xcrs = b.has(capXCRs) != 0
	b.ownMSRs = b.has(capUserSpaceMSR) != 0 && b.has(capMSRFilter) != 0
	b.bells = b.has(capIOEventFD) != 0 && b.has(capAnyLength) != 0
	size, err := ioctl(b.fd, getVCPUMmapSize, 0)
	if err != nil || size < 4096 {
		return fmt.Errorf("/dev/kvm: %d bytes of CPU area: %w", size, err)
	}
	b.area = size
	b.permitComponents()
	if err := b.supportedCPUID(); err != nil {
		return err
	}
	return b.try()
}

// has is the value of a capability; 0 where it is not there.
func (b *Backend) has(capability uintptr) int {
	v, err := ioctl(b.fd, checkExtension, capability)
	if err != nil {
		return 0
	}
	return v
}

// Stock returns nil where this KVM can run a stock kernel, else an error that wraps [ErrBroken].
func (b *Backend) Stock() error { return b.broken }

// guestCode is what a kernel built for any x86-64 of the last fifteen years executes early at privilege level 0, and what a KVM that
// emulates privileged code does not know: popcnt %ax,%ax; hlt.
var guestCode = []byte{0xF3, 0x0F, 0xB8, 0xC0, 0xF4}

// try runs guestCode from the reset vector (SDM vol. 3A 9.1.4), looks at how it ends, and at the rate of the time stamp counter.
func (b *Backend) try() error {
	vm, err := newVM(b.fd)
	if err != nil {
		return err
	}
	defer unix.Close(vm)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	copy(page[0xFF0:], guestCode)
	if err := setMemory(vm, 0, 0, 0xFFFFF000, uint64(len(page)), unsafe.Pointer(&page[0])); err != nil {
		return fmt.Errorf("/dev/kvm: memory: %w", err)
	}
	cpu, err := ioctl(vm, createVCPU, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: a CPU cannot be made: %w", err)
	}
	defer unix.Close(cpu)
	area, err := unix.Mmap(cpu, 0, b.area, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("/dev/kvm: CPU area: %w", err)
	}
	defer unix.Munmap(area)
	if khz, err := ioctl(cpu, getTSCKHz, 0); err == nil && khz > 0 {
		b.tscHz = uint64(khz) * 1000
	} else {
		b.tscHz = measureTSC() // KVM does not say where the host's counter is unstable
	}
	err = runFor(cpu, time.Second)
	switch reason := view[runPage](area).reason; {
	case err != nil:
		b.broken = fmt.Errorf("%w: %w", ErrBroken, err)
	case reason == exitInternalError:
		b.broken = fmt.Errorf("%w (popcnt at privilege level 0 fails to be emulated)", ErrBroken)
	case reason != exitHLT:
		b.broken = fmt.Errorf("%w (its first instruction ended in exit %d)", ErrBroken, reason)
	}
	return nil
}

// runFor enters the guest, and gets it back with a signal where it does not come by itself.
func runFor(cpu int, limit time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	late := time.AfterFunc(limit, func() { unix.Tgkill(unix.Getpid(), tid, kickSignal) })
	defer late.Stop()
	end := time.Now().Add(limit)
	for {
		_, err := ioctl(cpu, run, 0)
		if !errors.Is(err, unix.EINTR) || !time.Now().Before(end) { // the Go runtime sends signals of its own
			return err
		}
	}
}
