// Package vmm finds other programs' virtual machines among a host's processes.
//
// A process that holds KVM's descriptors runs a virtual machine, whatever program it is; who it is, and what its guest is called, its command
// line and the names of its threads tell. QEMU without KVM is known by its program alone. Nothing is opened but files of proc(5), nothing is
// changed, and what may not be seen is said.
package vmm

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"vitrine.dev/vitrine/internal/cgroup"
)

// Accelerators of a guest, beside those that a VMM calls by another name.
const (
	KVM     = "kvm"
	TCG     = "tcg"
	Unknown = "unknown" // its descriptors may not be seen, and its command line does not tell
)

// A Guest is a virtual machine that is not ours.
type Guest struct {
	PID         int
	Ticks       uint64 // when the process started: see Stat.Started
	Started     time.Time
	Name        string // what its user calls it; else the VMM and the process
	VMM         string // "qemu", "firecracker", …; of a program that is not known its own name
	Manager     string // "libvirt", or empty
	Accelerator string
	CPUs        int    // 0: not known
	VCPUs       []VCPU // those whose threads or descriptors are known, by index
	MemoryBytes uint64 // 0: not known
	Stopped     bool   // the process stands still (SIGSTOP, a debugger)
	UID         int    // the process's effective user
	Container   string // that the process is in, or empty
	Unseen      string // why its memory and registers may not be looked at; empty where they may, as far as is known
	Protected   string // what keeps the host from its memory: "SEV", "TDX", "guest_memfd"
	Args        []string

	kind *kind
}

// A VCPU is a guest's processor: its thread and its descriptor in the VMM's process.
type VCPU struct {
	Index int `json:"index"`
	TID   int `json:"tid"` // 0: not known
	FD    int `json:"-"`   // -1: not known, or none
}

// Scan lists the virtual machines of the processes in proc, by process. Processes in skip are left out: their owners know better.
func Scan(proc Proc, skip map[int]bool) ([]Guest, error) {
	eyes := EyesIn(proc)
	pids, err := proc.numbers(string(proc), 1<<22)
	if err != nil {
		return nil, fmt.Errorf("vmm: %w", err)
	}
	var (
		mu   sync.Mutex
		all  []Guest
		wg   sync.WaitGroup
		next = make(chan []int, 16)
	)
	for range min(4, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for pids := range next {
				for _, pid := range pids {
					if g, ok := look(proc, eyes, pid); ok {
						mu.Lock()
						all = append(all, g)
						mu.Unlock()
					}
				}
			}
		})
	}
	for lot := range slices.Chunk(slices.DeleteFunc(pids, func(pid int) bool { return skip[pid] }), 64) {
		next <- lot
	}
	close(next)
	wg.Wait()
	boot, ok := proc.bootTime()
	for i := range all {
		if g := &all[i]; ok {
			g.Started = time.Unix(boot, 0).Add(time.Duration(g.Ticks) * (time.Second / 100)).UTC().Truncate(time.Second)
		}
	}
	all = withoutHelpers(proc, all)
	slices.SortFunc(all, func(a, b Guest) int { return cmp.Compare(a.PID, b.PID) })
	return all, nil
}

// Find is Scan for one process.
func Find(proc Proc, pid int) (Guest, bool) { return look(proc, EyesIn(proc), pid) }

// look tells whether a process runs a virtual machine, and all about it. It is not one that began under the same number meanwhile.
func look(proc Proc, eyes Eyes, pid int) (Guest, bool) {
	fds, denied := proc.kvmFDs(pid)
	program := ""
	if !fds.kvm() {
		// Most processes end here.
		if program = proc.program(pid); program == "" {
			return Guest{}, false
		}
		if k := kindOf(program); k == nil || !k.alone && denied == nil {
			return Guest{}, false
		}
	} else {
		program = proc.program(pid)
	}
	stat, ok := proc.Stat(pid)
	if !ok || stat.State == 'Z' || stat.State == 'X' {
		return Guest{}, false
	}
	g := Guest{PID: pid, Ticks: stat.Started, Stopped: stat.State == 'T' || stat.State == 't', UID: -1, kind: kindOf(program)}
	if status, err := proc.read(pid, "status", maxFile); err == nil {
		if uid, ok := parseUID(status); ok {
			g.UID = uid
		}
	}
	if b, err := proc.read(pid, "cgroup", maxFile); err == nil {
		group := parseCgroup(b)
		g.Container = clean(cgroup.Container(group))
		if strings.Contains(group, `/machine-qemu\x2d`) {
			g.Manager = "libvirt"
		}
	}
	if b, err := proc.read(pid, "cmdline", maxFile); err == nil {
		g.Args = parseArgs(b)
	}
	if g.kind == nil {
		g.kind = &kind{name: clean(program), threads: anyThreads}
	}
	if g.kind.runs != nil && !fds.kvm() && !g.kind.runs(g.Args) { // qemu-system-x86_64 --version, crosvm's other commands
		return Guest{}, false
	}
	g.VMM = g.kind.name
	if g.kind.guestName != nil {
		g.Name = clean(g.kind.guestName(g.Args))
	}
	if g.Name == "" {
		g.Name = g.VMM + "-" + strconv.Itoa(pid)
	}
	g.accelerator(fds, denied)
	g.processors(proc, fds)
	if g.kind.memory != nil {
		g.MemoryBytes = g.kind.memory(g.Args)
	}
	maps, err := []Mapping(nil), error(nil)
	if g.MemoryBytes == 0 || denied != nil {
		if maps, err = proc.Maps(pid); err == nil {
			if ram := g.RAMIn(maps); g.MemoryBytes == 0 {
				for _, r := range ram {
					g.MemoryBytes += r.Size()
				}
			}
		}
	}
	g.Unseen = eyes.WhyNot(g.UID, denied != nil || err != nil)
	if arch, ok := strings.CutPrefix(program, "qemu-system-"); ok && g.Unseen == "" && arch != "x86_64" && arch != "i386" && arch != "x86" {
		g.Unseen = "its processor is no x86-64, but " + clean(arch)
	}
	g.Protected = g.protection(fds)
	if again, ok := proc.Stat(pid); !ok || again.Started != stat.Started {
		return Guest{}, false
	}
	return g, true
}

