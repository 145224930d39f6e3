package guest

import "errors"

// A Process is what the guest calls a process.
type Process struct {
	PID  int
	Comm string
}

// maxTasks bounds the walk of the list of tasks.
const maxTasks = 1 << 20

// Current gives the task that runs on a CPU: the kernel's own current_task.
func (k *Kernel) Current(cpu int) (task uint64, err error) {
	table, err := k.Symbols.Lookup("__per_cpu_offset")
	if err != nil {
		return 0, err
	}
	base, err := k.space.Uint64(table.Addr + 8*uint64(cpu))
	if err != nil {
		return 0, err
	}
	// pcpu_hot holds it from v6.2 to v6.14 (e57ef2ed97c1), first of its fields.
	for _, name := range []string{"current_task", "pcpu_hot"} {
		if s, err := k.Symbols.Lookup(name); err == nil {
			return k.space.Uint64(base + s.Addr)
		}
	}
	return 0, errors.New("guest: no symbol current_task")
}

// process reads the name and number of a task.
func (k *Kernel) process(task uint64) (Process, error) {
	if k.lay.taskComm < 0 {
		return Process{}, errNoBTF
	}
	comm, err := k.space.CString(task+uint64(k.lay.taskComm), 16)
	if err != nil {
		return Process{}, err
	}
	p := Process{PID: -1, Comm: printable(comm)}
	if k.lay.taskTGID >= 0 {
		pid, err := k.space.Uint32(task + uint64(k.lay.taskTGID))
		if err != nil {
			return Process{}, err
		}
		p.PID = int(int32(pid))
	}
	return p, nil
}

// root is the page-table root of a task's memory, or 0 for a kernel thread.
func (k *Kernel) root(task uint64) uint64 {
	if k.lay.taskMM < 0 || k.lay.mmPGD < 0 {
		return 0
	}
	mm, err := k.space.Uint64(task + uint64(k.lay.taskMM))
	if err != nil || mm == 0 {
		return 0
	}
	pgd, err := k.space.Uint64(mm + uint64(k.lay.mmPGD))
	if err != nil {
		return 0
	}
	pa, _, err := k.space.Translate(pgd)
	if err != nil {
		return 0
	}
	return uint64(pa)
}

// ProcessAt tells which process ran user code with the given CR3 on a CPU. The CPU's current task may have changed since the
// sample was taken: it counts only if its memory is CR3's; else the task whose memory that is, is looked for.
func (k *Kernel) ProcessAt(cpu int, cr3 uint64) (Process, bool) {
	root := cr3 & pteAddr &^ pageTableIsolation
	if k.lay.mmPGD < 0 { // nothing to check it by
		if task, err := k.Current(cpu); err == nil {
			p, err := k.process(task)
			return p, err == nil
		}
		return Process{}, false
	}
	// Without isolation the root may have bit 12 set of its own.
	matches := func(task uint64) bool {
		r := k.root(task)
		return r != 0 && (r == root || r == cr3&pteAddr)
	}
	if task, err := k.Current(cpu); err == nil && matches(task) {
		if p, err := k.process(task); err == nil {
			k.remember(cr3, p)
			return p, true
		}
	}
	if p, ok := k.names[cr3&pteAddr]; ok {
		return p, true
	}
	var found Process
	k.eachTask(func(task uint64) bool {
		if !matches(task) {
			return true
		}
		p, err := k.process(task)
		if err == nil {
			found = p
			k.remember(cr3, p)
		}
		return false
	})
	return found, found.Comm != ""
}

// remember keeps the process of a page-table root, for samples that come after it has gone.
func (k *Kernel) remember(cr3 uint64, p Process) {
	if len(k.names) > 4096 {
		clear(k.names)
	}
	k.names[cr3&pteAddr] = p
}

// eachTask calls fn with each thread group's leader until it returns false.
func (k *Kernel) eachTask(fn func(task uint64) bool) {
	init, err := k.Symbols.Lookup("init_task")
	if err != nil || k.lay.taskTasks < 0 {
		return
	}
	head := init.Addr + uint64(k.lay.taskTasks)
	p, err := k.space.Uint64(head)
	for n := 0; err == nil && p != head && n < maxTasks; n++ {
		if !fn(p - uint64(k.lay.taskTasks)) {
			return
		}
		p, err = k.space.Uint64(p)
	}
}
