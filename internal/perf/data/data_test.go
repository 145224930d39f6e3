package data

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// wrote makes a file of one guest with two vCPUs: its kernel, a process, n samples a millisecond apart.
func wrote(t testing.TB, n int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "perf.data")
	kallsyms := filepath.Join(dir, "kcore_dir__4242")
	if err := os.MkdirAll(kallsyms, 0o755); err != nil {
		t.Fatal(err)
	}
	symbols := "ffffffff81000000 T _stext\nffffffff81000100 T vfs_read\nffffffff81000200 T do_syscall_64\nffffffff81001000 T _etext\n"
	if err := os.WriteFile(filepath.Join(kallsyms, "kallsyms"), []byte(symbols), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriter(f, Host{Name: "host", Release: "6.1", Version: "1", CPUs: 2, Cmdline: []string{"vitrine", "perf", "record"}}, 1000,
		[]ID{{ID: 7, CPU: -1, TID: -1, Machine: 4242, VCPU: 0}, {ID: 8, CPU: -1, TID: -1, Machine: 4242, VCPU: 1}})
	if err != nil {
		t.Fatal(err)
	}
	w.Mmap(MiscGuestKernel, Task{ID: 7, Time: 1}, 0xffffffff81000000, 0x1000, 0xffffffff81000000, "[kernel.kallsyms]_stext")
	w.Comm(MiscGuestUser, Task{PID: 12, TID: 12, ID: 7, Time: 1}, "prog")
	w.Mmap2(MiscGuestUser, Task{PID: 12, TID: 12, ID: 7, Time: 1}, 0x400000, 0x2000, 0, "/bin/prog", []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	for i := range n {
		chain := []uint64{ContextKernel, 0xffffffff81000110, 0xffffffff81000220, ContextUser, 0x401234}
		if err := w.Sample(MiscGuestKernel, Task{PID: 12, TID: 12, Time: uint64(i+2) * 1e6, CPU: uint32(i % 2), ID: uint64(7 + i%2)}, 0xffffffff81000110, 1e6, chain); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// all reads every record of a file, and the error behind them.
func all(t testing.TB, b []byte) (list []Record, d *Reader, err error) {
	t.Helper()
	d, err = NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, nil, err
	}
	for r, e := range d.Records() {
		if e != nil {
			return list, d, e
		}
		c := *r
		c.Chain = append([]uint64(nil), r.Chain...)
		list = append(list, c)
	}
	return list, d, nil
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	records, d, err := all(t, read(t, filepath.Join(wrote(t, 3000), "data")))
	if err != nil {
		t.Fatal(err)
	}
	if d.Host.Name != "host" || len(d.Host.Cmdline) != 3 || d.Host.CPUs != 2 || d.Attrs[0].EventName() != "cpu-clock" || !d.Attrs[0].Freq {
		t.Errorf("host %+v, events %+v", d.Host, d.Attrs)
	}
	if id := d.IDs[8]; id.Machine != 4242 || id.VCPU != 1 {
		t.Errorf("id 8 is %+v", id)
	}
	samples := 0
	for _, r := range records {
		switch r.Type {
		case RecordSample:
			if r.IP != 0xffffffff81000110 || len(r.Chain) != 5 || r.Chain[4] != 0x401234 || r.PID != 12 || r.Period != 1e6 || r.Mode() != MiscGuestKernel ||
				r.Time != uint64(samples+2)*1e6 || r.ID != uint64(7+samples%2) {
				t.Fatalf("sample %d is %+v", samples, r)
			}
			samples++
		case RecordComm:
			if r.Name != "prog" || r.PID != 12 {
				t.Errorf("comm %+v", r)
			}
		case RecordMmap2:
			if r.Name != "/bin/prog" || r.Addr != 0x400000 || len(r.BuildID) != 20 || r.BuildID[19] != 20 || !r.Exec || r.ID != 7 {
				t.Errorf("mmap2 %+v", r)
			}
		case RecordMmap:
			if r.Name != "[kernel.kallsyms]_stext" || r.Size != 0x1000 {
				t.Errorf("mmap %+v", r)
			}
		}
	}
	if samples != 3000 {
		t.Errorf("%d samples", samples)
	}
}

// perf is Debian's.
func perf(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("perf")
	if err != nil {
		t.Skip("no perf here: apt-get install linux-perf")
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PERF_PAGER=cat", "HOME="+cmd.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("perf %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPerfNamesTheGuestsFunctions(t *testing.T) {
	dir := wrote(t, 20)
	script := perf(t, "script", "-i", dir, "-F", "+machine_pid,+vcpu")
	for _, want := range []string{"4242 VCPU:001 prog", "vfs_read", "do_syscall_64", "1234 [unknown] (/bin/prog)", "cpu-clock"} {
		if !strings.Contains(script, want) {
			t.Errorf("perf script says no %q:\n%.2000s", want, script)
		}
	}
	report := perf(t, "report", "-i", dir, "--stdio", "--no-children", "-g", "none")
	if !strings.Contains(report, "100.00%") || !strings.Contains(report, "[g] vfs_read") {
		t.Errorf("perf report:\n%s", report)
	}
	if report := perf(t, "kvm", "--guest", "report", "-i", dir, "--stdio"); !strings.Contains(report, "vfs_read") {
		t.Errorf("perf kvm report:\n%s", report)
	}
}

func TestFilesOfPerfRecordAreRead(t *testing.T) {
	for _, flags := range [][]string{{"-g"}, {"-g", "-z"}, {"-c", "100000"}, {"-e", "cpu-clock,task-clock", "-g"}} {
		path := filepath.Join(t.TempDir(), "perf.data")
		args := append([]string{"record", "-q", "-o", path}, flags...)
		if flags[0] != "-e" {
			args = append(args, "-e", "cpu-clock")
		}
		perf(t, append(args, "--", "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")...)
		records, d, err := all(t, read(t, path))
		if err != nil {
			t.Errorf("%v: %v", flags, err)
			continue
		}
		var samples, chains, comms, maps int
		var last uint64
		for _, r := range records {
			switch r.Type {
			case RecordSample:
				samples++
				if len(r.Chain) > 0 {
					chains++
				}
				if r.Time < last {
					t.Errorf("%v: a sample at %d behind one at %d", flags, r.Time, last)
				}
				last = r.Time
			case RecordComm:
				comms++
			case RecordMmap, RecordMmap2:
				maps++
			}
		}
		want := strings.Count(perf(t, "script", "-i", path, "-F", "event", "-G"), "clock")
		if samples != want || samples == 0 || comms == 0 || maps == 0 || (chains == 0) != (flags[0] == "-c") {
			t.Errorf("%v: %d samples (perf script has %d), %d with chains, %d comms, %d maps", flags, samples, want, chains, comms, maps)
		}
		if !strings.HasPrefix(d.Attrs[0].EventName(), "cpu-clock") || d.Host.Name == "" || len(d.BuildIDs) == 0 && flags[len(flags)-1] != "-z" {
			t.Errorf("%v: event %q, host %+v, %d build ids", flags, d.Attrs[0].EventName(), d.Host, len(d.BuildIDs))
		}
	}
}

func TestAFileCutAnywhereGivesWhatCameBefore(t *testing.T) {
	whole := read(t, filepath.Join(wrote(t, 500), "data"))
	_, d, err := all(t, whole)
	if err != nil {
		t.Fatal(err)
	}
	last := -1
	for cut := len(whole); cut > 0; cut -= 997 {
		records, _, err := all(t, whole[:cut])
		switch {
		case cut < int(d.data.off) && err == nil:
			t.Fatalf("cut at %d of a head of %d: no error", cut, d.data.off)
		case cut >= int(d.data.off) && err != nil && !errors.Is(err, ErrTruncated):
			t.Fatalf("cut at %d: %v", cut, err)
		case last >= 0 && len(records) > last:
			t.Fatalf("cut at %d: %d records, more than in a longer file", cut, len(records))
		}
		last = len(records)
	}
}

func TestAKilledWriterLeavesWhatItFlushed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriter(f, Host{Name: "h"}, 99, []ID{{ID: 1, CPU: -1, TID: -1}})
	if err != nil {
		t.Fatal(err)
	}
	sample := func() { w.Sample(MiscUser, Task{PID: 1, TID: 1, Time: 5, ID: 1}, 16, 1, []uint64{ContextUser, 16}) }
	for range 10 {
		sample()
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		sample() // gathered, never flushed
	}
	records, _, err := all(t, read(t, path))
	if err != nil || len(records) != 11 { // with the index of ids
		t.Errorf("%d records, error %v; want 11", len(records), err)
	}
}

func TestRoundsOfSeveralProcessorsComeInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriter(f, Host{}, 99, []ID{{ID: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 50 {
		for cpu := range 4 {
			for i := range 10 {
				w.Sample(MiscUser, Task{Time: uint64(1000*round + 10*i + cpu + 1), CPU: uint32(cpu), ID: 1}, 1, 1, nil)
			}
		}
		w.done(w.record(RecordFinishedRound, 0))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	records, _, err := all(t, read(t, path))
	if err != nil || len(records) != 2001 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	for i := 2; i < len(records); i++ {
		if records[i].Time < records[i-1].Time {
			t.Fatalf("record %d at %d comes behind %d", i, records[i].Time, records[i-1].Time)
		}
	}
}

func FuzzReader(f *testing.F) {
	b := read(f, filepath.Join(wrote(f, 4), "data"))
	f.Add(b)
	f.Add(b[:headerSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		n := 0
		for r, err := range d.Records() {
			if err == nil && len(r.Chain) > maxRecord/8 {
				t.Errorf("a chain of %d entries", len(r.Chain))
			}
			if n++; n > len(b) {
				t.Fatalf("more than %d records in %d bytes", n, len(b))
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	file := read(b, filepath.Join(wrote(b, 200_000), "data"))
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		d, err := NewReader(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			b.Fatal(err)
		}
		for _, err := range d.Records() {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}
