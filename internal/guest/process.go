package guest

import (
	"bytes"
	"cmp"
	"errors"
	"math/bits"
	"slices"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/cgroup"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/printable"
)

// A Process is one that the guest runs, or one of its threads. The keys are promised.
type Process struct {
	PID        int       `json:"pid"` // of a thread its own, as TID elsewhere
	PPID       int       `json:"ppid"`
	TGID       int       `json:"tgid"`
	Comm       string    `json:"comm"`
	Cmdline    string    `json:"cmdline"` // arguments with blanks between; empty for kernel threads, and where they are swapped out
	UID        uint32    `json:"uid"`     // effective
	State      string    `json:"state"`   // a letter, as ps(1) has it
	CPU        int       `json:"cpu"`     // where it runs, or ran last
	CPUSeconds float64   `json:"cpu_seconds"`
	RSSBytes   uint64    `json:"rss_bytes"`
	Started    time.Time `json:"started"`
	Cgroup     string    `json:"cgroup"`              // in the unified hierarchy (version 2)
	Container  string    `json:"container,omitempty"` // by the cgroup's name
	Namespaces Inodes    `json:"namespaces"`
	NSPID      int       `json:"ns_pid"`  // the number in its own PID namespace, which its container knows it by
	Threads    int       `json:"threads"` // of the process

	Kernel bool   `json:"kernel_thread,omitempty"`
	Task   uint64 `json:"-"` // address of its task_struct
}

// Inodes are the numbers by which namespaces are known (lsns(8)); 0 where there is none, as in a process that has ended.
type Inodes struct {
	Mount  uint32 `json:"mnt"`
	PID    uint32 `json:"pid"`
	Net    uint32 `json:"net"`
	UTS    uint32 `json:"uts"`
	IPC    uint32 `json:"ipc"`
	Cgroup uint32 `json:"cgroup"`
	User   uint32 `json:"user"`
	Time   uint32 `json:"time"` // since v5.6 (769071ac9f20)
}

// Processes gives the guest's processes by number; with threads, each of their tasks. What ended meanwhile may be missing.
func (k *Kernel) Processes(threads bool) ([]Process, error) {
	leaders, err := k.leaders()
	if err != nil {
		return nil, err
	}
	r := &taskReader{Kernel: k, boot: k.BootTime(), cgroups: map[uint64]control{}, spaces: map[uint64]Inodes{}, numbers: map[uint64]uint32{}}
	all := make([]Process, 0, len(leaders))
	seen := make(map[uint64]bool, len(leaders))
	for _, addr := range leaders {
		if seen[addr] {
			continue
		}
		seen[addr] = true
		var group []Process
		err := settled(func() (err error) {
			group, err = r.group(addr, threads)
			return err
		})
		if err != nil {
			continue
		}
		if all = append(all, group...); len(all) > maxTasks {
			break
		}
	}
	slices.SortStableFunc(all, func(a, b Process) int { return cmp.Or(cmp.Compare(a.TGID, b.TGID), cmp.Compare(a.PID, b.PID)) })
	return all, nil
}

// group reads a process by its leader, or with threads each of its tasks.
func (r *taskReader) group(addr uint64, threads bool) ([]Process, error) {
	leader, err := r.task(addr)
	if err != nil {
		return nil, err
	}
	signal, err := r.load("signal_struct", leader.uint("signal"))
	if err != nil {
		return nil, err
	}
	tasks, err := r.threads(signal)
	if err == nil && len(tasks) == 0 {
		return nil, errEnded
	}
	p := r.process(leader)
	if p.Threads = len(tasks); err != nil { // more come and go than can be followed
		tasks, p.Threads = []uint64{addr}, int(signal.int("nr_threads"))
	}
	ns := signal.uint("sum_sched_runtime") // of threads that have ended
	var all []Process
	for _, a := range tasks {
		t := leader
		if a != addr {
			if t, err = r.task(a); err != nil {
				continue
			}
		}
		ran := t.uint("se.sum_exec_runtime")
		ns += ran
		if threads {
			q := p
			if a != addr {
				if q = r.thread(p, t); !r.still(t) {
					continue
				}
			}
			q.CPUSeconds = seconds(ran)
			all = append(all, q)
		}
	}
	if p.CPUSeconds = seconds(ns); !threads {
		all = append(all, p)
	}
	if !r.still(leader) {
		return nil, errTorn
	}
	return all, nil
}

