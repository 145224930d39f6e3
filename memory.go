package vitrine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/mem"
)

// SetMemoryTarget asks the guest to leave itself n bytes of its memory and to give the rest back to the host: its balloon fills or empties. The guest
// takes its time, and may keep what it needs; Inspect says how far it is.
func (m *Machine) SetMemoryTarget(n uint64) {
	m.balloon.SetTarget(m.cfg.Memory - min(n, m.cfg.Memory))
}

// newMemory makes the guest's RAM.
func newMemory(cfg *Config) (*mem.Memory, error) {
	if cfg.HugePages {
		if free := poolFree(); free < cfg.Memory {
			return nil, fmt.Errorf("--hugepages: %s of %d free huge pages are not enough for --memory %s: sudo sysctl vm.nr_hugepages=%d",
				FormatSize(free), free/mem.HugeSize, FormatSize(cfg.Memory), pages("nr_hugepages")+(cfg.Memory-free)/mem.HugeSize)
		}
		return mem.NewPooled(cfg.Memory)
	}
	if limit, what := hostMemory(); limit != 0 && cfg.Memory > limit {
		return nil, fmt.Errorf("--memory %s: %s %s", FormatSize(cfg.Memory), what, FormatSize(limit>>20<<20))
	}
	return mem.New(cfg.Memory)
}

// pages reads one of the files about the pool of huge pages.
func pages(name string) uint64 {
	text, _ := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/" + name)
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// poolFree is what the pool of huge pages has free, in bytes.
func poolFree() uint64 {
	free := pages("free_hugepages")
	return (free - min(free, pages("resv_hugepages"))) * mem.HugeSize
}

// hostMemory is the most that a guest can ever use here, and what limits it; 0 where that is not known.
func hostMemory() (limit uint64, what string) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, ""
	}
	limit, what = parseMeminfo(string(text)), "this host has, swap included, no more than"
	if group, ok := groupLimit("/proc/self/cgroup", "/sys/fs/cgroup"); ok && group < limit {
		limit, what = group, "the control group of this process allows no more than"
	}
	return limit, what
}

// parseMeminfo is the host's memory and swap in bytes; 0 where the text does not say.
func parseMeminfo(text string) (total uint64) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && (f[0] == "MemTotal:" || f[0] == "SwapTotal:") {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			total += kib << 10
		}
	}
	return total
}

// groupLimit is the smallest memory.max of the process's control group and those above it (cgroups(7), version 2).
func groupLimit(self, root string) (limit uint64, ok bool) {
	text, err := os.ReadFile(self)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		group, found := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !found {
			continue
		}
		for dir := filepath.Join("/", group); ; dir = filepath.Dir(dir) {
			most, _ := os.ReadFile(filepath.Join(root, dir, "memory.max"))
			if n, err := strconv.ParseUint(strings.TrimSpace(string(most)), 10, 64); err == nil && (!ok || n < limit) {
				limit, ok = n, true
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit, ok
}

// pageWords says what the guest's memory is made of, where that could be better.
func (m *Machine) pageWords() string {
	if m.ram.Huge() != mem.HugeOff {
		return ""
	}
	return fmt.Sprintf("small pages only: %s forbids huge ones, and --hugepages is not given", mem.ShmemSetting)
}

// counters are the statistics of Inspect, by where they come from.
func (m *Machine) counters() map[string]map[string]uint64 {
	all := map[string]map[string]uint64{}
	from := func(where string, each func(func(string, uint64))) {
		c := map[string]uint64{}
		each(func(name string, v uint64) { c[name] = v })
		if len(c) > 0 {
			all[where] = c
		}
	}
	for i := range m.board.NumCPU() {
		from(fmt.Sprintf("cpu%d", i), func(fn func(string, uint64)) { m.board.Counters(i, fn) })
	}
	from("vm", m.board.VMCounters)
	m.balloon.Refresh(100 * time.Millisecond)
	from("memory", func(fn func(string, uint64)) {
		if n, err := m.ram.Resident(); err == nil {
			fn("resident_bytes", n)
		}
		m.balloon.Counters(fn)
	})
	return all
}

// cpuTime is the CPU time that this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
