package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86/model"
)

// What a guest's CPUID says: what KVM supports, less what State cannot hold or the machine does not have, with the topology of one package of
// single-threaded cores.

// supportedCPUID asks KVM what it supports.
func (b *Backend) supportedCPUID() error {
	l := cpuidList{n: maxCPUID}
	if _, err := ioctlAt(b.fd, getSupportedCPUID, &l); err != nil {
		if errors.Is(err, unix.E2BIG) {
			return fmt.Errorf("/dev/kvm: more than %d CPUID leaves", maxCPUID)
		}
		return fmt.Errorf("/dev/kvm: CPUID: %w", err)
	}
	b.cpuid = slices.Clone(l.entries[:min(l.n, maxCPUID)])
	return nil
}

// Flags is what processors can have: what KVM supports and we do not hide.
func (b *Backend) Flags() model.Set {
	return model.Of(func(leaf, sub uint32) (r [4]uint32) {
		for _, e := range b.guestCPUID(0, 1, b.tscHz, false) {
			if e.leaf == leaf && (e.sub == sub || e.flags&cpuidHasSub == 0) {
				r = [4]uint32{e.a, e.b, e.c, e.d}
			}
		}
		return r
	})
}

// SetModel makes s, which is among Flags, what the processors of later VMs have.
func (b *Backend) SetModel(s model.Set) { b.model = s }

// KVM's paravirtual leaves (Documentation/virt/kvm/x86/cpuid.rst, VMware's timing leaf).
const (
	leafHypervisor = 0x40000000
	leafFeatures   = 0x40000001
	leafTiming     = 0x40000010
)

// kvmFeatures are the paravirtual features that work without a LAPIC in the kernel: kvm-clock (old and new MSRs), no I/O delay, steal time,
// TLB flushes that spare CPUs which do not run, and the promise that the clock is stable.
const kvmFeatures = 1<<0 | 1<<1 | 1<<3 | 1<<5 | 1<<9 | 1<<24

// chipFeatures are those that a LAPIC in the kernel adds: page faults of the host's that the guest can work around, told by interrupt too; ends of
// interrupts without an exit; waking and yielding to other CPUs; IPIs to many at once; a guest that polls before it halts tells the host not to.
const chipFeatures = 1<<4 | 1<<6 | 1<<7 | 1<<11 | 1<<12 | 1<<13 | 1<<14

// hidden are the bits that guests do not see.
var hidden = []struct {
	leaf, sub  uint32
	a, b, c, d uint32
}{
	// VMX: State has no nested guests. DTES64, PDCM, DS: no PMU. HTT is decided below.
	{leaf: 1, c: 1<<2 | 1<<5 | 1<<15, d: 1<<21 | 1<<28},
	// All but ARAT.
	{leaf: 6, a: ^uint32(1 << 2), b: ^uint32(0), c: ^uint32(0)},
	// SGX and its launch control; branch records.
	{leaf: 7, b: 1 << 2, c: 1 << 30, d: 1 << 19},
	// The PMU.
	{leaf: 0xA, a: ^uint32(0), b: ^uint32(0), c: ^uint32(0), d: ^uint32(0)},
	// SVM, IBS, SKINIT, LWP, performance counters. CMP_LEGACY is decided below.
	{leaf: 0x80000001, c: 1<<1 | 1<<2 | 1<<10 | 1<<12 | 1<<15 | 1<<23 | 1<<24 | 1<<28},
}

// dropped are leaves that guests do not have: topology and frequencies, made anew; SGX; processor trace; branch records; SVM; performance monitoring.
var dropped = []uint32{0xB, 0x1F, 0x80000026, 0x15, 0x16, 0x12, 0x14, 0x1C, 0x8000000A, 0x23, 0x80000022}

// guestCPUID is CPU id's of n, whose time stamp counter has a rate of hz; chip tells that its LAPIC is in the kernel.
func (b *Backend) guestCPUID(id, n int, hz uint64, chip bool) []cpuidEntry {
	var out []cpuidEntry
	for _, e := range b.cpuid {
		if !slices.Contains(dropped, e.leaf) && e.leaf>>28 != leafHypervisor>>28 {
			out = append(out, e)
		}
	}
	for i := range out {
		e := &out[i]
		for _, h := range hidden {
			if h.leaf == e.leaf && h.sub == e.sub {
				e.a, e.b, e.c, e.d = e.a&^h.a, e.b&^h.b, e.c&^h.c, e.d&^h.d
			}
		}
		b.place(e, uint32(id), uint32(n), chip)
		if b.model != (model.Set{}) {
			r := [4]uint32{e.a, e.b, e.c, e.d}
			b.model.Mask(e.leaf, e.sub, &r)
			e.a, e.b, e.c, e.d = r[0], r[1], r[2], r[3]
		}
	}
	width := uint32(bits.Len(uint(n - 1)))
	sub := func(leaf, sub, a, b, c, d uint32) cpuidEntry {
		return cpuidEntry{leaf: leaf, sub: sub, flags: cpuidHasSub, a: a, b: b, c: c, d: d}
	}
	if b.maxLeaf() >= 0xB {
		// Two levels: one thread a core, all cores in one package.
		out = append(out, sub(0xB, 0, 0, 1, 1<<8, uint32(id)), sub(0xB, 1, width, uint32(n), 2<<8|1, uint32(id)), sub(0xB, 2, 0, 0, 2, uint32(id)))
	}
	if b.maxLeaf() >= 0x15 && b.vendor() == "GenuineIntel" {
		// Linux computes the rate from these (native_calibrate_tsc) and the LAPIC timer's from the crystal, which is the machine's.
		const crystal = 1_000_000_000
		den, num := ratio(hz, crystal, (1<<32-1)/(crystal/1000))
		out = append(out, cpuidEntry{leaf: 0x15, a: uint32(den), b: uint32(num), c: crystal})
	}
	return append(out, b.paravirtual(hz, chip)...)
}

