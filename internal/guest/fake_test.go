package guest

import (
	"encoding/binary"
	"strconv"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/program"
	"vitrine.dev/vitrine/internal/x86"
)

// A memory is a Target of some bytes from physical address 0 on, with the registers of one CPU if there are any.
type memory struct {
	ram  []byte
	regs *x86.Regs
}

func (m *memory) ReadPhys(p []byte, a mem.Addr) (int, error) {
	if a >= mem.Addr(len(m.ram)) {
		return 0, mem.ErrNotRAM
	}
	n := copy(p, m.ram[a:])
	if n < len(p) {
		return n, mem.ErrNotRAM
	}
	return n, nil
}

func (m *memory) Regions() []mem.Region { return []mem.Region{{Size: uint64(len(m.ram))}} }
func (m *memory) NumCPU() int           { return 1 }

func (m *memory) CPU(_ int, r *x86.Regs) error {
	if m.regs == nil {
		return ErrNoRegisters
	}
	*r = *m.regs
	return nil
}

// A fake is a kernel made by hand: its memory is mapped at direct, from physical address 0 on.
type fake struct {
	*Kernel
	m    *memory
	next uint64 // where nothing is yet
	syms []Symbol
}

const direct = 0xffff888000000000

// fakeStructs are the fields of the structures of a fake kernel: name and size in bytes; a pointer's is 8.
const fakeStructs = `
	task_struct  tasks:16 tasks.next=tasks:8 thread_node:16 pid:4 tgid:4 real_parent:8 signal:8 mm:8 fs:8 nsproxy:8 cgroups:8 real_cred:8
	             se.sum_exec_runtime:8 flags:4 __state:4 exit_state:4 cpu:4 start_boottime:8 comm:16 files:8 thread_pid:8 group_leader:8
	pid          level:4 numbers:0
	upid         nr:4 ns:8
	pid_namespace ns.inum:4
	user_namespace ns.inum:4
	files_struct fdt:8
	fdtable      max_fds:4 fd:8
	xa_node      shift:1 slots:512
	xarray       xa_head:8
	page         flags:8 mapping:8 index:8 rest:40
	address_space host:8 i_pages:8
	file         f_mode:4 f_pos:8 f_inode:8 f_mapping:8 f_path.mnt:8 f_path.dentry:8 private_data:8
	socket       file:8 sk:8
	socket_alloc socket:32 vfs_inode.i_ino:8
	sock         __sk_common.skc_family:2 __sk_common.skc_state:1 __sk_common.skc_num:2 __sk_common.skc_dport:2 __sk_common.skc_daddr:4
	             __sk_common.skc_rcv_saddr:4 __sk_common.skc_v6_daddr:16 __sk_common.skc_v6_rcv_saddr:16 __sk_common.skc_net.net:8 sk_socket:8
	             sk_protocol:2 sk_type:2 sk_uid:4 sk_backlog.rmem_alloc.counter:4 sk_wmem_alloc.refs.counter:4 sk_ack_backlog:4 sk_max_ack_backlog:4
	tcp_sock     sock:128 rcv_nxt:4 copied_seq:4 write_seq:4 snd_una:4
	unix_sock    sock:128 addr:8 peer:8
	unix_address len:4 name:0
	netlink_sock sock:128 portid:4
	vsock_sock   sock:128 local_addr.svm_cid:4 local_addr.svm_port:4
	packet_sock  sock:128 num:2 ifindex:4
	backing_file file:40 user_path.mnt:8 user_path.dentry:8
	inode        i_ino:8 i_sb:8 i_size:8
	vm_area_struct vm_start:8 vm_end:8 vm_file:8 vm_flags:8 vm_pgoff:8 vm_ops:8 vm_private_data:8
	vm_special_mapping name:8
	signal_struct thread_head:16 sum_sched_runtime:8
	mm_struct    pgd:8 arg_start:8 arg_end:8 rss_stat.count[0]:8 rss_stat.count[1]:8 rss_stat.count[3]:8
	             mm_mt.ma_root:8 brk:8 start_brk:8 start_stack:8 context.vdso:8
	cred         euid:4 user_ns:8
	css_set      dfl_cgrp:8 subsys:32
	cgroup_subsys_state cgroup:8
	cgroup       kn:8
	kernfs_node  parent:8 name:8
	nsproxy      mnt_ns:8 net_ns:8
	mnt_namespace ns.inum:4 list:16
	net          ns.inum:4
	fs_struct    root.mnt:8 root.dentry:8
	mount        mnt_list:16 mnt_parent:8 mnt_mountpoint:8 mnt:0 mnt.mnt_root:8 mnt.mnt_sb:8 mnt.mnt_flags:4 mnt_devname:8 mnt_ns:8 mnt_id:4
	dentry       d_parent:8 d_name.name:8 d_inode:8 d_hash.pprev:8
	uts_namespace name:390
	pglist_data  node_zones:64
	zone         _watermark[1]:8 watermark_boost:8
	super_block  s_type:8 s_flags:8 s_dev:4 s_subtype:8
	file_system_type name:8
	module       list:16 name:56 state:4 refcnt.counter:4 core_layout.base:8 core_layout.size:4 init_layout.size:4 source_list:16 kallsyms:8
	             syms:8 num_syms:4
	module_use   source_list:16 source:8
	mod_kallsyms symtab:8 num_symtab:4 strtab:8 typetab:8
	kernel_symbol value_offset:4 name_offset:4 namespace_offset:4
	printk_ringbuffer desc_ring.count_bits:4 desc_ring.descs:8 desc_ring.infos:8 desc_ring.head_id.counter:8 desc_ring.tail_id.counter:8
	             text_data_ring.size_bits:4 text_data_ring.data:8
	prb_desc     state_var.counter:8 text_blk_lpos.begin:8 text_blk_lpos.next:8
	printk_info  seq:8 ts_nsec:8 text_len:2 facility:1 flags:1 level:1
	timekeeper   xtime_sec:8 offs_real:8 offs_boot:8 tkr_mono.base:8 tkr_mono.xtime_nsec:8 tkr_mono.shift:4
`

