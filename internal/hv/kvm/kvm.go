// Package kvm runs a guest's CPUs on the host's, by Linux's KVM.
//
// Interrupt controllers are the kernel's where the machine asks for them ([VM.CreateIRQChip]). Else they are the machine's: each access to a LAPIC is an
// exit, and interrupts are injected one by one.
package kvm

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86/model"
)

// A Backend is an open /dev/kvm. It lives as long as the process.
type Backend struct {
	fd      int
	area    int    // size of a CPU's shared area
	tscHz   uint64 // of guests
	broken  error  // why it is no good for stock kernels
	xcrs    bool   // the host has XSAVE, and XCR0
	ownMSRs bool   // accesses to single MSRs can be had as exits
	bells   bool   // event counters for writes of any width
	cpuid   []cpuidEntry
	model   model.Set // what processors have; zero: all that KVM supports
}

var (
	_ hv.Backend     = (*Backend)(nil)
	_ hv.DirtyLogger = (*VM)(nil)
	_ hv.IRQChip     = (*VM)(nil)
	_ hv.Messenger   = (*VM)(nil)
	_ hv.Doorbeller  = (*VM)(nil)
	_ hv.Sampler     = (*VCPU)(nil)
	_ hv.Counter     = (*VCPU)(nil)
	_ hv.Counter     = (*VM)(nil)
)

// Name implements [hv.Backend].
func (b *Backend) Name() string { return "kvm" }

// TSCHz is the rate of guests' time stamp counters, in Hz.
func (b *Backend) TSCHz() uint64 { return b.tscHz }

// A VM is one guest. It implements [hv.VM] and [hv.DirtyLogger].
type VM struct {
	b       *Backend
	fd      int
	ram     *mem.Memory
	cpus    []*VCPU
	xsave   int  // bytes of a CPU's XSAVE area
	chip    bool // interrupt controllers are in the kernel
	logging bool
	routes  routes
	stats   *stats // KVM's own; nil where it has none

	find    sync.Once // by the first CPU that is prepared
	findErr error
	msrs    []uint32 // what State has
}

// newVM makes a VM with what Intel's processors before unrestricted guests need: three pages for a task segment and one for page tables, in
// a place where no board has RAM or devices (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR). AMD's KVM takes and ignores them.
func newVM(kvm int) (int, error) {
	vm, err := ioctl(kvm, createVM, 0)
	for errors.Is(err, unix.EINTR) {
		vm, err = ioctl(kvm, createVM, 0)
	}
	if errors.Is(err, unix.EBUSY) {
		return -1, errors.New("/dev/kvm: something else has the processor's virtualization: end other hypervisors")
	}
	if err != nil {
		return -1, fmt.Errorf("/dev/kvm: a machine cannot be made: %w", err)
	}
	identity := uint64(0xFFFBC000)
	ioctlAt(vm, setIdentityMapAddr, &identity)
	ioctl(vm, setTSSAddr, 0xFFFBD000)
	return vm, nil
}

// NewVM implements [hv.Backend].
func (b *Backend) NewVM(ram *mem.Memory) (hv.VM, error) {
	fd, err := newVM(b.fd)
	if err != nil {
		return nil, err
	}
	v := &VM{b: b, fd: fd, ram: ram, xsave: 4096, stats: openStats(fd)}
	if err := v.setUp(); err != nil {
		v.Close()
		return nil, fmt.Errorf("kvm: %w", err)
	}
	return v, nil
}

func (v *VM) setUp() error {
	for i, r := range v.ram.Regions() {
		if err := showRegion(v.fd, uint32(i), 0, v.ram, r); err != nil {
			return fmt.Errorf("%d MiB of memory at %#x: %w", r.Size>>20, uint64(r.Base), err)
		}
	}
	if n, err := ioctl(v.fd, checkExtension, capXSave2); err == nil && n > v.xsave {
		v.xsave = n
	}
	v.enable(capPMU, 1) // no PMU: its registers are not in the guest's CPUID
	return nil
}

// A msrRange is n MSRs from first on.
type msrRange struct{ first, n uint32 }

// hiddenMSRs belong to what CPUID hides: VMX's abilities, Hyper-V, SVM. KVM answers for some of them all the same.
var hiddenMSRs = []msrRange{{0x480, 0x14}, {msrHyperV, msrHyperVEnd - msrHyperV}, {0xC0010114, 5}}

// machineMSRs are the machine's where it has the LAPICs. x2APIC's cannot be filtered; with no LAPIC in the kernel they are invalid to it, which is an
// exit as well.
var machineMSRs = []msrRange{{msrAPICBase, 1}, {msrTSCDeadline, 1}}

// filter hides MSRs, and makes exits of those that are the machine's.
func (v *VM) filter() error {
	ranges := hiddenMSRs
	switch {
	case v.b.has(capMSRFilter) == 0:
		return nil
	case !v.chip && v.b.ownMSRs:
		if err := v.enable(capUserSpaceMSR, msrInvalid|msrFiltered); err != nil {
			return fmt.Errorf("MSR exits: %w", err)
		}
		ranges = append(slices.Clone(ranges), machineMSRs...)
	}
	if err := filterMSRs(v.fd, ranges); err != nil {
		return fmt.Errorf("MSR filter: %w", err)
	}
	return nil
}

func (v *VM) enable(c uint32, arg uint64) error {
	_, err := ioctlAt(v.fd, enableCap, &capability{cap: c, args: [4]uint64{arg}})
	return err
}

// NewVCPU implements [hv.VM].
func (v *VM) NewVCPU(id int, io hv.IO) (hv.VCPU, error) {
	if limit := v.b.has(capMaxVCPUs); limit > 0 && id >= limit {
		return nil, fmt.Errorf("kvm: CPU %d: this host's limit is %d CPUs", id, limit)
	}
	if len(v.cpus) == 0 {
		if err := v.filter(); err != nil {
			return nil, fmt.Errorf("kvm: %w", err)
		}
	}
	fd, err := ioctl(v.fd, createVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("kvm: CPU %d: %w", id, err)
	}
	area, err := unix.Mmap(fd, 0, v.b.area, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kvm: CPU %d: %w", id, err)
	}
	c := &VCPU{vm: v, id: id, fd: fd, io: io, area: area, page: view[runPage](area), tscHz: v.b.tscHz, xsave: make([]byte, v.xsave), stats: openStats(fd)}
	v.cpus = append(v.cpus, c)
	return c, nil
}

// Close implements [hv.VM].
func (v *VM) Close() error {
	var errs []error
	for _, c := range v.cpus {
		errs = append(errs, c.close())
	}
	v.cpus = nil
	if v.fd >= 0 {
		errs = append(errs, v.stats.close(), unix.Close(v.fd))
		v.fd = -1
	}
	return errors.Join(errs...)
}
