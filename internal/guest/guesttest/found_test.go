package guesttest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/guest/dump"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// secondLook opens the kernel with a cache, twice.
func secondLook(t *testing.T, g live, k *guest.Kernel) {
	dir := t.TempDir()
	for look := range 2 {
		cached, err := guest.NewCache(dir).Open(g)
		if err != nil {
			t.Fatal(err)
		}
		same(t, kallsyms(cached), kallsyms(k))
		if cached.BTF() == nil != (k.BTF() == nil) {
			t.Errorf("look %d: BTF was there once and once not", look+1)
		}
		kept, err := filepath.Glob(filepath.Join(dir, "*.symbols"))
		if err != nil || len(kept) != 1 {
			t.Errorf("look %d: %d kernels are kept, want 1 (%v)", look+1, len(kept), err)
		}
	}
}

// fromDump finds the kernel in a dump of the guest.
func fromDump(t *testing.T, g live, k *guest.Kernel) {
	f, err := os.CreateTemp(t.TempDir(), "core")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := dump.Write(f, g, k); err != nil {
		t.Fatal(err)
	}
	d, err := dump.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	again(t, k, d)
}

func sameUptime(t *testing.T, k *guest.Kernel, said string) {
	was, _, _ := strings.Cut(said, " ")
	s, _ := strconv.ParseFloat(was, 64)
	if up := k.Uptime().Seconds(); up < s || up > s+120 {
		t.Errorf("up for %.2f s, the guest said %.2f", up, s)
	}
}

// blind is a guest without registers, and perhaps without what tells at a glance where its kernel is: VMCOREINFO, and a banner where it is looked for.
type blind struct {
	live
	hidden bool
}

func (b blind) CPU(int, *x86.Regs) error { return guest.ErrNoRegisters }

func (b blind) ReadPhys(p []byte, a mem.Addr) (int, error) {
	n, err := b.live.ReadPhys(p, a)
	if !b.hidden || n < 1024 { // smaller pieces are of what has been found
		return n, err
	}
	for _, word := range []string{"OSRELEASE=", "Linux version "} {
		for rest := p[:n]; ; {
			i := bytes.Index(rest, []byte(word))
			if i < 0 {
				break
			}
			rest[i] = 'X'
			rest = rest[i+1:]
		}
	}
	return n, err
}

// mortal is a guest whose CPUs run a process that ends: the root of their page tables is a copy at a place of its own.
type mortal struct {
	live
	root []byte
}

const mortalRoot = 1 << 40

func (m *mortal) CPU(i int, r *x86.Regs) error {
	err := m.live.CPU(i, r)
	m.root = make([]byte, mem.PageSize)
	m.live.ReadPhys(m.root, mem.Addr(r.CR3&^0xFFF))
	r.CR3 = mortalRoot
	return err
}

func (m *mortal) ReadPhys(p []byte, a mem.Addr) (int, error) {
	if a >= mortalRoot && a < mortalRoot+mem.PageSize {
		return copy(p, m.root[a-mortalRoot:]), nil
	}
	return m.live.ReadPhys(p, a)
}

// outlives demands that a process's end does not take the kernel with it.
func outlives(t *testing.T, g live) {
	m := &mortal{live: g}
	k, err := guest.Open(m)
	if err != nil {
		t.Fatal(err)
	}
	clear(m.root)
	if all, err := k.Processes(false); err != nil || len(all) < 20 {
		t.Errorf("%d processes, %v", len(all), err)
	}
}

// again demands that the same kernel is found another way.
func again(t *testing.T, want *guest.Kernel, target guest.Target) {
	k, err := guest.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if k.Text != want.Text || k.Banner != want.Banner {
		t.Errorf("%q at %#x, want %q at %#x", k.Banner, k.Text, want.Banner, want.Text)
	}
	same(t, kallsyms(k), kallsyms(want))
	if all, err := k.Processes(false); err != nil || len(all) < 20 {
		t.Errorf("%d processes, %v", len(all), err)
	}
}

// same demands equal texts and shows the first lines that are not. It gives the number of lines.
func same(t *testing.T, got, want string) int {
	t.Helper()
	if got == want {
		return strings.Count(got, "\n")
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	t.Errorf("%d lines from memory, the guest says %d", len(g), len(w))
	shown := 0
	for i := 0; i < min(len(g), len(w)) && shown < 5; i++ {
		if g[i] != w[i] {
			t.Errorf("line %d: %q, the guest says %q", i+1, g[i], w[i])
			shown++
		}
	}
	return len(g) - 1
}

func kallsyms(k *guest.Kernel) string {
	var b strings.Builder
	for _, s := range k.Kallsyms() {
		fmt.Fprintf(&b, "%016x %c %s", s.Addr, s.Type, s.Name)
		if s.Module != "" {
			fmt.Fprintf(&b, "\t[%s]", s.Module)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// modulesOf is /proc/modules as memory has it.
func modulesOf(t *testing.T, k *guest.Kernel) string {
	all, err := k.Modules()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range all {
		users := "-"
		if len(m.UsedBy) > 0 {
			users = strings.Join(m.UsedBy, ",") + ","
		}
		fmt.Fprintf(&b, "%s %d %d %s %s 0x%016x\n", m.Name, m.Size, m.Refs, users, m.State, m.Address)
	}
	return b.String()
}

// firstFields cuts each line behind its first n words.
func firstFields(text string, n int) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		b.WriteString(strings.Join(f[:min(n, len(f))], " ") + "\n")
	}
	return b.String()
}

func logOf(t *testing.T, k *guest.Kernel) string {
	all, err := k.Log(0)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range all {
		us := m.Time.Microseconds()
		fmt.Fprintf(&b, "[%5d.%06d] %s\n", us/1e6, us%1e6, m.Text)
	}
	return b.String()
}
