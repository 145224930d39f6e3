package boot

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"slices"
	"testing"

	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// realKernel is a distribution's bzImage: VITRINE_TEST_KERNEL, or what `vitrine run` would boot.
func realKernel(t *testing.T) *Image {
	t.Helper()
	path := os.Getenv("VITRINE_TEST_KERNEL")
	if path == "" {
		k, err := kernel.Find(t.Context(), kernel.Options{Progress: func(l string) { t.Log(l) }})
		if err != nil {
			t.Fatalf("a real kernel is needed: %v", err)
		}
		path = k.Path
	}
	im, err := Open("kernel", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

func newRAM(t testing.TB, size uint64) *mem.Memory {
	t.Helper()
	ram, err := mem.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	return ram
}

// vmlinuxOf is the payload of a kernel: its ELF file and what follows.
func vmlinuxOf(t *testing.T, k *Image) (*unpacked, *elfFile) {
	t.Helper()
	head := make([]byte, headSize)
	if err := readFull(k, head, 0); err != nil {
		t.Fatal(err)
	}
	h, err := parseSetup(head, k.Size)
	if err != nil {
		t.Fatal(err)
	}
	u, err := unpackAnonymous(io.NewSectionReader(k, h.payload, h.payloadSize), maxUnpacked)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	e, err := parseELF(u, u.size)
	if err != nil {
		t.Fatal(err)
	}
	return u, e
}

func TestRealKernelWithoutKASLRIsItsELF(t *testing.T) {
	k := realKernel(t)
	ram := newRAM(t, 512<<20)
	s, f, err := Load(ram, Config{Kernel: k, CommandLine: "nokaslr", Log: func(l string) { t.Error(l) }})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := vmlinuxOf(t, k)
	ef, err := elf.NewFile(u)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ef.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		want := make([]byte, p.Filesz)
		if _, err := io.ReadFull(p.Open(), want); err != nil {
			t.Fatal(err)
		}
		got, err := ram.Slice(mem.Addr(p.Paddr), p.Filesz)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("segment at %#x differs (%v)", p.Paddr, err)
		}
	}
	if s.RIP != ef.Entry || s.GPR[x86.RSI] != uint64(zeroPage) || f.Offset != 0 {
		t.Errorf("RIP %#x, RSI %#x, offset %#x; want %#x, %#x, 0", s.RIP, s.GPR[x86.RSI], f.Offset, ef.Entry, zeroPage)
	}
	if z := ram.Load32(zeroPage + 0x210); z>>8&loadKASLR != 0 {
		t.Error("the zero page says KASLR")
	}
	t.Logf("%+v", *f)
}

// A kernel moved by delta differs from the one that was not exactly at the places of the table, and there by delta.
func TestRealKernelWithKASLRDiffersByItsTableOnly(t *testing.T) {
	k := realKernel(t)
	plain, moved := newRAM(t, 512<<20), newRAM(t, 512<<20)
	_, f0, err := Load(plain, Config{Kernel: k, CommandLine: "nokaslr"})
	if err != nil {
		t.Fatal(err)
	}
	_, f, err := Load(moved, Config{Kernel: k, Random: func(n uint64) uint64 { return n - 1 }, Log: func(l string) { t.Error(l) }})
	if err != nil {
		t.Fatal(err)
	}
	if f.Offset == 0 || f.Physical == f0.Physical {
		t.Fatalf("not moved: %+v", *f)
	}
	want, _ := plain.Slice(f0.Physical, f0.Size)
	got, _ := moved.Slice(f.Physical, f.Size)
	u, e := vmlinuxOf(t, k)
	p := make([]byte, u.size-e.end)
	if err := readFull(u, p, e.end); err != nil {
		t.Fatal(err)
	}
	table, err := parseRelocs(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v: relocations: %d of 8 bytes, %d inverse, %d of 4 bytes", *f, len(table.abs64), len(table.inverse), len(table.abs32))
	back := slices.Clone(got)
	if err := table.apply(back, uint64(f0.Physical), -f.Offset); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back, want) {
		t.Error("moved back, it is not what it was")
	}
	differ := 0
	for i := 0; i+8 <= len(got); i += 8 {
		if !bytes.Equal(got[i:i+8], want[i:i+8]) {
			differ++
		}
	}
	if differ < len(table.abs64) {
		t.Errorf("%d words differ, the table has %d of 8 bytes", differ, len(table.abs64))
	}
	if z := moved.Load32(zeroPage + 0x210); z>>8&loadKASLR == 0 {
		t.Error("the zero page does not say KASLR: the kernel would not randomise its memory regions")
	}
}
