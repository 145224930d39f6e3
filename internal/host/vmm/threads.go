package vmm

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// anyThreads are names of threads that only a virtual machine's processors have.
var anyThreads = []string{"CPU #/", "fc_vcpu #", "vcpu#", "vcpu-#", "crosvm_vcpu#", "kvm-vcpu-#", "EMT-#"}

// processors matches the guest's processors with threads and descriptors.
func (g *Guest) processors(proc Proc, fds kvmFDs) {
	byIndex := map[int]VCPU{}
	byFD := map[int]int{}
	for index, fd := range fds.vcpus {
		byIndex[index] = VCPU{index, 0, fd}
		byFD[fd] = index
	}
	tids, _ := proc.Threads(g.PID)
	var unnamed []int
	for _, tid := range tids {
		comm, err := proc.read(g.PID, "task/"+strconv.Itoa(tid)+"/comm", maxFile)
		if err != nil {
			continue
		}
		if index, ok := indexIn(strings.TrimRight(string(comm), "\n"), g.kind.threads); ok {
			c, known := byIndex[index]
			if !known {
				c = VCPU{index, 0, -1}
			}
			c.TID = tid
			byIndex[index] = c
			continue
		}
		unnamed = append(unnamed, tid)
	}
	if missing := slices.ContainsFunc(slices.Collect(maps.Values(byIndex)), func(c VCPU) bool { return c.TID == 0 }); missing {
		for _, tid := range unnamed {
			if index, ok := byFD[proc.Runs(g.PID, tid)]; ok && byIndex[index].TID == 0 {
				c := byIndex[index]
				c.TID = tid
				byIndex[index] = c
			}
		}
	}
	g.VCPUs = slices.SortedFunc(maps.Values(byIndex), func(a, b VCPU) int { return cmp.Compare(a.Index, b.Index) })
	g.CPUs = len(g.VCPUs)
	if g.kind.cpus != nil && len(fds.vcpus) == 0 {
		if n := g.kind.cpus(g.Args); n > 0 {
			g.CPUs = n // threads may be fewer: one for all, or not named
		}
	}
}

// indexIn finds the processor's index where name is one of patterns, with a number for "#"; what follows the pattern is not looked at.
func indexIn(name string, patterns []string) (int, bool) {
	for _, p := range patterns {
		before, after, _ := strings.Cut(p, "#")
		rest, ok := strings.CutPrefix(name, before)
		if !ok {
			continue
		}
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if n, err := strconv.Atoi(rest[:digits]); err == nil && n < 1<<16 && strings.HasPrefix(rest[digits:], after) {
			return n, true
		}
	}
	return 0, false
}

// Threads lists a process's threads.
func (p Proc) Threads(pid int) ([]int, error) { return p.numbers(p.Path(pid, "task"), maxThreads) }

// Thread is what /proc/PID/task/TID/stat says.
func (p Proc) Thread(pid, tid int) (Stat, bool) {
	b, err := p.read(pid, "task/"+strconv.Itoa(tid)+"/stat", maxFile)
	if err != nil {
		return Stat{}, false
	}
	return ParseStat(b)
}

// Runs gives the descriptor of the processor that a thread runs, if it is waiting in KVM_RUN, else -1. One that executes its guest this
// moment says only "running": ask again.
func (p Proc) Runs(pid, tid int) int {
	b, err := p.read(pid, "task/"+strconv.Itoa(tid)+"/syscall", maxFile)
	if err != nil {
		return -1
	}
	return parseSyscall(string(b))
}

// parseSyscall reads /proc/PID/syscall: the number of the call, six arguments, the stack pointer and the program's place. A thread that KVM made for itself in
// the VMM has its maker's call (vhost_task_create, kernel/vhost_task.c), but no place.
func parseSyscall(s string) int {
	const ioctl, kvmRun, nowhere = "16", "0xae80", "0x0"
	f := strings.Fields(s)
	if len(f) != 9 || f[0] != ioctl || f[2] != kvmRun || f[8] == nowhere {
		return -1
	}
	fd, err := strconv.ParseUint(strings.TrimPrefix(f[1], "0x"), 16, 31)
	if err != nil {
		return -1
	}
	return int(fd)
}