func fakeStructures() map[string]*structure {
	all := map[string]*structure{}
	var s *structure
	for word := range strings.FieldsSeq(fakeStructs) {
		name, size, ok := strings.Cut(word, ":")
		if !ok {
			s = &structure{name: name, fields: map[string]*Field{}}
			all[name] = s
			continue
		}
		n, _ := strconv.ParseUint(size, 10, 64)
		if name, same, ok := strings.Cut(name, "="); ok {
			f := *s.fields[same]
			f.Size = n
			s.fields[name] = &f
			continue
		}
		s.size = (s.size + min(n, 8) - min(n, 1)) &^ (max(min(n, 8), 1) - 1)
		s.fields[name] = &Field{Off: s.size, Size: n}
		s.size += n
	}
	return all
}

// newFake makes a kernel of size bytes of memory with nothing in it but page tables: one page of 1 GiB.
func newFake(size int) *fake {
	m := &memory{ram: make([]byte, size)}
	put(m, 0x1000+8*(direct>>39&511), 0x2000|ptePresent)
	put(m, 0x2000, ptePresent|pteLarge)
	k := &Kernel{t: m, space: &Space{ram: m, root: 0x1000, levels: 4}, structs: fakeStructures(), names: map[uint64]Owner{}}
	k.image = &ramImage{t: m}
	k.btf = func() *BTF { return nil }
	k.Symbols = NewSymbols(nil)
	return &fake{k, m, 0x3000, nil}
}

func put(m *memory, at, v uint64) { binary.LittleEndian.PutUint64(m.ram[at:], v) }

// alloc gives the address of n bytes of zeros.
func (f *fake) alloc(n uint64) uint64 {
	at := f.next
	f.next = (at + n + 15) &^ 15
	return direct + at
}

// new makes a structure with fields.
func (f *fake) new(name string, fields map[string]uint64) uint64 {
	at := f.alloc(f.structure(name).size)
	f.set(name, at, fields)
	return at
}

