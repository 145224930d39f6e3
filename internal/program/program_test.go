package program

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testProgram is an ELF program with functions one and two at 0x401000 and 0x401040, each of 16 bytes, in .symtab at the end of the file
// and, as dyn, in the dynamic symbols. Its text is at offset 0x1000.
func testProgram() []byte {
	const size = 0x3000
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint64(b[32:], 64)     // program headers
	le.PutUint64(b[40:], 0x2800) // section headers
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 2)
	program := func(i int, kind elf.ProgType, off, vaddr, n uint64) {
		p := b[64+56*i:]
		le.PutUint32(p, uint32(kind))
		le.PutUint32(p[4:], uint32(elf.PF_X|elf.PF_R))
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], vaddr)
		le.PutUint64(p[32:], n)
	}
	program(0, elf.PT_LOAD, 0, 0x400000, 0x2000)
	program(1, elf.PT_DYNAMIC, 0x200, 0x400200, 64)
	symbol := func(at int, name uint32, value uint64) {
		le.PutUint32(b[at:], name)
		b[at+4] = byte(elf.STT_FUNC)
		le.PutUint16(b[at+6:], 1)
		le.PutUint64(b[at+8:], value)
		le.PutUint64(b[at+16:], 16)
	}
	symbol(0x300, 1, 0x401000)
	copy(b[0x318:], "\x00dyn\x00")
	for i, d := range [][2]uint64{{uint64(elf.DT_SYMTAB), 0x400300}, {uint64(elf.DT_STRTAB), 0x400318}, {uint64(elf.DT_STRSZ), 5}} {
		le.PutUint64(b[0x200+16*i:], d[0])
		le.PutUint64(b[0x208+16*i:], d[1])
	}
	symbol(0x2000, 5, 0x401040)
	symbol(0x2018, 1, 0x401000)
	copy(b[0x2100:], "\x00one\x00tw\x1bo\x00")
	section := func(i int, kind elf.SectionType, off, n uint64, link uint32) {
		s := b[0x2800+64*i:]
		le.PutUint32(s[4:], uint32(kind))
		le.PutUint64(s[24:], off)
		le.PutUint64(s[32:], n)
		le.PutUint32(s[40:], link)
	}
	section(0, elf.SHT_SYMTAB, 0x2000, 48, 1)
	section(1, elf.SHT_STRTAB, 0x2100, 10, 0)
	return b
}

var errMissing = errors.New("not there")

// A cut is a file whose end cannot be read.
type cut struct {
	io.ReaderAt
	end int64
}

func (c cut) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > c.end {
		return 0, errMissing
	}
	return c.ReaderAt.ReadAt(p, off)
}

func TestFunctionsOfAProgram(t *testing.T) {
	whole := bytes.NewReader(testProgram())
	for _, c := range []struct {
		what string
		file io.ReaderAt
		off  uint64
		want string
	}{
		{"the whole file", whole, 0x1008, "one"}, {"the whole file", whole, 0x1040, "tw\x1bo"},
		{"between functions", whole, 0x1020, ""}, {"outside of what is loaded", whole, 0x2500, ""},
		{"the file's end is not in memory", cut{whole, 0x2000}, 0x1008, "dyn"},
	} {
		p, err := Read(c.file)
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		got := ""
		if addr, ok := p.Addr(c.off); ok {
			fn, _ := p.Function(addr)
			got = fn.Name
		}
		if got != c.want {
			t.Errorf("%s: at %#x is %q, want %q", c.what, c.off, got, c.want)
		}
	}
	if _, err := Read(cut{whole, 32}); !errors.Is(err, errMissing) {
		t.Errorf("without its first page: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(testProgram(), uint64(0x1008))
	f.Fuzz(func(t *testing.T, b []byte, off uint64) {
		p, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(p.Functions) > len(b)/8 {
			t.Errorf("%d functions in %d bytes", len(p.Functions), len(b))
		}
		addr, _ := p.Addr(off)
		fn, _ := p.Function(addr)
		Demangle(fn.Name)
		p.ReadAt(make([]byte, 8), addr)
	})
}

// build makes a Go program with the linker's flags.
func build(t *testing.T, ldflags string) *os.File {
	t.Helper()
	dir := t.TempDir()
	source := "package main\n\nimport \"os\"\n\n//go:noinline\nfunc Answer() int { return 42 }\n\nfunc main() { os.Exit(Answer()) }\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-ldflags", ldflags, "-o", "main", "main.go")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(filepath.Join(dir, "main"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestAStrippedGoProgramHasItsFunctions compares what Go's own table says with the symbols of the same program.
func TestAStrippedGoProgramHasItsFunctions(t *testing.T) {
	whole, err := Read(build(t, "-B gobuildid"))
	if err != nil {
		t.Fatal(err)
	}
	stripped, err := Read(build(t, "-B gobuildid -s -w"))
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.BuildID) == 0 || len(stripped.BuildID) == 0 {
		t.Errorf("build ids %x and %x", whole.BuildID, stripped.BuildID)
	}
	if len(stripped.Functions) < 1000 {
		t.Fatalf("%d functions; with symbols %d", len(stripped.Functions), len(whole.Functions))
	}
	different := 0
	for _, fn := range stripped.Functions {
		if got, ok := whole.Function(fn.Addr); !ok || strings.TrimSuffix(got.Name, ".abi0") != fn.Name {
			t.Logf("%#x: %q in Go's table, %q in the symbols", fn.Addr, fn.Name, got.Name)
			different++
		}
	}
	if different > len(stripped.Functions)/100 {
		t.Errorf("%d of %d functions have other names", different, len(stripped.Functions))
	}
	found := false
	for _, fn := range stripped.Functions {
		found = found || fn.Name == "main.Answer" && fn.Size > 0
	}
	if !found {
		t.Error("main.Answer is not among them")
	}
}

func TestTheBestOfSeveralNamesIsShown(t *testing.T) {
	f := &File{Functions: []Function{
		{Addr: 16, Size: 8, Name: "__local", rank: rank([]byte("__local"), elf.STB_LOCAL, 8)},
		{Addr: 16, Size: 8, Name: "global", rank: rank([]byte("global"), elf.STB_GLOBAL, 8)},
		{Addr: 16, Size: 8, Name: "weak", rank: rank([]byte("weak"), elf.STB_WEAK, 8)},
		{Addr: 24, Name: "label", rank: rank([]byte("label"), elf.STB_GLOBAL, 0)},
		{Addr: 40, Size: 1, Name: "next"},
	}, Loads: []Load{{Addr: 0, Size: 64, Exec: true}}}
	f.sort()
	for addr, want := range map[uint64]string{15: "", 16: "global", 23: "global", 24: "label", 39: "label", 40: "next", 41: ""} {
		if fn, _ := f.Function(addr); fn.Name != want {
			t.Errorf("at %d is %q, want %q", addr, fn.Name, want)
		}
	}
}

func TestNamesOfProgrammers(t *testing.T) {
	for in, want := range map[string]string{
		"main": "main", "_ZN3foo3barEi": "foo::bar", "_RNvCs1234_7mycrate3foo": "mycrate::foo", "_Z": "_Z", "runtime.main": "runtime.main",
	} {
		if got := Demangle(in); got != want {
			t.Errorf("%s is %q, want %q", in, got, want)
		}
	}
}