func seconds(ns uint64) float64 { return float64(ns/1e6) / 1e3 }

// A taskReader keeps what many tasks share while they are listed.
type taskReader struct {
	*Kernel
	boot    time.Time
	cgroups map[uint64]control // by struct css_set
	spaces  map[uint64]Inodes  // by struct nsproxy
	numbers map[uint64]uint32  // of namespaces, by address

	from, to uint64 // where what is held lies in a task_struct
	now      []byte // a task_struct, of which that is read anew
}

// errEnded is for a task that is none any more.
var errEnded = errors.New("guest: the task has ended")

// poison2 is what list_del_rcu leaves in prev (include/linux/poison.h).
const poison2 = 0xdead000000000122

// task reads a task, if it is one.
func (r *taskReader) task(addr uint64) (object, error) {
	t, err := r.load("task_struct", addr)
	if err != nil {
		return t, err
	}
	pid := t.int("pid")
	if pid <= 0 || pid > 1<<22 || t.int("tgid") <= 0 || t.uint("signal") < kernelHalf || t.uint("thread_node.prev") == poison2 {
		return t, errEnded // PID_MAX_LIMIT is 2^22
	}
	return t, nil
}

// held are the fields that tell whose a task's structures are. What one leads to may be another's as soon as it is not there any more.
var held = []string{"pid", "tgid", "signal", "mm", "real_parent", "thread_pid", "real_cred", "nsproxy", "cgroups"}

// still tells whether a task is the one that was read, and has what it had then.
func (r *taskReader) still(t object) bool {
	if r.from == r.to {
		r.from, r.to = t.size, 0
		for _, name := range held {
			if f, ok := t.field(name); ok {
				r.from, r.to = min(r.from, f.Off), max(r.to, f.Off+f.Size)
			}
		}
		r.now = make([]byte, t.size)
	}
	if r.from >= r.to || r.space.ReadAt(r.now[r.from:r.to], t.addr+r.from) != nil {
		return false
	}
	now := object{t.structure, t.addr, r.now}
	for _, name := range held {
		if now.uint(name) != t.uint(name) {
			return false
		}
	}
	return true
}

func (r *taskReader) process(t object) Process {
	p := r.thread(Process{}, t)
	if f, ok := t.field("tgid"); ok {
		pid, _ := r.space.Uint32(t.uint("real_parent") + f.Off)
		p.PPID = int(int32(pid))
	}
	p.Kernel = t.uint("flags")&pfThread != 0
	group := r.cgroup(t.uint("cgroups"))
	p.Cgroup, p.Container = group.path, group.container
	if mm := t.uint("mm"); mm != 0 {
		if m, err := r.load("mm_struct", mm); err == nil {
			p.RSSBytes = r.resident(m)
			p.Cmdline = r.cmdline(m)
		}
	}
	return p
}

// thread is what threads have of their own; the rest is p's.
func (r *taskReader) thread(p Process, t object) Process {
	p.PID, p.TGID = int(t.int("pid")), int(t.int("tgid"))
	p.Comm = r.name(t)
	p.State = taskState(t)
	p.CPU = int(t.uint("thread_info.cpu", "cpu")) // in thread_info since v5.16 (bcf9033e5449)
	p.Started = r.started(t)
	p.Task = t.addr
	p.Namespaces = r.namespaces(t)
	if cred, err := r.load("cred", t.uint("real_cred")); err == nil {
		p.UID = uint32(cred.uint("euid"))
		p.Namespaces.User = r.number("user_namespace", cred.uint("user_ns"))
	}
	p.NSPID, p.Namespaces.PID = r.ownNumber(t)
	return p
}

// Bits of task_struct.flags (include/linux/sched.h).
const (
	pfWorker = 0x00000020 // PF_WQ_WORKER
	pfThread = 0x00200000 // PF_KTHREAD
)

