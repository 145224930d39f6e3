package vmm

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestStatIsReadWhateverTheProcessCallsItself(t *testing.T) {
	rest := " S 7 2 2 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"
	for name, want := range map[string]string{"qemu": "qemu", "a) R 1 (b": "a) R 1 (b", "": "", "(": "("} {
		s, ok := ParseStat([]byte("12 (" + name + ")" + rest))
		if !ok || s.Comm != want || s.State != 'S' || s.Parent != 7 || s.Started != 4711 {
			t.Errorf("%q: %+v, %v", name, s, ok)
		}
	}
	for _, bad := range []string{"", "12", "12 (x", ") (", "12 (x) S 7", "12 (x)" + strings.Replace(rest, "4711", "x", 1)} {
		if s, ok := ParseStat([]byte(bad)); ok {
			t.Errorf("%q is read as %+v", bad, s)
		}
	}
}

func TestMapsKeepPathsWithBlanks(t *testing.T) {
	got := ParseMaps([]byte(`7f0000000000-7f0020000000 rw-s 00001000 00:01 4158525                   /memfd:guest ram (deleted)
nonsense
7f0020000000-7f0020000000 rw-p 00000000 00:00 0
7f0030000000-7f0030001000 rw-p 00000000 00:00 0
`))
	want := []Mapping{
		{0x7f0000000000, 0x7f0020000000, "rw-s", 0x1000, 4158525, "/memfd:guest ram (deleted)"},
		{0x7f0030000000, 0x7f0030001000, "rw-p", 0, 0, ""},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestQEMUsCommandLineTells(t *testing.T) {
	for _, c := range []struct {
		args, name, accelerator string
		cpus                    int
		mib                     uint64
	}{
		{"", "", TCG, 1, 128},
		{"-m 512 -smp 2", "", TCG, 2, 512},
		{"-m 2G -name vm1 -enable-kvm", "vm1", KVM, 1, 2048},
		{"-m size=1048576k,slots=2,maxmem=8G -name guest=web,,1,debug-threads=on -accel kvm", "web,1", KVM, 1, 1024},
		{"-name process=x,guest=late --machine pc,accel=kvm:tcg -smp sockets=2,cores=3,threads=2", "late", KVM, 12, 128},
		{"-M q35 -accel tcg,thread=multi -smp cpus=3,maxcpus=8", "", TCG, 3, 128},
		{"-m 1.5G", "", TCG, 1, 1536},
		{"-m 512 -m 1024", "", TCG, 1, 1024},
		{"-m nonsense -smp -1", "", TCG, 1, 0},
		{"-m 99999999999999999999T -smp 99999999", "", TCG, 1, 0},
	} {
		args := append([]string{"qemu-system-x86_64"}, strings.Fields(c.args)...)
		if got := qemuName(args); got != c.name {
			t.Errorf("%s: name %q, want %q", c.args, got, c.name)
		}
		if got := qemuAccelerator(args); got != c.accelerator {
			t.Errorf("%s: accelerator %q, want %q", c.args, got, c.accelerator)
		}
		if got := qemuCPUs(args); got != c.cpus {
			t.Errorf("%s: %d CPUs, want %d", c.args, got, c.cpus)
		}
		if got := qemuMemory(args); got != c.mib<<20 {
			t.Errorf("%s: %d MiB, want %d", c.args, got>>20, c.mib)
		}
	}
}

func TestQEMUsSocketsAreFound(t *testing.T) {
	for _, c := range []struct{ args, qmp, gdb string }{
		{"-m 512", "", ""},
		{"-qmp unix:/run/q.sock,server=on,wait=off", "unix /run/q.sock", ""},
		{"-qmp unix:rel,server,nowait -s", "unix rel", "tcp 127.0.0.1:1234"},
		{"--qmp tcp:localhost:4444,server -gdb tcp::9000", "tcp localhost:4444", "tcp 127.0.0.1:9000"},
		{"-chardev socket,id=mon0,path=/a,,b,server=on -mon chardev=mon0,mode=control", "unix /a,b", ""},
		{"-chardev socket,id=m,host=0.0.0.0,port=7,server=on -mon m,mode=control", "tcp 127.0.0.1:7", ""},
		{"-chardev socket,id=m,path=/hmp -mon m,mode=readline", "", ""},
		{"-chardev socket,id=charmonitor,fd=35,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control", "", ""},
		{"-qmp stdio -gdb unix:/g", "", "unix /g"},
		{"-qmp tcp:x:99999", "", ""},
	} {
		g := Guest{VMM: "qemu", Args: append([]string{"qemu-system-x86_64"}, strings.Fields(c.args)...)}
		show := func(all []Endpoint) string {
			var s []string
			for _, e := range all {
				s = append(s, e.Network+" "+e.Address)
			}
			return strings.Join(s, ", ")
		}
		if got := show(g.QMP()); got != c.qmp {
			t.Errorf("%s: QMP at %q, want %q", c.args, got, c.qmp)
		}
		if got := show(g.GDB()); got != c.gdb {
			t.Errorf("%s: gdb at %q, want %q", c.args, got, c.gdb)
		}
	}
}

// mapping makes a line of maps at MiB of the given size.
func mapping(at, mib uint64, perms string, inode uint64, path string) string {
	return fmt.Sprintf("%x-%x %s 00000000 00:01 %d %s\n", at<<20, (at+mib)<<20, perms, inode, path)
}

func TestRAMIsToldFromOtherMappings(t *testing.T) {
	holes := []uint64{0xC000_0000, 0xD000_0000}
	for _, c := range []struct {
		what string
		maps string
		want []uint64 // sizes that are looked for, MiB
		got  string   // MiB at MiB
	}{
		{"nothing", "", nil, ""},
		{"the largest", mapping(10, 8, "rw-p", 0, "") + mapping(100, 512, "rw-p", 0, ""), nil, "512 at 100"},
		{"TCG's translations are executed", mapping(10, 1024, "rwxp", 0, "") + mapping(2000, 512, "rw-p", 0, ""), nil, "512 at 2000"},
		{"the heap is none", mapping(10, 900, "rw-p", 0, "[heap]") + mapping(2000, 512, "rw-p", 0, ""), nil, "512 at 2000"},
		{"what the command line says, not the largest", mapping(10, 64, "rw-p", 0, "") + mapping(100, 512, "rw-p", 0, ""), []uint64{64}, "64 at 10"},
		{"a part of what the kernel joined", mapping(10, 520, "rw-p", 0, ""), []uint64{512}, "512 at 10"},
		{"split by policies", mapping(10, 256, "rw-p", 0, "") + mapping(266, 256, "rw-p", 0, ""), []uint64{512}, "512 at 10"},
		{"a stack beside it", mapping(10, 8, "rw-p", 0, "") + mapping(18, 512, "rw-p", 0, ""), nil, "512 at 18"},
		{"two nodes", mapping(10, 256, "rw-s", 5, "/memfd:b") + mapping(1000, 512, "rw-s", 6, "/memfd:a"), []uint64{512, 256}, "512 at 1000, 256 at 10"},
		{"below and above the hole", mapping(10, 1024, "rw-p", 0, "") + mapping(2000, 3072, "rw-p", 0, ""), nil, "3072 at 2000, 1024 at 10"},
		{"kvmtool's gap", mapping(10, 3328, "rw-p", 0, "") + mapping(3338, 768, "---p", 0, "") + mapping(4106, 700, "rw-p", 0, ""), nil, "3328 at 10, 700 at 4106"},
		{"descriptors' memory is none", mapping(10, 900, "rw-s", 3, "anon_inode:kvm-vcpu:0") + mapping(2000, 16, "rw-s", 9, "/dev/shm/ram"), nil, "16 at 2000"},
		{"too small", mapping(10, 0, "rw-p", 0, ""), nil, ""},
	} {
		var want []uint64
		for _, w := range c.want {
			want = append(want, w<<20)
		}
		var got []string
		for _, m := range findRAM(ParseMaps([]byte(c.maps)), want, holes) {
			got = append(got, fmt.Sprintf("%d at %d", m.Size()>>20, m.Start>>20))
		}
		if s := strings.Join(got, ", "); s != c.got {
			t.Errorf("%s: %s, want %s", c.what, s, c.got)
		}
	}
}

func TestThreadsAreMatchedByTheirNames(t *testing.T) {
	for name, want := range map[string]int{
		"CPU 0/KVM": 0, "CPU 12/TCG": 12, "fc_vcpu 3": 3, "vcpu7": 7, "vcpu-7": 7, "crosvm_vcpu1": 1, "kvm-vcpu-2": 2, "EMT-0": 0,
		"CPU x/KVM": -1, "CPU 1": -1, "vcpu": -1, "worker": -1, "vcpu99999999999999999999": -1,
	} {
		got, ok := indexIn(name, anyThreads)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
	for s, want := range map[string]int{
		"16 0xd 0xae80 0x0 0x7f 0x0 0x0 0x7ffd 0x7f09\n": 13, "running\n": -1, "16 0xd 0xae81 0x0 0x7f 0x0 0x0 0x7ffd 0x7f09": -1,
		"202 0xd 0xae80 0x0 0x7f 0x0 0x0 0x7ffd 0x7f09": -1, "": -1, "16 0xffffffffff 0xae80 0x0 0x7f 0x0 0x0 0x7ffd 0x7f09": -1, "16 0xd 0xae80": -1,
		"16 0x7 0xae80 0x0 0x0 0x0 0x0 0x0 0x0": -1, // kvm-nx-lpage-recovery
	} {
		if got := parseSyscall(s); got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
}

func TestWhatKeepsEyesOutIsNamed(t *testing.T) {
	for _, c := range []struct {
		eyes   Eyes
		uid    int
		denied bool
		want   string
	}{
		{Eyes{0, true, 0}, 1000, false, ""},
		{Eyes{0, true, 2}, 1000, false, ""},
		{Eyes{0, true, 3}, 1000, false, "ptrace_scope=3"},
		{Eyes{0, true, 0}, 1000, true, "security module"},
		{Eyes{0, false, 0}, 1000, true, "CAP_SYS_PTRACE"},
		{Eyes{1000, false, 0}, 1000, false, ""},
		{Eyes{1000, false, 1}, 1000, false, "ptrace_scope=1"},
		{Eyes{1000, false, 2}, 1000, false, "ptrace_scope=2"},
		{Eyes{1000, false, 0}, 4321, true, "belongs to user 4321"},
		{Eyes{1000, false, 0}, 1000, true, "PR_SET_DUMPABLE"},
	} {
		got := c.eyes.WhyNot(c.uid, c.denied)
		if got == "" != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v at user %d, denied %v: %q, want %q", c.eyes, c.uid, c.denied, got, c.want)
		}
	}
}

func TestNamesAreFitForATerminal(t *testing.T) {
	for in, want := range map[string]string{"web-1": "web-1", "a b\n\x1b[31m": "a_b__[31m", "\xff\xfe": "__", strings.Repeat("x", 99): strings.Repeat("x", 64), "ü": "ü"} {
		if got := clean(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzMaps(f *testing.F) {
	f.Add([]byte(mapping(10, 3328, "rw-p", 0, "")+mapping(3338, 768, "rw-s", 7, "/memfd:x y")), uint64(3328<<20))
	f.Add([]byte("ffffffffffff0000-ffffffffffffffff rw-p ffffffffffffffff 00:00 0\n"), uint64(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		maps := ParseMaps(b)
		for _, want := range [][]uint64{nil, {size}, {size, size}} {
			for _, m := range findRAM(maps, want, []uint64{size}) {
				if m.End <= m.Start || !slices.ContainsFunc(join(maps), func(o Mapping) bool { return o.Start <= m.Start && m.End <= o.End }) {
					t.Errorf("RAM at %#x-%#x is not mapped", m.Start, m.End)
				}
			}
		}
	})
}

func FuzzProcess(f *testing.F) {
	f.Add([]byte("12 (x) S 7 2 2 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"))
	f.Add([]byte("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n"))
	f.Add([]byte("0::/machine.slice/machine-qemu\\x2d1.scope\n1:name=systemd:/x\n"))
	f.Add([]byte("qemu-system-x86_64\x00-m\x00size=1G,,x\x00-name\x00guest=a\x00-numa\x00node,memdev=m\x00-object\x00memory-backend-ram,id=m,size=1G\x00-mon\x00chardev=c,mode=control\x00-chardev\x00socket,id=c,path=/x\x00-s\x00-qmp\x00unix:x"))
	f.Add([]byte("16 0xd 0xae80 0x0 0x7f 0x0 0x0 0x7ffd 0x7f09"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseStat(b)
		parseUID(b)
		capable(string(b), capSysPtrace)
		parseCgroup(b)
		parseSyscall(string(b))
		args := parseArgs(b)
		for i := range kinds {
			g := Guest{VMM: kinds[i].name, Args: args, kind: &kinds[i]}
			if k := g.kind; k.runs != nil {
				k.runs(args)
			}
			if k := g.kind; k.guestName != nil {
				if n := clean(k.guestName(args)); len([]rune(n)) > 64 {
					t.Errorf("a name of %d letters", len(n))
				}
			}
			if k := g.kind; k.memory != nil && k.memory(args) >= 1<<56 {
				t.Errorf("%d bytes of memory", k.memory(args))
			}
			if k := g.kind; k.cpus != nil {
				if n := k.cpus(args); n < 0 || n > 4096 {
					t.Errorf("%d CPUs", n)
				}
			}
			g.QMP()
			g.GDB()
			g.Holes()
			qemuBackends(args)
			g.protection(kvmFDs{})
		}
	})
}
