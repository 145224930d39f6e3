package foreign

import (
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/x86"
)

// What QEMU 7.2.22 (Debian 12) printed, under TCG with -m 5G -smp 2: "info registers -a" and "info mtree -f".
var (
	//go:embed testdata/registers.txt
	registersText string
	//go:embed testdata/mtree.txt
	treeText string
)

func TestMonitorsRegistersAreRead(t *testing.T) {
	all, halted := parseRegisters(registersText)
	if len(all) != 2 || len(halted) != 2 {
		t.Fatalf("%d CPUs, want 2", len(all))
	}
	for i := range all {
		r := &all[i]
		for _, c := range []struct {
			name string
			got  uint64
			want string // as the text has it behind "CPU#i"
		}{
			{"RAX", r.GPR[x86.RAX], "RAX="}, {"RSP", r.GPR[x86.RSP], "RSP="}, {"RDI", r.GPR[x86.RDI], "RDI="}, {"R8", r.GPR[x86.R8], "R8 ="},
			{"R15", r.GPR[x86.R15], "R15="}, {"RIP", r.RIP, "RIP="}, {"RFLAGS", r.RFLAGS, "RFL="}, {"CR0", r.CR0, "CR0="}, {"CR2", r.CR2, "CR2="},
			{"CR3", r.CR3, "CR3="}, {"CR4", r.CR4, "CR4="}, {"EFER", r.EFER, "EFER="}, {"FS base", r.Seg[x86.FS].Base, "FS =0000 "},
			{"GS base", r.Seg[x86.GS].Base, "GS =0000 "}, {"TR base", r.TR.Base, "TR =0040 "}, {"GDT base", r.GDTR.Base, "GDT=     "},
			{"IDT base", r.IDTR.Base, "IDT=     "},
		} {
			text := registersText[strings.Index(registersText, fmt.Sprintf("CPU#%d", i)):]
			_, text, _ = strings.Cut(text, c.want)
			if want := strings.Fields(text)[0]; fmt.Sprintf("%016x", c.got) != fmt.Sprintf("%016s", want) {
				t.Errorf("CPU %d: %s is %#x, want %s", i, c.name, c.got, want)
			}
		}
		text := registersText[strings.Index(registersText, fmt.Sprintf("CPU#%d", i)):]
		_, rest, _ := strings.Cut(text, "CPL=")
		if want := int(rest[0] - '0'); r.CPL() != want {
			t.Errorf("CPU %d: CPL is %d, want %d", i, r.CPL(), want)
		}
		_, rest, _ = strings.Cut(text, "HLT=")
		if want := rest[0] == '1'; halted[i] != want {
			t.Errorf("CPU %d: halted is %v, want %v", i, halted[i], want)
		}
	}
}

func TestMemoryTreeGivesRAMAlone(t *testing.T) {
	var got []string
	for _, s := range parseMemoryTree(treeText) {
		got = append(got, fmt.Sprintf("%#x+%#x %s@%#x", uint64(s.base), s.size, s.block, s.off))
	}
	want := "0x0+0xa0000 pc.ram@0x0, 0xc0000+0xbff40000 pc.ram@0xc0000, 0x100000000+0x80000000 pc.ram@0xc0000000"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
}

func TestHostAddressIsRead(t *testing.T) {
	if at, err := parseHostAddress("Host virtual address for 0x0 (pc.ram) is 0x7f4bafe00000\r\n"); at != 0x7f4bafe00000 || err != nil {
		t.Errorf("%#x, %v", at, err)
	}
	for _, bad := range []string{"", "No memory is mapped at address 0xa0000", "x is 0x", "x is 0xg"} {
		if at, err := parseHostAddress(bad); err == nil {
			t.Errorf("%q gives %#x", bad, at)
		}
	}
}

func TestLayoutsAreThoseAroundTheHole(t *testing.T) {
	const gib = 1 << 30
	show := func(ways [][]segment) string {
		var all []string
		for _, w := range ways {
			var s []string
			for _, g := range w {
				s = append(s, fmt.Sprintf("%.2f:%.2f@%.2f", float64(g.base)/gib, float64(g.size)/gib, float64(g.host)/gib))
			}
			all = append(all, strings.Join(s, " "))
		}
		return strings.Join(all, ", ")
	}
	one := func(host, size float64) segment { return segment{host: uint64(host * gib), size: uint64(size * gib)} }
	for _, c := range []struct {
		ram  []segment
		want string
	}{
		{[]segment{one(16, 1)}, "0.00:1.00@16.00"},
		{[]segment{one(16, 5)}, "0.00:3.00@16.00 4.00:2.00@19.00, 0.00:2.00@16.00 4.00:3.00@18.00, 0.00:3.00@18.00 4.00:2.00@16.00, 0.00:2.00@19.00 4.00:3.00@16.00"},
		{[]segment{one(16, 2.5)}, "0.00:2.50@16.00, 0.00:2.00@16.00 4.00:0.50@18.00, 0.00:2.00@16.50 4.00:0.50@16.00"},
		{[]segment{one(16, 3), one(8, 1)}, "0.00:3.00@16.00 4.00:1.00@8.00, 0.00:2.00@16.00 4.00:1.00@18.00 5.00:1.00@8.00"},
	} {
		if got := show(layouts(c.ram, []uint64{3 * gib, 2 * gib})); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func FuzzMonitor(f *testing.F) {
	f.Add(registersText)
	f.Add(treeText)
	f.Add("Host virtual address for 0x0 (pc.ram) is 0x7f4bafe00000\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		regs, halted := parseRegisters(text)
		if len(regs) != len(halted) || len(regs) > maxCPUs {
			t.Errorf("%d CPUs, %d of them known to be halted or not", len(regs), len(halted))
		}
		end := uint64(0)
		for _, s := range parseMemoryTree(text) {
			if uint64(s.base) < end || s.size == 0 {
				t.Errorf("RAM at %#x, %d bytes, behind %#x", uint64(s.base), s.size, end)
			}
			end = uint64(s.base) + s.size
		}
		parseHostAddress(text)
	})
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(`{"return": {"status": "running"}}`))
	f.Add([]byte(`{"timestamp": {}, "event": "STOP"}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "no\u001b[31m"}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		value, _, err := parseAnswer(line)
		if err != nil && value != nil {
			t.Errorf("%q gives %q and %v", line, value, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\x07") {
			t.Errorf("what a terminal obeys is in %q", err)
		}
	})
}
