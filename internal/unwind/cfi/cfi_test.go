package cfi

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// file is an ELF file by the addresses it was linked for.
type file struct{ *elf.File }

func (f file) ReadAt(p []byte, addr uint64) error {
	for _, s := range f.Progs {
		if s.Type == elf.PT_LOAD && addr >= s.Vaddr && addr-s.Vaddr+uint64(len(p)) <= s.Filesz {
			_, err := s.ReadAt(p, int64(addr-s.Vaddr))
			return err
		}
	}
	return fmt.Errorf("nothing at %#x", addr)
}

func libc(t testing.TB) string {
	all, _ := filepath.Glob("/lib/x86_64-linux-gnu/libc.so.6")
	if len(all) == 0 {
		t.Skip("this system has no libc at /lib/x86_64-linux-gnu/libc.so.6")
	}
	return all[0]
}

func open(t testing.TB, name string) (hdr, section *Table) {
	f, err := elf.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for _, p := range f.Progs {
		if p.Type == elf.PT_GNU_EH_FRAME {
			if hdr, err = Open(file{f}, p.Vaddr); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := f.Section(".eh_frame")
	if section, err = Scan(file{f}, s.Addr, s.Size); err != nil {
		t.Fatal(err)
	}
	return hdr, section
}

// names are readelf's, by number.
var names = [numRegs]string{"rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "ra"}

// asReadelf is a rule of a register as readelf prints it.
func (r Rule) asReadelf() string {
	switch r.How {
	case Undefined, Same:
		return "u" // readelf calls a register u of which nothing is said
	case AtCFA:
		return fmt.Sprintf("c%+d", r.Offset)
	case IsCFA:
		return fmt.Sprintf("v%+d", r.Offset)
	case InRegister:
		return names[r.Reg]
	case AtExpr:
		return "exp"
	}
	return "vexp"
}

// TestEachRowIsReadelfs compares every row of the C library's table, by search table and without.
func TestEachRowIsReadelfs(t *testing.T) {
	readelf, err := exec.LookPath("readelf")
	if err != nil {
		t.Fatal("readelf is missing (Debian: apt-get install binutils)")
	}
	name := libc(t)
	hdr, section := open(t, name)
	cmd := exec.Command(readelf, "--debug-dump=frames-interp", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rows, wrong := 0, 0
	var columns []string
	fde := false
	for s := bufio.NewScanner(out); s.Scan(); {
		f := strings.Fields(s.Text())
		switch {
		case len(f) > 3 && (f[3] == "FDE" || f[3] == "CIE"):
			fde = f[3] == "FDE"
		case len(f) > 1 && f[0] == "LOC":
			columns = f[1:]
		case fde && len(f) == len(columns)+1 && len(f[0]) == 16:
			addr, err := strconv.ParseUint(f[0], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			for _, table := range []*Table{hdr, section} {
				if problem := compare(table, addr, columns, f[1:]); problem != "" {
					if wrong++; wrong < 20 {
						t.Errorf("%#x: %s; readelf: %q %q", addr, problem, columns, f[1:])
					}
				}
			}
			rows++
		}
	}
	cmd.Wait() // its status tells of debug information that is elsewhere, too
	t.Logf("%d rows, %d wrong", rows, wrong)
	if rows < 10_000 {
		t.Errorf("only %d rows were compared", rows)
	}
}

func compare(table *Table, addr uint64, columns, want []string) string {
	r, err := table.Row(addr)
	if err != nil {
		return err.Error()
	}
	for i, c := range columns {
		got := ""
		switch {
		case c == "CFA" && r.CFA.How == IsExpr:
			got = "exp"
		case c == "CFA":
			got = fmt.Sprintf("%s%+d", names[r.CFA.Reg], r.CFA.Offset)
		default:
			for n, name := range names {
				if name == c {
					got = r.Reg[n].asReadelf()
				}
			}
		}
		if w := want[i]; got != w && !(w == "s" && got == "u") {
			return fmt.Sprintf("%s is %q", c, got)
		}
	}
	return ""
}

// stack is memory from an address on.
type stack struct {
	at    uint64
	words []uint64
}

func (s stack) ReadAt(p []byte, addr uint64) error {
	i := (addr - s.at) / 8
	if addr < s.at || addr%8 != 0 || len(p) != 8 || i >= uint64(len(s.words)) {
		return errors.New("not the stack")
	}
	le.PutUint64(p, s.words[i])
	return nil
}

func TestStepFindsTheCallersRegisters(t *testing.T) {
	r := Row{CFA: Rule{How: InRegister, Reg: RSP, Offset: 24}}
	r.Reg[RA] = Rule{How: AtCFA, Offset: -8}
	r.Reg[RBX] = Rule{How: AtCFA, Offset: -16}
	var regs Regs
	regs.Set(RSP, 0x1000)
	regs.Set(RBX, 1)
	regs.Set(RBP, 2)
	regs.Set(RA, 3)
	if err := r.Step(&regs, stack{0x1000, []uint64{10, 11, 12, 13}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		reg  int
		want uint64
	}{{RSP, 0x1018}, {RBX, 11}, {RBP, 2}, {RA, 12}} {
		if regs.Reg[c.reg] != c.want || regs.Known>>c.reg&1 == 0 {
			t.Errorf("%s = %#x (known: %#x), want %#x", names[c.reg], regs.Reg[c.reg], regs.Known, c.want)
		}
	}
	if regs.Known>>R12&1 != 0 {
		t.Error("r12 is known of nothing")
	}
	r.Reg[RA] = Rule{How: Undefined}
	if err := r.Step(&regs, stack{}); !errors.Is(err, ErrEnd) {
		t.Errorf("without a return address: %v", err)
	}
}

func TestExpressions(t *testing.T) {
	var regs Regs
	regs.Set(RSP, 0x1000)
	regs.Set(RA, 0x40100B)
	mem := stack{0x1000, []uint64{7, 8}}
	for _, c := range []struct {
		name string
		expr []byte
		want uint64
		ok   bool
	}{
		// What linkers write for a PLT: CFA = rsp + 8 + ((rip & 15) >= 11) << 3.
		{"PLT", []byte{opBreg0 + RSP, 8, opBreg0 + RA, 0, opLit0 + 15, opAnd, opLit0 + 11, opGe, opLit0 + 3, opShl, opPlus}, 0x1010, true},
		{"the caller's word", []byte{opBreg0 + RSP, 8, opDeref}, 8, true},
		{"negative offset", []byte{opBreg0 + RSP, 0x78}, 0xFF8, true},
		{"rot", []byte{opLit0 + 1, opLit0 + 2, opLit0 + 3, opRot, opDrop}, 1, true},
		{"bra", []byte{opLit0 + 1, opBra, 1, 0, opDrop, opLit0 + 5}, 5, true},
		{"for ever", []byte{opSkip, 0xFD, 0xFF}, 0, false},
		{"too deep", []byte{opLit0, opSkip, 0xFC, 0xFF}, 0, false},
		{"division by nothing", []byte{opLit0 + 1, opLit0, opDiv}, 0, false},
		{"empty", nil, 0, false},
		{"a register nobody knows", []byte{opBreg0 + R12, 0}, 0, false},
		{"cut short", []byte{opConst8u, 1, 2}, 0, false},
		{"an address of the file", []byte{0x03, 1, 2, 3, 4, 5, 6, 7, 8}, 0, false},
	} {
		got, err := eval(c.expr, &regs, mem, nil)
		if (err == nil) != c.ok || got != c.want && c.ok {
			t.Errorf("%s: %#x, %v; want %#x, %v", c.name, got, err, c.want, c.ok)
		}
	}
}

func TestAnAddressOutsideOfAllFunctionsHasNoRow(t *testing.T) {
	hdr, section := open(t, libc(t))
	for _, table := range []*Table{hdr, section} {
		for _, addr := range []uint64{0, 0x1000, 1 << 40, ^uint64(0)} {
			if r, err := table.Row(addr); !errors.Is(err, ErrNoFDE) {
				t.Errorf("Row(%#x) = %v, %v", addr, r, err)
			}
		}
	}
}

// bytesFrom is memory of given bytes from an address on.
type bytesFrom struct {
	at uint64
	p  []byte
}

func (b bytesFrom) ReadAt(p []byte, addr uint64) error { return bytesAt{b.p, b.at}.ReadAt(p, addr) }

// FuzzTable reads hostile tables: they cost bounded time, and no panic.
func FuzzTable(f *testing.F) {
	if name := "/bin/true"; fileExists(name) {
		e, err := elf.Open(name)
		if err != nil {
			f.Fatal(err)
		}
		defer e.Close()
		for _, s := range []string{".eh_frame_hdr", ".eh_frame"} {
			if s := e.Section(s); s != nil {
				if p, err := s.Data(); err == nil {
					f.Add(p, uint64(0x2500))
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, pc uint64) {
		const base = 0x1000
		m := bytesFrom{base, p}
		var tables []*Table
		if table, err := Open(m, base); err == nil {
			tables = append(tables, table)
		}
		if table, err := Scan(m, base, uint64(len(p))); err == nil {
			tables = append(tables, table)
		}
		for _, table := range tables {
			for _, addr := range append([]uint64{pc, base}, starts(table)...) {
				if r, err := table.Row(addr); err == nil {
					regs := Regs{Known: 1<<numRegs - 1}
					regs.Reg[RSP] = base
					r.Step(&regs, m)
				}
			}
		}
	})
}

func starts(t *Table) (all []uint64) {
	for i := range t.fdes {
		if i < 100 {
			all = append(all, t.fdes[i].start)
		}
	}
	return all
}

func fileExists(name string) bool { _, err := os.Stat(name); return err == nil }

// BenchmarkRow is the cost of a row that is not kept: of addresses all over the C library.
func BenchmarkRow(b *testing.B) {
	hdr, section := open(b, libc(b))
	addrs := starts(&Table{fdes: section.fdes})
	for b.Loop() {
		clear(hdr.rows)
		for _, a := range addrs {
			if _, err := hdr.Row(a); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(addrs)), "ns/row")
}
