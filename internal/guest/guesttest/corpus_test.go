package guesttest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/x86"
)

func TestMain(m *testing.M) {
	vitrine.GuestMain()
	status := m.Run()
	table.print()
	os.Exit(status)
}

// suites are Debian's whose kernels are looked into, and whether they are by default. Not every archive has all of them.
var suites = []struct {
	name      string
	byDefault bool
}{
	{"buster", false}, // 4.19
	{"buster-backports", false},
	{"bullseye", false}, // 5.10
	{"bullseye-backports", false},
	{"bookworm", false}, // 6.1
	{"bookworm-backports", false},
	{"trixie", false}, // 6.12
	{"trixie-backports", true},
	{"forky", false},
	{"sid", false},
	{"experimental", false},
}

// ways are such that of each two things that can be had or not, each kernel is booted with all four combinations.
var ways = []way{
	{"2 CPUs", "", 2, ""},
	{"1 CPU, nokaslr, 5 levels, PTI", "nokaslr pti=on", 1, "max,+la57"},
	{"2 CPUs, nokaslr, PTI", "nokaslr pti=on", 2, ""},
	{"2 CPUs, 5 levels, PTI", "pti=on", 2, "max,+la57"},
	{"1 CPU, PTI", "pti=on", 1, ""},
	{"1 CPU, nokaslr", "nokaslr", 1, ""},
	{"1 CPU, 5 levels", "", 1, "max,+la57"},
	{"2 CPUs, nokaslr, 5 levels", "nokaslr", 2, "max,+la57"},
}

func TestMemorySaysWhatTheGuestSays(t *testing.T) {
	full := os.Getenv("VITRINE_TEST_FULL") == "1"
	t.Run("default", func(t *testing.T) { compare(t, "", ways[0]) })
	for _, s := range suites {
		if !full && !s.byDefault {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			k, err := kernel.FetchSuite(context.Background(), kernel.SuiteOptions{Suite: s.name, Progress: func(l string) { t.Log(l) }})
			if err != nil {
				table.row(s.name, "absent", err.Error())
				t.Skip(err)
			}
			if !full {
				compare(t, k.Path, ways[3])
				return
			}
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) { compare(t, k.Path, w) })
			}
		})
	}
}

// compare boots a guest and compares all that is read of it.
func compare(t *testing.T, kernelPath string, w way) {
	g, said := boot(t, kernelPath, w)
	k, err := guest.Open(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(k.Banner)
	release := strings.Fields(k.Banner)[2]
	row := &row{}
	t.Cleanup(func() { table.row(release, w.name, row.String()) })
	t.Run("the way it was booted", func(t *testing.T) { bootedAs(t, k, w, said) })
	t.Run("kallsyms", func(t *testing.T) { row.add(t, "symbols", same(t, kallsyms(k), said["kallsyms"])) })
	t.Run("types", func(t *testing.T) { sameTypes(t, k, said["btf"]) })
	t.Run("modules", func(t *testing.T) { row.add(t, "modules", same(t, modulesOf(t, k), firstFields(said["modules"], 6))) })
	t.Run("log", func(t *testing.T) {
		log := logOf(t, k) // it may have grown
		row.add(t, "log lines", same(t, log[:min(len(log), len(said["dmesg"]))], said["dmesg"]))
	})
	t.Run("uptime", func(t *testing.T) { sameUptime(t, k, said["uptime"]) })
	t.Run("processes", func(t *testing.T) { compareProcesses(t, g, k, said, row) })
	t.Run("starts", func(t *testing.T) { compareStarts(t, k, said) })
	t.Run("ps", func(t *testing.T) { comparePS(t, k, said["ps"], strings.TrimSpace(said["shell"])) })
	t.Run("sockets", func(t *testing.T) { compareSockets(t, k, said) })
	t.Run("the whole", func(t *testing.T) { compareSystem(t, g, k) })
	t.Run("a second look", func(t *testing.T) { secondLook(t, g, k) })
	t.Run("when a process has ended", func(t *testing.T) { outlives(t, g) })
	if strings.Contains(w.words, "pti=on") {
		t.Run("by a user's page tables", func(t *testing.T) { again(t, k, inUser{g}) })
	}
	t.Run("without registers", func(t *testing.T) { again(t, k, blind{g, false}) })
	t.Run("by page tables alone", func(t *testing.T) { again(t, k, blind{g, true}) })
	t.Run("from a dump", func(t *testing.T) { fromDump(t, g, k) })
	t.Run("a panic", func(t *testing.T) { panics(t, g, k) })
}

// bootedAs demands that the guest runs as it was to.
func bootedAs(t *testing.T, k *guest.Kernel, w way, said said) {
	flags := strings.Fields(said["flags"])
	_, err := k.Symbols.Lookup("__pgtable_l5_enabled") // absent without CONFIG_X86_5LEVEL, as in Debian's 5.10
	for _, c := range []struct {
		what      string
		got, want bool
	}{
		{"5-level page tables", slices.Contains(flags, "la57"), strings.Contains(w.cpu, "la57") && err == nil},
		{"page-table isolation", slices.Contains(flags, "pti"), strings.Contains(w.words, "pti=on")},
		{"the place the kernel was linked for", k.Text == 0xffffffff81000000, strings.Contains(w.words, "nokaslr")},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

// sameTypes compares the kernel's BTF with what /sys/kernel/btf/vmlinux holds, by its SHA-256.
func sameTypes(t *testing.T, k *guest.Kernel, want string) {
	var at [2]uint64
	for i, name := range []string{"__start_BTF", "__stop_BTF"} {
		s, err := k.Symbols.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		at[i] = s.Addr
	}
	raw := make([]byte, at[1]-at[0])
	if err := k.ReadAt(raw, at[0]); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x  -\n", sha256.Sum256(raw)); got != want || k.BTF() == nil {
		t.Errorf("SHA-256 %s, the guest says %s; read: %v", got, want, k.BTF() != nil)
	}
}

// inUser is a guest under page-table isolation whose CPUs are all in user code: their page tables have the kernel's entry alone.
type inUser struct{ live }

func (u inUser) CPU(i int, r *x86.Regs) error {
	err := u.live.CPU(i, r)
	r.CR3 |= 1 << 12 // arch/x86/entry/calling.h, PTI_USER_PGTABLE_BIT
	return err
}

// table is what the corpus found, to be printed at its end.
var table = &results{}

type results struct{ rows [][3]string }

func (r *results) row(kernel, way, found string) {
	r.rows = append(r.rows, [3]string{kernel, way, found})
}

func (r *results) print() {
	if len(r.rows) == 0 || !testing.Verbose() {
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KERNEL\tWAY\tEQUAL")
	for _, row := range r.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\n", row[0], row[1], row[2])
	}
	w.Flush()
}

// A row counts what was compared with one guest.
type row struct{ parts []string }

func (r *row) add(t *testing.T, what string, n int) {
	if t.Failed() {
		what += " (NOT ALL)"
	}
	r.parts = append(r.parts, fmt.Sprintf("%d %s", n, what))
}

func (r *row) String() string { return strings.Join(r.parts, ", ") }
