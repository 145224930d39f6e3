package guest

import (
	"errors"

	"vitrine.dev/vitrine/internal/mem"
)

// Bounds of what a guest can make us walk.
const (
	maxTasks   = 1 << 18
	maxThreads = 1 << 16 // of one process
	maxCPUs    = 8192    // Linux's own NR_CPUS at most
)

// An Owner is who user code belongs to.
type Owner struct {
	PID  int
	Comm string
	Task uint64 // address of a task of the process
}

// perCPU is where a CPU's own variables are: their symbols' addresses are relative to it.
func (k *Kernel) perCPU(cpu int) (uint64, error) {
	table := k.address("__per_cpu_offset")
	if table == 0 {
		return 0, errors.New("guest: no symbol __per_cpu_offset")
	}
	return k.space.Uint64(table + 8*uint64(cpu))
}

// numCPU is how many CPUs the kernel made room for.
func (k *Kernel) numCPU() int {
	if a := k.address("nr_cpu_ids"); a != 0 {
		if n, err := k.space.Uint32(a); err == nil && n > 0 && n <= maxCPUs {
			return int(n)
		}
	}
	return max(1, k.t.NumCPU())
}

// NumCPU is how many CPUs the kernel made room for.
func (k *Kernel) NumCPU() int { return k.numCPU() }

// Current gives the task that runs on a CPU: the kernel's own current_task.
func (k *Kernel) Current(cpu int) (task uint64, err error) {
	base, err := k.perCPU(cpu)
	if err != nil {
		return 0, err
	}
	// pcpu_hot holds it from v6.2 to v6.14 (e57ef2ed97c1), first of its fields.
	for _, name := range []string{"current_task", "pcpu_hot"} {
		if a := k.address(name); a != 0 {
			return k.space.Uint64(base + a)
		}
	}
	return 0, errors.New("guest: no symbol current_task")
}

// owner reads a task's name and process.
func (k *Kernel) owner(task object) Owner {
	return Owner{PID: int(task.int("tgid")), Comm: task.text("comm"), Task: task.uint("group_leader")}
}

// root is the page-table root of a task's memory, or 0 for a kernel thread.
func (k *Kernel) root(task object) mem.Addr {
	mm := task.uint("mm")
	f, ok := k.structure("mm_struct").field("pgd")
	if mm == 0 || !ok {
		return 0
	}
	pgd, err := k.space.Uint64(mm + f.Off)
	if err != nil {
		return 0
	}
	pa, _, err := k.space.Translate(pgd)
	if err != nil {
		return 0
	}
	return pa
}

// ProcessAt tells which process ran user code with the given CR3 on a CPU. The CPU's current task may have changed since the
// sample was taken: it counts only if its memory is CR3's; else the task whose memory that is, is looked for.
func (k *Kernel) ProcessAt(cpu int, cr3 uint64) (Owner, bool) {
	root := mem.Addr(cr3 & pteAddr)
	// Without isolation the root may have bit 12 set of its own.
	matches := func(task object) bool {
		r := k.root(task)
		return r != 0 && (r == root || r == root&^pageTableIsolation)
	}
	if addr, err := k.Current(cpu); err == nil {
		if task, err := k.load("task_struct", addr); err == nil && matches(task) {
			o := k.owner(task)
			k.remember(root, o)
			return o, true
		}
	}
	was, known := k.names[uint64(root)]
	if known { // the root may have become another's
		if task, err := k.load("task_struct", was.Task); err == nil && int(task.int("tgid")) == was.PID && matches(task) {
			return was, true
		}
	}
	all, err := k.leaders()
	if err != nil {
		return was, known
	}
	for _, addr := range all {
		if task, err := k.load("task_struct", addr); err == nil && matches(task) {
			o := k.owner(task)
			k.remember(root, o)
			return o, true
		}
	}
	return was, known
}

// remember keeps the process of a page-table root, for samples that come after it has gone.
func (k *Kernel) remember(root mem.Addr, o Owner) {
	if len(k.names) > 4096 {
		clear(k.names)
	}
	k.names[uint64(root)] = o
}

// leaders gives the addresses of the thread groups' leaders, without the idle task.
func (k *Kernel) leaders() ([]uint64, error) {
	init := k.address("init_task")
	if init == 0 {
		return nil, errors.New("guest: no symbol init_task")
	}
	f, ok := k.structure("task_struct").field("tasks")
	if !ok {
		return nil, errNoBTF
	}
	return k.entries(init+f.Off, "task_struct", "tasks", maxTasks)
}

// threads gives the addresses of a process's tasks, the leader among them.
func (k *Kernel) threads(signal object) ([]uint64, error) {
	return k.entries(signal.at("thread_head"), "task_struct", "thread_node", maxThreads)
}

// userSpace is the address space of a process's memory descriptor.
func (k *Kernel) userSpace(mm object) (*Space, error) {
	pa, _, err := k.space.Translate(mm.uint("pgd"))
	if err != nil {
		return nil, err
	}
	return &Space{ram: k.t, root: pa, levels: k.space.levels}, nil
}