// accelerator says what runs the guest's instructions.
func (g *Guest) accelerator(fds kvmFDs, denied error) {
	switch {
	case fds.kvm():
		g.Accelerator = KVM
	case g.kind.accelerator == nil && denied != nil:
		g.Accelerator = KVM // it knows nothing else
	case g.kind.accelerator != nil:
		g.Accelerator = g.kind.accelerator(g.Args)
	default:
		g.Accelerator = Unknown
	}
}

// kvmFDs are the descriptors of KVM that a process has.
type kvmFDs struct {
	vms   int
	vcpus map[int]int // descriptors by the processor's index
	sev   bool
	memfd bool // memory that is the guest's alone
}

func (k *kvmFDs) kvm() bool { return k.vms > 0 || len(k.vcpus) > 0 }

// Names that KVM gives to what it makes (virt/kvm/kvm_main.c, virt/kvm/guest_memfd.c).
const (
	vmLink    = "anon_inode:kvm-vm"
	vcpuLink  = "anon_inode:kvm-vcpu:"
	memfdLink = "anon_inode:[kvm-gmem]"
	sevLink   = "/dev/sev"
)

// kvmFDs looks at a process's descriptors; err is that of reading them.
func (p Proc) kvmFDs(pid int) (k kvmFDs, err error) {
	dir := p.Path(pid, "fd")
	all, err := p.numbers(dir, maxFDs)
	if err != nil {
		return k, err
	}
	denied := error(nil)
	for _, fd := range all {
		link, err := os.Readlink(dir + "/" + strconv.Itoa(fd))
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				denied = err
			}
			continue // closed meanwhile
		}
		switch {
		case link == vmLink:
			k.vms++
		case link == memfdLink:
			k.memfd = true
		case link == sevLink:
			k.sev = true
		case strings.HasPrefix(link, vcpuLink):
			if n, err := strconv.Atoi(link[len(vcpuLink):]); err == nil && n >= 0 {
				if k.vcpus == nil {
					k.vcpus = map[int]int{}
				}
				k.vcpus[n] = fd
			}
		}
	}
	return k, denied
}

// program is the base of a process's program, or empty for the kernel's own threads: by its executable, or, where that may not be seen, by the
// name that it goes by.
func (p Proc) program(pid int) string {
	if exe, err := os.Readlink(p.Path(pid, "exe")); err == nil {
		return path.Base(strings.TrimSuffix(exe, " (deleted)"))
	}
	b, err := p.read(pid, "cmdline", maxFile)
	if err != nil || len(b) == 0 {
		return ""
	}
	if args := parseArgs(b); path.IsAbs(args[0]) || kindOf(path.Base(args[0])) != nil {
		return path.Base(args[0])
	}
	stat, ok := p.Stat(pid)
	if !ok {
		return ""
	}
	return stat.Comm
}

// withoutHelpers takes out processes that only inherited their parent's descriptors: programs that a VMM starts, device processes of crosvm. They
// have none of its threads.
func withoutHelpers(proc Proc, all []Guest) []Guest {
	pids := map[int]bool{}
	for _, g := range all {
		pids[g.PID] = true
	}
	return slices.DeleteFunc(all, func(g Guest) bool {
		s, ok := proc.Stat(g.PID)
		if !ok || !pids[s.Parent] {
			return false
		}
		return !slices.ContainsFunc(g.VCPUs, func(c VCPU) bool { return c.TID != 0 })
	})
}

// protection names what keeps the host from reading the guest.
func (g *Guest) protection(fds kvmFDs) string {
	for _, arg := range g.Args {
		switch {
		case strings.HasPrefix(arg, "tdx-guest") || strings.Contains(arg, "tdx=on"):
			return "TDX"
		case strings.HasPrefix(arg, "sev-guest") || strings.HasPrefix(arg, "sev-snp-guest") || strings.Contains(arg, "sev_snp=on"):
			return "SEV"
		}
	}
	switch {
	case fds.sev:
		return "SEV"
	case fds.memfd:
		return "guest_memfd"
	}
	return ""
}

// clean makes what another user's process calls itself fit for a listing: one word that a terminal takes for text.
func clean(s string) string {
	const longest = 64
	out := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) || unicode.IsSpace(r) {
			return '_'
		}
		return r
	}, s)
	if r := []rune(out); len(r) > longest {
		out = string(r[:longest])
	}
	return out
}
