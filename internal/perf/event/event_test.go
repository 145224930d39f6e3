package event

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/perf/data"
)

// burn works for an amount of the process's CPU time.
//
//go:noinline
func burn(d time.Duration) (n uint64) {
	for until := used() + d; used() < until; {
		for i := range uint64(100_000) {
			n += i * i
		}
	}
	return n
}

func used() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// now is the clock of the samples.
func now() uint64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return uint64(t.Nano())
}

func session(t *testing.T, c Config) *Session {
	t.Helper()
	s, err := Open(c)
	if errors.Is(err, ErrForbidden) {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSamplesOfAProcessSayWhoAndWhere(t *testing.T) {
	s := session(t, Config{Hz: 999, PIDs: []int{os.Getpid()}, Chains: true})
	t.Logf("by %s, kernel %v", s.Event, s.Kernel)
	begin := now()
	burn(200 * time.Millisecond)
	samples, here := 0, 0
	if err := s.Read(func(r *data.Record) {
		if r.Type != data.RecordSample {
			return
		}
		samples++
		if int(r.PID) != os.Getpid() || r.Time < begin || r.Time > now() || r.Period == 0 {
			t.Errorf("%+v: process %d, time from %d to %d", r, os.Getpid(), begin, now())
		}
		for _, ip := range r.Chain {
			if f := runtime.FuncForPC(uintptr(ip)); f != nil && f.Name() == "vitrine.dev/vitrine/internal/perf/event.burn" {
				here++
				break
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	if samples < 20 || here < samples/2 {
		t.Errorf("%d samples in 0.2 s of work at 999 Hz, %d of them below burn", samples, here)
	}
}

func TestANewProcessIsFollowed(t *testing.T) {
	s := session(t, Config{Hz: 99, PIDs: []int{os.Getpid()}})
	cmd := exec.Command("/bin/sh", "-c", "true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var kinds []uint32
	comm := ""
	if err := s.Read(func(r *data.Record) {
		kinds = append(kinds, r.Type)
		if r.Type == data.RecordComm && r.Exec && int(r.PID) == cmd.Process.Pid {
			comm = r.Name
		}
	}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []uint32{data.RecordFork, data.RecordMmap2, data.RecordExit} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("no record of type %d in %v", kind, kinds)
		}
	}
	if comm != "sh" {
		t.Errorf("the child's exec is called %q", comm)
	}
}

// TestAFullBufferIsCounted lets a small buffer run over, again and again, so that records also go round its end.
func TestAFullBufferIsCounted(t *testing.T) {
	s := session(t, Config{Hz: 20_000, PIDs: []int{os.Getpid()}, Chains: true, Pages: 1})
	samples, lost := 0, uint64(0)
	for range 10 {
		burn(50 * time.Millisecond)
		if err := s.Read(func(r *data.Record) {
			switch r.Type {
			case data.RecordSample:
				samples++
			case data.RecordLost:
				lost += r.Lost
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if samples == 0 || lost == 0 {
		t.Errorf("%d samples, %d lost", samples, lost)
	}
}

func TestNobodyToSampleIsAnError(t *testing.T) {
	for _, c := range []Config{{Hz: 0}, {Hz: 99, PIDs: []int{1 << 30}}, {Hz: 99, Pages: 3}} {
		if s, err := Open(c); err == nil {
			s.Close()
			t.Errorf("Open(%+v) works", c)
		}
	}
}

func TestListsOfCPUs(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []int
	}{{"0", []int{0}}, {"0-2,5", []int{0, 1, 2, 5}}, {"", nil}, {"3-1", nil}, {"0-99999999", nil}, {"x", nil}} {
		got, err := parseList(c.in)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%q: %v, %v", c.in, got, err)
		}
	}
}
