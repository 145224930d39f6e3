package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// manySleepers makes 1,000 processes in the guest, and touches memory, so that there is some to search.
const manySleepers = `i=0; while [ $i -lt 1000 ]; do sleep 100000 & i=$((i+1)); done; dd if=/dev/zero of=/tmp/fill bs=1M count=600 2>/dev/null; echo ready; wait`

// see measures what it costs to look into a guest from outside: the oldest and the newest kernel that are to be had.
func (b *bench) see() error {
	for _, suite := range []string{"bookworm", "trixie-backports"} {
		k, err := kernel.FetchSuite(b.ctx, kernel.SuiteOptions{Suite: suite})
		if err != nil {
			fmt.Printf("%s: %v\n", suite, err)
			continue
		}
		if err := b.seeInto(k); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) seeInto(k *kernel.Kernel) error {
	e, stop, err := b.startGuest("see", k.Path, "--cpus", "2", "--memory", "1G", "--", "sh", "-c", manySleepers)
	if err != nil {
		return err
	}
	defer stop()
	c, err := control.Dial(e)
	if err != nil {
		return err
	}
	defer c.Close()
	t, err := c.Target()
	if err != nil {
		return err
	}
	defer t.Close()
	resident := uint64(0)
	for a := mem.Addr(0); ; {
		start, size, ok := t.NextData(a)
		if !ok {
			break
		}
		resident, a = resident+size, start+mem.Addr(size)
	}
	var (
		open  = newSeries("all symbols, by registers, first look")
		again = newSeries("the same, kept from before")
		types = newSeries("types (BTF), first look")
		kept  = newSeries("the same, kept from before")
		ps    = newSeries("ps, all processes")
		blind = newSeries("all symbols, by memory alone, first look")
		both  = newSeries("the same, kept from before")
	)
	n := 0
	for range b.runs {
		dir, err := os.MkdirTemp(b.dir, "seen-")
		if err != nil {
			return err
		}
		look := func(s *series, t guest.Target) (g *guest.Kernel) {
			if err == nil { // each time as another program would: with nothing but the files
				s.add(milliseconds(func() { g, err = guest.NewCache(dir).Open(t) }))
			}
			return g
		}
		g := look(open, t)
		if err != nil {
			return err
		}
		types.add(milliseconds(func() { g.BTF() }))
		if g = look(again, t); err != nil {
			return err
		}
		kept.add(milliseconds(func() { g.BTF() }))
		ps.add(milliseconds(func() {
			all, err := g.Processes(false)
			if err == nil {
				n = len(all)
			}
		}))
		look(both, noRegisters{t})
		if dir, err = os.MkdirTemp(b.dir, "seen-"); err == nil {
			look(blind, noRegisters{t})
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("Kernel %s, 2 CPUs, %d MiB resident, %d processes; CPU time of the whole tool.\n\n", k.Release, resident>>20, n)
	table(open, again, types, kept, ps, blind, both)
	fmt.Println()
	return nil
}

func newSeries(name string) *series { return &series{name: name, unit: "ms"} }

// noRegisters is a guest of which only memory is known.
type noRegisters struct{ *control.Target }

func (noRegisters) CPU(int, *x86.Regs) error { return guest.ErrNoRegisters }

// milliseconds is the CPU time of all of this process's threads that fn takes.
func milliseconds(fn func()) float64 {
	runtime.GC()
	was := cpuTime()
	fn()
	return float64(cpuTime()-was) / 1e6
}

func cpuTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// startGuest runs a guest of the given name until it says "ready" on its standard output, in a registry of this program's own.
func (b *bench) startGuest(name, kernelPath string, args ...string) (*host.Entry, func(), error) {
	runtimeDir := filepath.Join(b.dir, "run")
	os.Setenv("XDG_RUNTIME_DIR", runtimeDir)
	if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
		return nil, nil, err
	}
	all := append([]string{"run", "-q", "--accel", "soft", "--name", name, "--kernel", kernelPath}, args...)
	cmd := exec.CommandContext(b.ctx, b.vitrine, all...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	said := make([]byte, 0, 64)
	for !strings.Contains(string(said), "ready") {
		var p [64]byte
		n, err := out.Read(p[:])
		if said = append(said, p[:n]...); err != nil || len(said) > 1<<16 {
			stop()
			return nil, nil, errors.New("the guest ended before it was ready")
		}
	}
	e, err := host.Find(name)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return e, stop, nil
}
