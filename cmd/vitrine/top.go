package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/host/foreign"
	"vitrine.dev/vitrine/internal/perf"
	"vitrine.dev/vitrine/internal/x86"
)

type topFlags struct {
	once, json bool
	hz         int
	interval   time.Duration
	lines      int
}

func topVerb() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top [flags] [GUEST…]",
		Short: "shows guests' hottest functions, sampled from outside",
		Long: "Shows where guests' CPUs spend their time: kernel functions by name, user code by function where the program's symbols\n" +
			"are in the guest's page cache, else by process. Without a GUEST, all of the host's are shown as one.\n" +
			"The instruction pointers are sampled from outside, and the names come from the guest's memory: nothing is\n" +
			"copied from the guest or set up in it. Halted CPUs are counted as idle.\n\n" +
			"What a sample costs another program's guest: on KVM, a processor that works is stopped for some 50 µs, one that sleeps is let be;\n" +
			"QEMU without KVM is asked by QMP, 1 ms of its main loop for all processors, or, where it does not listen, not at all: its memory\n" +
			"is read, and there a place can be some blocks of code old.",
		Args: func(*cobra.Command, []string) error {
			if f.hz < 1 || f.hz > 1000 {
				return fmt.Errorf("top: --frequency %d is not between 1 and 1000", f.hz)
			}
			if f.interval < 100*time.Millisecond || f.interval > time.Hour {
				return fmt.Errorf("top: --interval %v is not between 100ms and 1h", f.interval)
			}
			if f.json && !f.once {
				return errors.New("top: --json prints one report: add --once")
			}
			return nil
		},
		ValidArgsFunction: anyNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if err := top(ctx, args, f, cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("top: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&f.once, "once", false, "print one report and end")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON (with --once): of one GUEST an object, else a list")
	cmd.Flags().IntVarP(&f.hz, "frequency", "F", 199, "samples per second and CPU")
	cmd.Flags().DurationVar(&f.interval, "interval", 2*time.Second, "how long to sample for a report")
	cmd.Flags().IntVarP(&f.lines, "lines", "n", 0, "functions to show (default: as many as fit)")
	return cmd
}

// A watched is a guest that top looks at.
type watched struct {
	*view
	entry *host.Entry
	top   *perf.Top
}

func watch(ctx context.Context, e *host.Entry) (*watched, error) {
	v, err := lookAt(ctx, e)
	if err != nil {
		return nil, err
	}
	return &watched{v, e, perf.NewTop(e.Name, v.Kernel)}, nil
}

// top shows the guests of these names until ctx is done or they have ended; without names all that there are at each time.
func top(ctx context.Context, names []string, f topFlags, out io.Writer) error {
	all := &watchList{}
	defer all.close()
	for _, name := range names {
		e, err := host.Find(name)
		if err != nil {
			return err
		}
		w, err := watch(ctx, e)
		if err != nil {
			return err
		}
		all.guests = append(all.guests, w)
	}
	for {
		if len(names) == 0 {
			if err := all.update(ctx); err != nil {
				return err
			}
		}
		err := all.sample(ctx, f, len(names) == 0)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		reports := all.reports()
		switch {
		case f.json && len(names) == 1:
			return indented(out, reports[0])
		case f.json:
			return indented(out, reports)
		case f.once:
			return writeTop(out, reports, all.passed, f.lines)
		}
		if err := redraw(out, reports, all.passed, f.lines); err != nil {
			return err
		}
		for _, w := range all.guests {
			w.top.Reset()
			w.Refresh()
		}
	}
}

