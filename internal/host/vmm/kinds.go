package vmm

import (
	"slices"
	"strings"
)

// A kind is a program that runs virtual machines.
type kind struct {
	name        string
	programs    []string                 // bases of its programs' paths; with "*" at the end, what they begin with
	alone       bool                     // its guests may do without KVM
	runs        func(args []string) bool // tells a command line that starts a guest; nil: all do
	guestName   func(args []string) string
	memory      func(args []string) uint64
	cpus        func(args []string) int
	accelerator func(args []string) string // nil: KVM alone
	threads     []string                   // names of its processors' threads: see indexIn
	holes       []uint64                   // where its RAM below 4 GiB may end, where it has more
}

// Names of options, in each program's own words. Where a VMM's source or manual was followed, it is named; which were seen at work is in QUIRKS.md.
var kinds = []kind{
	{
		name: "qemu", programs: []string{"qemu-system-*", "qemu-kvm", "qemu-kvm-*"}, alone: true, runs: qemuRuns,
		guestName: qemuName, memory: qemuMemory, cpus: qemuCPUs, accelerator: qemuAccelerator,
		threads: []string{"CPU #/"}, // with debug-threads=on (accel/kvm/kvm-accel-ops.c, accel/tcg/tcg-accel-ops-mttcg.c)
		// hw/i386/pc_piix.c: 3 GiB, or 3.5 GiB for machine types before 2.0 and what fits; hw/i386/pc_q35.c: 2 GiB, or 2.75 GiB that fit;
		// hw/i386/microvm.c: 3 GiB
		holes: []uint64{0xC000_0000, 0x8000_0000, 0xE000_0000, 0xB000_0000},
	},
	{
		name: "firecracker", programs: []string{"firecracker", "firecracker-v*"},
		guestName: func(a []string) string { return last(a, "--id") },
		threads:   []string{"fc_vcpu #"},
		holes:     []uint64{0xC000_0000, 0xD000_0000}, // src/vmm/src/arch/x86_64/layout.rs: 1 GiB, before 1.13 768 MiB below 4 GiB
	},
	{
		name: "cloud-hypervisor", programs: []string{"cloud-hypervisor", "cloud-hypervisor*", "cloud-hyperviso"},
		memory: func(a []string) uint64 {
			return size(options(last(a, "--memory"), "")["size"], 1)
		},
		cpus:    func(a []string) int { return number(options(last(a, "--cpus"), "")["boot"], 4096) },
		threads: []string{"vcpu#"},
		holes:   []uint64{0xC000_0000}, // arch/src/x86_64/layout.rs: MEM_32BIT_RESERVED_START
	},
	{
		name: "crosvm", programs: []string{"crosvm"}, runs: func(a []string) bool { return slices.Contains(a, "run") },
		guestName: func(a []string) string { return last(a, "--name") },
		memory: func(a []string) uint64 {
			s := last(a, "--mem", "-m")
			if o := options(s, "size"); o["size"] != "" {
				s = o["size"]
			}
			return size(s, 1<<20)
		},
		cpus: func(a []string) int {
			s := last(a, "--cpus", "-c")
			if o := options(s, "num-cores"); o["num-cores"] != "" {
				s = o["num-cores"]
			}
			return number(s, 4096)
		},
		threads: []string{"crosvm_vcpu#"},
		holes:   []uint64{0xD000_0000, 0xC000_0000, 0xE000_0000}, // x86_64/src/lib.rs: 768 MiB below 4 GiB
	},
	{
		name: "kvmtool", programs: []string{"lkvm", "lkvm-static", "kvmtool"}, runs: func(a []string) bool { return slices.Contains(a, "run") },
		guestName: func(a []string) string { return last(a, "--name", "-n") },
		memory:    func(a []string) uint64 { return size(last(a, "--mem", "-m"), 1<<20) },
		cpus:      func(a []string) int { return number(last(a, "--cpus", "-c"), 4096) },
		threads:   []string{"kvm-vcpu-#"},
		holes:     []uint64{0xD000_0000}, // x86/include/kvm/kvm-arch.h: KVM_32BIT_GAP_START
	},
	{
		name: "virtualbox", programs: []string{"VBoxHeadless", "VirtualBoxVM", "VBoxSDL"},
		guestName: func(a []string) string { return last(a, "--comment", "-comment") },
		threads:   []string{"EMT-#"},
		holes:     []uint64{0xE000_0000}, // src/VBox/VMM: MM_RAM_HOLE_SIZE_DEFAULT, 512 MiB below 4 GiB
	},
	// A guest of ours in a registry that this user does not look at. Its name may be taken here.
	{
		name: "vitrine", programs: []string{"vitrine"}, alone: true, runs: func(a []string) bool { return slices.Contains(a, "run") },
		cpus: func(a []string) int { return number(last(a, "--cpus"), 64) }, memory: func(a []string) uint64 { return size(last(a, "--memory"), 1) },
		accelerator: func([]string) string { return "soft" }, threads: anyThreads, holes: []uint64{0xC000_0000},
	},
}

// kindOf is the kind of a program, or nil.
func kindOf(program string) *kind {
	for i, k := range kinds {
		for _, p := range k.programs {
			if begin, ok := strings.CutSuffix(p, "*"); program == p || ok && strings.HasPrefix(program, begin) {
				return &kinds[i]
			}
		}
	}
	return nil
}

// Holes are the places where RAM below 4 GiB may end in this guest, the likeliest first.
func (g *Guest) Holes() []uint64 {
	all := slices.Clone(g.kind.holes)
	if g.VMM == "qemu" {
		if m := qemuMachine(g.Args); strings.Contains(m, "q35") {
			all = []uint64{0x8000_0000, 0xB000_0000, 0xC000_0000, 0xE000_0000}
		}
	}
	for _, h := range []uint64{0xC000_0000, 0xD000_0000, 0x8000_0000, 0xE000_0000, 0xB000_0000} {
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	return all
}