func (f *fake) set(name string, at uint64, fields map[string]uint64) {
	s := f.structure(name)
	for path, v := range fields {
		field, ok := s.field(path)
		if !ok {
			panic("no field " + path)
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		copy(f.m.ram[at-direct+field.Off:][:min(field.Size, 8)], b[:])
	}
}

// text puts a string and gives its address.
func (f *fake) text(s string) uint64 {
	at := f.alloc(uint64(len(s)) + 1)
	copy(f.m.ram[at-direct:], s)
	return at
}

func (f *fake) where(name string, at uint64, path string) uint64 {
	field, _ := f.structure(name).field(path)
	return at + field.Off
}

// chain links a list: the head's address, then its nodes'.
func (f *fake) chain(nodes ...uint64) {
	for i, n := range nodes {
		next := nodes[(i+1)%len(nodes)]
		put(f.m, n-direct, next)
		put(f.m, next-direct+8, n)
	}
}

// symbol names an address.
func (f *fake) symbol(name string, at uint64) {
	f.syms = append(f.syms, Symbol{Addr: at, Type: 'D', Name: name})
	f.Symbols = NewSymbols(append([]Symbol(nil), f.syms...))
}

// task makes a task that is alone in its process, and gives its address.
func (f *fake) task(pid uint64, comm string, parent uint64) uint64 {
	signal := f.new("signal_struct", map[string]uint64{"sum_sched_runtime": 1e9})
	group := f.new("cgroup", map[string]uint64{"kn": f.new("kernfs_node", map[string]uint64{
		"parent": f.new("kernfs_node", nil), "name": f.text("user.slice"),
	})})
	t := f.new("task_struct", map[string]uint64{
		"pid": pid, "tgid": pid, "real_parent": parent, "signal": signal, "se.sum_exec_runtime": 5e8, "__state": 1,
		"real_cred": f.new("cred", map[string]uint64{"euid": 1000}),
		"cgroups":   f.new("css_set", map[string]uint64{"dfl_cgrp": group}),
	})
	copy(f.m.ram[f.where("task_struct", t, "comm")-direct:], comm)
	f.chain(f.where("signal_struct", signal, "thread_head"), f.where("task_struct", t, "thread_node"))
	return t
}

// fakeProcesses makes a kernel with init (1) and shells below.
func fakeProcesses(shells int) (*fake, []uint64) {
	f := newFake(1 << 20)
	init := f.new("task_struct", nil)
	f.symbol("init_task", init)
	nodes := []uint64{f.where("task_struct", init, "tasks")}
	one := f.task(1, "init", init)
	tasks := []uint64{one}
	for i := range shells {
		tasks = append(tasks, f.task(uint64(i)+2, "sh\x1b[2J", one))
	}
	for _, t := range tasks {
		nodes = append(nodes, f.where("task_struct", t, "tasks"))
	}
	f.chain(nodes...)
	return f, tasks
}

func TestProcessesOfAFakeKernel(t *testing.T) {
	f, _ := fakeProcesses(3)
	all, err := f.Processes(false)
	if err != nil || len(all) != 4 {
		t.Fatalf("%d processes, %v, want 4", len(all), err)
	}
	want := Process{PID: 4, PPID: 1, TGID: 4, Comm: "sh?[2J", UID: 1000, State: "S", CPUSeconds: 1.5, Cgroup: "/user.slice", NSPID: 4, Threads: 1}
	got := all[3]
	got.Task = 0
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTornAndEndlessListsEndInAnError(t *testing.T) {
	f, tasks := fakeProcesses(3)
	second := f.where("task_struct", tasks[1], "tasks") - direct
	was := binary.LittleEndian.Uint64(f.m.ram[second:])
	for _, c := range []struct {
		what string
		next uint64
	}{
		{"a loop", f.where("task_struct", tasks[0], "tasks")}, {"itself", direct + second}, {"user memory", 0x1000},
		{"nothing mapped", direct + 1<<40}, {"zero", 0},
	} {
		put(f.m, second, c.next)
		if all, err := f.Processes(false); err == nil {
			t.Errorf("a list that leads to %s: %d processes", c.what, len(all))
		}
	}
	put(f.m, second, was)
	if all, err := f.Processes(false); err != nil || len(all) != 4 {
		t.Errorf("mended: %d processes, %v", len(all), err)
	}
}

func TestListsAndTreesAreBounded(t *testing.T) {
	f := newFake(1 << 20)
	nodes := []uint64{f.alloc(16)}
	for range 20 {
		nodes = append(nodes, f.alloc(16))
	}
	f.chain(nodes...)
	if all, err := f.list(nodes[0], 10); err == nil {
		t.Errorf("a list of 20 with a bound of 10: %d nodes", len(all))
	}
	a, b := f.alloc(24), f.alloc(24)
	put(f.m, a-direct+8, b) // each is below the other
	put(f.m, b-direct+8, a)
	root := f.alloc(8)
	put(f.m, root-direct, a)
	if all, err := f.tree(root, 1000); err == nil {
		t.Errorf("a tree with a loop: %d nodes", len(all))
	}
	put(f.m, a-direct+16, b)
	put(f.m, b-direct+16, a)
	if all, err := f.tree(root, 1000); err == nil {
		t.Errorf("a tree with a loop to the left: %d nodes", len(all))
	}
}

func TestStatesAreThoseOfPS(t *testing.T) {
	s := fakeStructures()["task_struct"]
	for _, c := range []struct {
		state, exit uint64
		want        string
	}{
		{0, 0, "R"}, {1, 0, "S"}, {2, 0, "D"}, {4, 0, "T"}, {8, 0, "t"}, {0, 0x10, "X"}, {0, 0x20, "Z"}, {0x40, 0, "P"}, {0x402, 0, "I"},
		{0x8000, 0, "D"}, {0x1000, 0, "D"}, {0x101, 0, "S"},
	} {
		o := object{s, 0, make([]byte, s.size)}
		binary.LittleEndian.PutUint32(o.raw[s.fields["__state"].Off:], uint32(c.state))
		binary.LittleEndian.PutUint32(o.raw[s.fields["exit_state"].Off:], uint32(c.exit))
		if got := taskState(o); got != c.want {
			t.Errorf("state %#x, exit state %#x: %s, want %s", c.state, c.exit, got, c.want)
		}
	}
}

// pointers makes addresses of the words from a place on that are small and odd, so that what a fuzzer chose leads somewhere.
func (f *fake) pointers(from uint64) {
	for i := from; i+8 <= uint64(len(f.m.ram)); i += 8 {
		if v := binary.LittleEndian.Uint64(f.m.ram[i:]); v&1 != 0 && v>>16 == 0 {
			put(f.m, i, direct+0x3000+v&^7%(1<<15))
		}
	}
}

// FuzzWalks reads everything from a kernel whose structures hold what the fuzzer puts there.
func FuzzWalks(f *testing.F) {
	k, tasks := fakeProcesses(2)
	f.Add(k.m.ram[0x3000:k.next], uint64(tasks[0]-direct-0x3000))
	f.Add([]byte{}, uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, at uint64) {
		k := newFake(1 << 16)
		copy(k.m.ram[0x3000:], data)
		k.pointers(0x3000)
		base := direct + 0x3000 + at%(1<<15)
		for _, name := range []string{"init_task", "modules", "prb", "tk_core", "log_first_idx", "log_next_idx", "log_buf", "log_buf_len", "bpf_kallsyms", "vmemmap_base",
			"avenrun", "tainted_mask", "panic_cpu", "init_uts_ns", "blockdev_superblock", "node_data", "nr_node_ids"} {
			k.symbol(name, base)
		}
		k.Processes(true)
		k.Modules()
		k.Kallsyms()
		k.Log(0)
		k.recordLog(0)
		k.Mounts(base)
		k.Maps(base)
		k.Files(base)
		k.Sockets()
		k.newWalker().describeSocket(object{k.structure("sock"), base, data[:min(len(data), int(k.structure("sock").size))]})
		k.maple(base&^0xFF|mapleRange64<<3|2, 1000)
		k.tree(base, 1000)
		k.Uptime()
		k.System()
		k.ProcessAt(0, 0x1000)
		k.UserFunction(Owner{Task: base}, 0x1000)
		if c, err := k.cached(base); err == nil {
			program.Read(c)
		}
	})
}

// FuzzOpen looks for a kernel in memory and with registers that the fuzzer chose.
func FuzzOpen(f *testing.F) {
	k := newFake(1 << 16)
	f.Add(k.m.ram[:0x3000], uint64(0x1000), uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, cr3, cr4 uint64) {
		m := &memory{ram: make([]byte, 1<<16), regs: &x86.Regs{CR0: x86.CR0PG, EFER: x86.EFERLMA, CR3: cr3, CR4: cr4}}
		copy(m.ram, data)
		if k, err := Open(m); err == nil {
			t.Errorf("a kernel is found: %q", k.Banner)
		}
	})
}