// openKernel waits some seconds for a guest that is just booting: until then there is no kernel to be seen.
func openKernel(ctx context.Context, open func(context.Context) (*guest.Kernel, error)) (*guest.Kernel, error) {
	const wait, pause = 5 * time.Second, 250 * time.Millisecond
	for end := time.Now().Add(wait); ; {
		k, err := open(ctx)
		if err == nil || time.Now().After(end) {
			return k, err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, err
			}
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// sample fills w's counts for one interval.
func (w *watched) sample(ctx context.Context, f topFlags) error {
	if t, ok := w.target.(*foreign.Target); ok {
		return sampleOther(ctx, t, w.top, f)
	}
	c, err := control.Dial(w.entry)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	return c.Samples(f.hz, f.interval.Seconds(), func(all []control.Sample, lost int) error {
		w.top.Lost(lost)
		for _, s := range all {
			w.top.Add(perf.Sample{CPU: s.CPU, Running: s.Running, RIP: s.RIP, CR3: s.CR3, CPL: s.CPL})
		}
		return nil
	})
}

// sampleOther samples another VMM's guest.
func sampleOther(ctx context.Context, t *foreign.Target, top *perf.Top, f topFlags) error {
	if !t.Registers() {
		return errors.New("there is no way to its registers")
	}
	period := time.Second / time.Duration(f.hz)
	ticks := time.NewTicker(period)
	defer ticks.Stop()
	var r x86.Regs
	taken := 0
	end := time.Now().Add(f.interval)
	for now := time.Now(); now.Before(end); {
		for i := range t.NumCPU() {
			running, err := t.Sample(i, &r)
			if err != nil {
				if errors.Is(err, guest.ErrNoRegisters) {
					top.Lost(1)
					continue
				}
				return err
			}
			top.Add(perf.Sample{CPU: i, Running: running, RIP: r.RIP, CR3: r.CR3, CPL: r.CPL()})
		}
		taken++
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now = <-ticks.C:
		}
	}
	top.Lost(max(0, int(f.interval/period)-taken) * t.NumCPU())
	return nil
}

// redraw shows reports on a terminal in place of those before; elsewhere one behind the other.
func redraw(out io.Writer, all []perf.Report, passed []string, lines int) error {
	if f, ok := out.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			if lines == 0 {
				lines = max(1, int(ws.Row)-4-len(all)-len(passed))
			}
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
	}
	return writeTop(out, all, passed, lines)
}

// A topLine is a function of one of the guests.
type topLine struct {
	perf.Function
	guest string
	share float64 // of the samples of all guests
}

// writeTop prints reports as perf top does: of several guests as one picture. passed says whom it does not show.
func writeTop(out io.Writer, all []perf.Report, passed []string, lines int) error {
	var b strings.Builder
	total := 0
	for _, r := range all {
		total += r.Samples
		idle := 100 * float64(r.Idle) / float64(max(1, r.Samples+r.Idle))
		fmt.Fprintf(&b, "%s: %d samples, %.0f %% idle", r.Guest, r.Samples, idle)
		if r.Lost > 0 {
			fmt.Fprintf(&b, ", %d lost", r.Lost)
		}
		if words := strings.Fields(r.Kernel); len(words) > 2 {
			fmt.Fprintf(&b, ", Linux %s", words[2])
		}
		b.WriteByte('\n')
	}
	for _, p := range passed {
		fmt.Fprintln(&b, p)
	}
	var functions []topLine
	for _, r := range all {
		for _, fn := range r.Functions {
			functions = append(functions, topLine{fn, r.Guest, fn.Share * float64(r.Samples) / float64(max(1, total))})
		}
	}
	slices.SortStableFunc(functions, func(a, b topLine) int { return cmp.Compare(b.share, a.share) })
	guests := 0
	if len(all) > 1 {
		guests = len("GUEST")
		for _, r := range all {
			guests = max(guests, utf8.RuneCountInString(r.Guest))
		}
		fmt.Fprintf(&b, "\n%8s  %-*s  %-20s %s\n", "SHARE", guests, "GUEST", "WHERE", "FUNCTION")
	} else {
		fmt.Fprintf(&b, "\n%8s  %-20s %s\n", "SHARE", "WHERE", "FUNCTION")
	}
	for i, fn := range functions {
		if lines > 0 && i >= lines {
			break
		}
		where, mark := "["+fn.Module+"]", "[k]"
		if fn.Mode == perf.UserMode {
			where, mark = fn.Module, "[.]"
			if where == "" {
				where, fn.Name = fn.Name, "user code"
			}
		}
		fmt.Fprintf(&b, "%7.2f%%  ", 100*fn.share)
		if guests > 0 {
			fmt.Fprintf(&b, "%-*s  ", guests, fn.guest)
		}
		fmt.Fprintf(&b, "%-20s %s %s\n", where, mark, fn.Name)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