// name is a task's as its /proc/PID/status has it: of kernel threads that they were given, which comm may be too short for (d6986ce24fc0, v5.17), of
// workers also what they work on (fs/proc/array.c, proc_task_name).
func (r *taskReader) name(t object) string {
	comm := t.text("comm")
	if t.uint("flags")&pfThread == 0 {
		return comm
	}
	k, err := r.load("kthread", t.uint("worker_private", "set_child_tid")) // e32cf5dfbe22, v5.17
	if err != nil {
		return comm
	}
	if t.uint("flags")&pfWorker == 0 {
		return cmp.Or(r.pointed(k, 64, "full_name"), comm)
	}
	w, err := r.load("worker", k.uint("data"))
	if err != nil || w.uint("task") != t.addr {
		return comm
	}
	const rescuer = "kworker/R-" // b6a46f7263bd, v6.9
	if q, err := r.load("workqueue_struct", w.uint("rescue_wq")); err == nil && strings.HasPrefix(comm, rescuer) {
		comm = rescuer + q.text("name")
	}
	desc := w.text("desc")
	if w.uint("pool") == 0 || desc == "" {
		return comm
	}
	if w.uint("current_work") != 0 {
		return comm + "+" + desc
	}
	return comm + "-" + desc
}

// taskState is the letter of a task's state, as fs/proc/array.c has it.
func taskState(t object) string {
	const (
		uninterruptible = 0x02
		noLoad          = 0x400
		report          = 0x7f // TASK_REPORT
		rtlockWait      = 0x1000
		frozen          = 0x8000
	)
	s := t.uint("__state", "state") // 2f064a59a11f, v5.14
	now := s | t.uint("exit_state")
	switch {
	case s&(uninterruptible|noLoad) == uninterruptible|noLoad:
		return "I"
	case now&report == 0 && s&(rtlockWait|frozen) != 0:
		return "D"
	}
	const letters = "RSDTtXZP"
	return string(letters[bits.Len64(now&report)])
}

// started is when a task began.
func (r *taskReader) started(t object) time.Time {
	ns := t.uint("start_boottime", "real_start_time") // cf25e24db61c, v5.5
	if r.boot.IsZero() || ns > 1<<62 {
		return time.Time{}
	}
	return r.boot.Add(time.Duration(ns)).Truncate(time.Millisecond)
}

// resident is the memory of a process that is in RAM: pages of files, anonymous and shared ones.
func (k *Kernel) resident(mm object) uint64 {
	const files, anonymous, shared = 0, 1, 3 // include/linux/mm_types_task.h
	pages := int64(0)
	for _, i := range []int{files, anonymous, shared} {
		n := "[" + string(rune('0'+i)) + "]"
		if mm.has("rss_stat.count" + n) { // up to v6.1
			pages += mm.int("rss_stat.count" + n)
			continue
		}
		// Counters of each CPU since v6.2 (f1a7941243c1).
		pages += mm.int("rss_stat" + n + ".count")
		if at := mm.uint("rss_stat" + n + ".counters"); at != 0 {
			pages += k.perCPUSum(at)
		}
	}
	if pages < 0 || pages > 1<<40 {
		return 0
	}
	return uint64(pages) * mem.PageSize
}

// perCPUSum adds up a signed 32-bit variable of all CPUs.
func (k *Kernel) perCPUSum(at uint64) (sum int64) {
	for cpu := range k.numCPU() {
		base, err := k.perCPU(cpu)
		if err != nil {
			break
		}
		v, err := k.space.Uint32(base + at)
		if err != nil {
			break
		}
		sum += int64(int32(v))
	}
	return sum
}

// maxCmdline bounds a command line in bytes.
const maxCmdline = 4096