// place says in e which of n CPUs it is.
func (b *Backend) place(e *cpuidEntry, id, n uint32, chip bool) {
	width := uint32(bits.Len32(n - 1))
	shared := uint32(1)<<width - 1
	many := uint32(0)
	if n > 1 {
		many = 1
	}
	switch e.leaf {
	case 1:
		e.b = e.b&0xFFFF | min(shared+1, 255)<<16 | id<<24
		e.c |= 1 << 31 // a hypervisor
		e.c &^= 1<<21 | 1<<24
		if b.ownMSRs || chip {
			e.c |= 1<<21 | 1<<24 // x2APIC and the TSC deadline, which the machine or the kernel has
		}
		e.d |= many << 28 // HTT: EBX bits 23-16 count
	case 4, 0x8000001D:
		if e.a&0x1F == 0 {
			return
		}
		sharing := uint32(0) // L1 and L2 are a core's own
		if e.a>>5&7 >= 3 {
			sharing = shared
		}
		e.a = e.a&0x3FFF | sharing<<14
		if e.leaf == 4 {
			e.a |= min(shared, 63) << 26
		}
	case 0x80000001:
		e.c |= many << 1 // CMP_LEGACY
	case 0x80000008:
		e.c = e.c&^0xF0FF | min(n-1, 255) | width<<12
	case 0x8000001E:
		e.a, e.b, e.c = id, id&0xFF, 0
	}
}

// paravirtual is what KVM and we say of ourselves.
func (b *Backend) paravirtual(hz uint64, chip bool) []cpuidEntry {
	word := func(s string) uint32 { return binary.LittleEndian.Uint32([]byte(s)) }
	wanted, features := uint32(kvmFeatures), uint32(0)
	if chip {
		wanted |= chipFeatures
	}
	for _, e := range b.cpuid {
		if e.leaf == leafFeatures {
			features = e.a & wanted
		}
	}
	return []cpuidEntry{
		{leaf: leafHypervisor, a: leafTiming, b: word("KVMK"), c: word("VMKV"), d: word("M\x00\x00\x00")},
		{leaf: leafFeatures, a: features},
		{leaf: leafTiming, a: uint32(hz / 1000), b: 1_000_000}, // kHz of the TSC and of the LAPIC timer
	}
}

func (b *Backend) maxLeaf() uint32 {
	for _, e := range b.cpuid {
		if e.leaf == 0 {
			return e.a
		}
	}
	return 0
}

func (b *Backend) vendor() string {
	for _, e := range b.cpuid {
		if e.leaf == 0 {
			p := binary.LittleEndian.AppendUint32(nil, e.b)
			p = binary.LittleEndian.AppendUint32(p, e.d)
			return string(binary.LittleEndian.AppendUint32(p, e.c))
		}
	}
	return ""
}

// ratio is the fraction num/den nearest to a/b with num at most limit, by continued fractions: Linux multiplies it by the crystal's kHz in 32 bits.
func ratio(a, b, limit uint64) (den, num uint64) {
	p0, q0, p1, q1 := uint64(0), uint64(1), uint64(1), uint64(0)
	for b != 0 {
		k := a / b
		p, q := k*p1+p0, k*q1+q0
		if p > limit {
			break
		}
		p0, q0, p1, q1 = p1, q1, p, q
		a, b = b, a%b
	}
	return q1, p1
}

// prepare makes the CPU what the guest is to see, once. It is done late, because CPUID tells how many CPUs there are.
func (v *VCPU) prepare() error {
	if v.prepared {
		return nil
	}
	var l cpuidList
	entries := v.vm.b.guestCPUID(v.id, len(v.vm.cpus), v.tscHz, v.vm.chip)
	if len(entries) > maxCPUID {
		return v.wrap("CPUID", fmt.Errorf("%d leaves", len(entries)))
	}
	l.n = uint32(copy(l.entries[:], entries))
	if _, err := ioctlAt(v.fd, setCPUID2, &l); err != nil {
		return v.wrap("CPUID", err)
	}
	for _, e := range entries {
		if e.leaf == 0xD && e.sub == 0 {
			v.xcr0 = uint64(e.d)<<32 | uint64(e.a)
		}
	}
	var s specialRegs
	if _, err := ioctlAt(v.fd, getSRegs, &s); err != nil {
		return v.wrap("special registers", err)
	}
	v.apicBase = s.apicBase
	// As firmware leaves them: fast strings; MTRRs on, memory cached where none says otherwise. Not every KVM has them.
	firmware := []msrEntry{{index: msrMTRRDefault, data: 1<<11 | 6}}
	if misc, err := v.readMSR(msrMiscEnable); err == nil {
		firmware = append(firmware, msrEntry{index: msrMiscEnable, data: misc | 1})
	}
	v.sieve(setMSRs, firmware)
	v.vm.find.Do(func() { v.vm.findErr = v.findMSRs() })
	if v.vm.findErr != nil {
		return v.vm.findErr
	}
	if err := errors.Join(v.learnOffset(), v.announce()); err != nil {
		return err
	}
	v.prepared = true
	return nil
}
