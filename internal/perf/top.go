// Package perf turns samples of guests into pictures of where time goes.
package perf

import (
	"cmp"
	"slices"

	"vitrine.dev/vitrine/internal/guest"
)

// A Sample is where a CPU of a guest was.
type Sample struct {
	CPU     int
	Running bool // false: it executed no guest code
	RIP     uint64
	CR3     uint64
	CPL     int
}

// The modes of a function.
const (
	KernelMode = "kernel"
	UserMode   = "user"
)

// A Function is a line of [Report]: a function of the kernel or of a program, or all of a process's user code that has no names.
type Function struct {
	Name   string  `json:"name"`   // of nameless user code: the process's
	Module string  `json:"module"` // of the kernel's own functions: "kernel"; of user code the file; of nameless user code: empty
	Mode   string  `json:"mode"`
	Share  float64 `json:"share"` // of the samples that found a CPU running, 0 to 1
}

// A ProcessShare is how much of the time user code of a process ran.
type ProcessShare struct {
	PID   int     `json:"pid"`
	Comm  string  `json:"comm"`
	Share float64 `json:"share"`
}

// A Report is what `vitrine top` shows.
type Report struct {
	Guest     string         `json:"guest"`
	Kernel    string         `json:"kernel"`
	Samples   int            `json:"samples"` // of running CPUs
	Idle      int            `json:"idle"`    // samples that found a CPU halted
	Lost      int            `json:"lost"`
	Functions []Function     `json:"functions"`
	Processes []ProcessShare `json:"processes"`
}

type functionKey struct{ name, module, mode string }

type process struct {
	pid  int
	comm string
}

// A Top counts samples of one guest.
type Top struct {
	k         *guest.Kernel
	name      string
	functions map[functionKey]int
	processes map[process]int
	samples   int
	idle      int
	lost      int
}

// NewTop begins to count for the guest of the given name, whose kernel is k.
func NewTop(name string, k *guest.Kernel) *Top {
	t := &Top{k: k, name: name}
	t.Reset()
	return t
}

// Reset begins anew.
func (t *Top) Reset() {
	t.functions, t.processes = map[functionKey]int{}, map[process]int{}
	t.samples, t.idle, t.lost = 0, 0, 0
}

// Lost counts samples that did not come.
func (t *Top) Lost(n int) { t.lost += n }

// Add counts a sample. Do so soon after it was taken: who runs on a CPU is asked of the guest's memory now.
func (t *Top) Add(s Sample) {
	if !s.Running {
		t.idle++
		return
	}
	t.samples++
	if s.CPL == 0 {
		key := functionKey{"[unknown]", "", KernelMode}
		if sym, ok := t.k.Function(s.RIP); ok {
			key.name, key.module = sym.Name, sym.Module
			if key.module == "" {
				key.module = "kernel"
			}
		}
		t.functions[key]++
		return
	}
	p, ok := t.k.ProcessAt(s.CPU, s.CR3)
	if !ok {
		p = guest.Owner{PID: -1, Comm: "[unknown]"}
	}
	t.processes[process{p.PID, p.Comm}]++
	key := functionKey{p.Comm, "", UserMode}
	if name, file, _ := t.k.UserFunction(p, s.RIP); name != "" {
		key.name, key.module = name, file
	}
	t.functions[key]++
}

// Report gives the hottest first.
func (t *Top) Report() Report {
	r := Report{
		Guest: t.name, Kernel: t.k.Banner, Samples: t.samples, Idle: t.idle, Lost: t.lost,
		Functions: []Function{}, Processes: []ProcessShare{},
	}
	share := func(n int) float64 { return float64(n) / float64(max(1, t.samples)) }
	for k, n := range t.functions {
		r.Functions = append(r.Functions, Function{k.name, k.module, k.mode, share(n)})
	}
	slices.SortFunc(r.Functions, func(a, b Function) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Module, b.Module))
	})
	for p, n := range t.processes {
		r.Processes = append(r.Processes, ProcessShare{p.pid, p.comm, share(n)})
	}
	slices.SortFunc(r.Processes, func(a, b ProcessShare) int {
		return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.PID, b.PID))
	})
	return r
}