func (k *Kernel) cmdline(mm object) string {
	from, to := mm.uint("arg_start"), mm.uint("arg_end")
	if to <= from {
		return ""
	}
	s, err := k.userSpace(mm)
	if err != nil {
		return ""
	}
	b := make([]byte, min(to-from, maxCmdline))
	n := 0
	for n < len(b) { // as far as it is in memory
		step := min(len(b)-n, int(mem.PageSize-(from+uint64(n))%mem.PageSize))
		if s.ReadAt(b[n:n+step], from+uint64(n)) != nil {
			break
		}
		n += step
	}
	b = bytes.TrimRight(b[:n], "\x00")
	return printable.Text(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
}

// namespaces are those of a task's nsproxy.
func (r *taskReader) namespaces(t object) Inodes {
	at := t.uint("nsproxy")
	if at == 0 {
		return Inodes{}
	}
	if n, ok := r.spaces[at]; ok {
		return n
	}
	proxy, err := r.load("nsproxy", at)
	if err != nil {
		return Inodes{}
	}
	n := Inodes{
		Mount: r.number("mnt_namespace", proxy.uint("mnt_ns")), Net: r.number("net", proxy.uint("net_ns")), UTS: r.number("uts_namespace", proxy.uint("uts_ns")),
		IPC: r.number("ipc_namespace", proxy.uint("ipc_ns")), Cgroup: r.number("cgroup_namespace", proxy.uint("cgroup_ns")),
		Time: r.number("time_namespace", proxy.uint("time_ns")),
	}
	r.spaces[at] = n
	return n
}

// number is that of a namespace, a structure of the given name.
func (r *taskReader) number(name string, at uint64) uint32 {
	f, ok := r.structure(name).field("ns.inum")
	if !ok || at < kernelHalf {
		return 0
	}
	v, known := r.numbers[at]
	if !known {
		v, _ = r.space.Uint32(at + f.Off)
		r.numbers[at] = v
	}
	return v
}

// ownNumber is a task's number in its own PID namespace, and that namespace's: of struct pid's numbers, which go from the outermost namespace
// inwards, the last (kernel/pid.c, task_active_pid_ns).
func (r *taskReader) ownNumber(t object) (nr int, ns uint32) {
	pid, err := r.load("pid", t.uint("thread_pid")) // 2c4704756cab, v4.19
	numbers, ok := pid.field("numbers")
	if err != nil || !ok {
		return int(t.int("pid")), 0
	}
	const deepest = 32 // MAX_PID_NS_LEVEL
	each := r.structure("upid").size
	upid, err := r.load("upid", pid.addr+numbers.Off+each*min(pid.uint("level"), deepest))
	if err != nil {
		return int(t.int("pid")), 0
	}
	return int(upid.int("nr")), r.number("pid_namespace", upid.uint("ns"))
}

// A control is the control groups of a css_set: the path in the unified hierarchy, and whose container they are.
type control struct{ path, container string }

// maxSubsystems bounds the controllers that a kernel has; today there are 14.
const maxSubsystems = 32

// cgroup reads a css_set. A container of runtimes that use the old hierarchies (version 1) is known by one of those.
func (r *taskReader) cgroup(set uint64) control {
	if set == 0 {
		return control{}
	}
	if c, ok := r.cgroups[set]; ok {
		return c
	}
	var c control
	if s, err := r.load("css_set", set); err == nil {
		c.path = r.cgroupPath(s.uint("dfl_cgrp"))
		c.container = cgroup.Container(c.path)
		f, _ := s.field("subsys")
		for i := uint64(0); i < min(f.Size/8, maxSubsystems) && c.container == ""; i++ {
			if css, err := r.load("cgroup_subsys_state", le.Uint64(s.raw[f.Off+8*i:])); err == nil {
				c.container = cgroup.Container(r.cgroupPath(css.uint("cgroup")))
			}
		}
	}
	r.cgroups[set] = c
	return c
}

// cgroupPath is a cgroup's in its hierarchy.
func (k *Kernel) cgroupPath(at uint64) string {
	g, err := k.load("cgroup", at)
	if err != nil {
		return ""
	}
	return k.kernfsPath(g.uint("kn"))
}

// kernfsPath is the path of a node of sysfs or a cgroup file system.
func (k *Kernel) kernfsPath(node uint64) string {
	var parts []string
	for range 64 {
		n, err := k.load("kernfs_node", node)
		if err != nil {
			return ""
		}
		up := n.uint("__parent", "parent") // 633488947ef6, v6.15
		if up == 0 {
			slices.Reverse(parts)
			return "/" + strings.Join(parts, "/")
		}
		parts = append(parts, k.pointed(n, 256, "name"))
		node = up
	}
	return ""
}
