package vitrine

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/agent"
	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/machine/boot"
)

func TestSizesAreReadAsTheyAreWritten(t *testing.T) {
	for in, want := range map[string]uint64{
		"64": 64 << 20, "512M": 512 << 20, "1G": 1 << 30, "1g": 1 << 30, "2GiB": 2 << 30, "2GB": 2 << 30, "4096K": 4 << 20, "1T": 1 << 40,
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", in, got, err, want)
		}
		if again, err := ParseSize(FormatSize(got)); err != nil || again != got {
			t.Errorf("%q: written as %q, read as %d, %v", in, FormatSize(got), again, err)
		}
	}
	for _, in := range []string{"", "M", "-1", "1.5G", "5Q", "1GM", "99999999999999999999G", "0x10", "1 G"} {
		if n, err := ParseSize(in); err == nil {
			t.Errorf("%q was read as %d", in, n)
		}
	}
}

func TestBadConfigsAreRefusedByTheFlagsName(t *testing.T) {
	for want, c := range map[string]Config{
		"--cpus 65":         {CPUs: 65},
		"--cpus -1":         {CPUs: -1},
		"--memory 1M":       {Memory: 1 << 20},
		"--memory 4194305":  {Memory: 4<<20 + 1},
		`--accel "xen"`:     {Accel: "xen"},
		`--root "all"`:      {Root: "all"},
		"--boot-timeout -1": {BootTimeout: -time.Second},
		"--workdir x":       {Dir: "x"},
		"--volume x":        {Volumes: []Volume{{Path: "x"}}},
		`--name "A"`:        {Name: "A"},
		"--append":          {Append: "a\x00b"},
		`--net "tap"`:       {Net: "tap"},
		"--port 127.0.0.1:": {Net: NetNone, Ports: []Port{{Host: netip.MustParseAddrPort("127.0.0.1:1"), Guest: 2}}},
	} {
		if err := c.check(4); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
	c := Config{}
	if err := c.check(1); err != nil || c.CPUs != 1 || c.Memory != DefaultMemory || c.Accel != Auto || c.Root != RootHost {
		t.Errorf("defaults: %+v, %v", c, err)
	}
}

func TestHowAMachineEndsDecidesItsStatus(t *testing.T) {
	const panicText = "[ 1.0] Kernel panic - not syncing: VFS: no root\r\n"
	for _, c := range []struct {
		name    string
		exit    machine.Exit
		console string
		status  int
		err     string
	}{
		{"power-off", machine.Exit{Reason: machine.PowerOff}, "", 0, ""},
		{"debug exit", machine.Exit{Reason: machine.DebugExit, Status: 7}, "", 7, ""},
		{"reboot", machine.Exit{Reason: machine.Reset}, "hello\n", 0, ""},
		{"reboot=t", machine.Exit{Reason: machine.TripleFault}, "[ 2.0] reboot: Restarting system\r\n", 0, ""},
		{"a crash", machine.Exit{Reason: machine.TripleFault, CPU: 1}, "hello\n", 123, "processor 1 stopped with a triple fault"},
		{"a panic", machine.Exit{Reason: machine.Reset}, panicText, 125, "kernel panicked: VFS: no root"},
		{"a panic, reboot=t", machine.Exit{Reason: machine.TripleFault}, panicText, 125, "kernel panicked: VFS: no root"},
		{"stopped", machine.Exit{Reason: machine.Stopped}, "", 137, "ended from outside"},
	} {
		m := &Machine{exit: c.exit}
		m.console.Write([]byte(c.console))
		status, err := m.verdict()
		if status != c.status || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %d, %v; want %d, %q", c.name, status, err, c.status, c.err)
		}
		var g *GuestError
		if errors.As(err, &g) && len(g.Console) == 0 {
			t.Errorf("%s: the error lacks the console's last lines", c.name)
		}
	}
}

func TestAProcessorThatCannotGoOnIsReported(t *testing.T) {
	for _, c := range []struct {
		fault  hv.Fault
		status int
	}{{hv.Internal, 120}, {hv.Emulation, 121}, {hv.Entry, 122}, {hv.Crash, 123}} {
		f := &hv.Failure{CPU: 3, Fault: c.fault, What: "it failed", Code: []byte{0x0F, 0x0B}}
		f.Regs.RIP = 0xFFFFFFFF81234567
		m := &Machine{err: fmt.Errorf("machine: CPU 3: %w", f)}
		if c.fault == hv.Crash {
			m = &Machine{exit: machine.Exit{Reason: machine.TripleFault, CPU: 3}, crash: f}
		}
		m.console.Write([]byte("last words\n"))
		status, err := m.verdict()
		var g *GuestError
		if status != c.status || !errors.As(err, &g) || strings.Contains(g.What, "\n") {
			t.Fatalf("fault %d: status %d, %v; want %d and one line", c.fault, status, err, c.status)
		}
		all := strings.Join(append(g.Registers, g.Console...), "\n")
		for _, want := range []string{"RIP ffffffff81234567", "RAX 0000000000000000", "code 0f 0b", "last words"} {
			if !strings.Contains(all, want) {
				t.Errorf("fault %d: the report lacks %q:\n%s", c.fault, want, all)
			}
		}
	}
}

func TestAConsolesLastLinesObeyNobody(t *testing.T) {
	var c tail
	c.Write([]byte(strings.Repeat("filler line\r\n", 10_000)))
	c.Write([]byte("\x1b[2Jone\x07\r\n\r\n  two\ttabs\n\xff\x9bthree"))
	got := strings.Join(c.lines(3), "|")
	if want := "?[2Jone?|two tabs|??three"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := len(c.text()); n > tailSize {
		t.Errorf("%d bytes remembered, want up to %d", n, tailSize)
	}
}

func TestTheAgentFindsTheListThatIsPacked(t *testing.T) {
	if agent.ModuleList != initramfs.ModuleList {
		t.Errorf("the agent reads %s, the initramfs has %s", agent.ModuleList, initramfs.ModuleList)
	}
}

func TestLinuxIsToldFromOtherImages(t *testing.T) {
	bz := make([]byte, 0x300)
	copy(bz[0x202:], "HdrS")
	elf := make([]byte, 3<<20)
	copy(elf, "\x7fELF")
	banner := append([]byte(nil), elf...)
	copy(banner[1<<20-5:], "Linux version 6.1") // across the edge of a read
	multiboot := make([]byte, 60)
	copy(multiboot[12:], "\x02\xb0\xad\x1b")
	for name, c := range map[string]struct {
		image []byte
		want  bool
	}{"bzImage": {bz, true}, "vmlinux": {banner, true}, "another ELF": {elf, false}, "a multiboot image": {multiboot, false}, "a text": {[]byte("hello"), true}} {
		if got := isLinux(boot.Bytes(name, c.image)); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
