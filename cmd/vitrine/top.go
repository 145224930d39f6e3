package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/perf"
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
		Use:   "top [flags] GUEST",
		Short: "shows the guest's hottest kernel functions, sampled from outside",
		Long: "Shows where a guest's CPUs spend their time: kernel functions by name, user code by function where the program's symbols\n" +
			"are in the guest's page cache, else by process.\n" +
			"The instruction pointers are sampled from outside, and the names come from the guest's memory: nothing is\n" +
			"copied from the guest or set up in it. Halted CPUs are counted as idle.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("top: which guest? See vitrine ls")
			}
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
		ValidArgsFunction: guestNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if err := top(ctx, args[0], f, cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("top: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&f.once, "once", false, "print one report and end")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON (with --once)")
	cmd.Flags().IntVarP(&f.hz, "frequency", "F", 199, "samples per second and CPU")
	cmd.Flags().DurationVar(&f.interval, "interval", 2*time.Second, "how long to sample for a report")
	cmd.Flags().IntVarP(&f.lines, "lines", "n", 0, "functions to show (default: as many as fit)")
	return cmd
}

func top(ctx context.Context, name string, f topFlags, out io.Writer) error {
	e, err := host.Find(name)
	if err != nil {
		return err
	}
	v, err := lookAt(ctx, e)
	if err != nil {
		return err
	}
	defer v.close()
	t := perf.NewTop(e.Name, v.Kernel)
	for {
		err := sample(ctx, e, t, f)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		r := t.Report()
		switch {
		case f.json:
			enc := json.NewEncoder(out)
			enc.SetIndent("", "  ")
			return enc.Encode(r)
		case f.once:
			return writeTop(out, r, f.lines)
		}
		if err := redraw(out, r, f.lines); err != nil {
			return err
		}
		t.Reset()
		v.Refresh()
	}
}

// openKernel waits for a guest that is just booting: until then there is no kernel to be seen.
func openKernel(ctx context.Context, open func(context.Context) (*guest.Kernel, error)) (*guest.Kernel, error) {
	const patience = 20
	var err error
	for range patience {
		var k *guest.Kernel
		if k, err = open(ctx); err == nil {
			return k, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	return nil, err
}

// sample fills t for one interval.
func sample(ctx context.Context, e *host.Entry, t *perf.Top, f topFlags) error {
	c, err := control.Dial(e)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	return c.Samples(f.hz, f.interval.Seconds(), func(all []control.Sample, lost int) error {
		t.Lost(lost)
		for _, s := range all {
			t.Add(perf.Sample{CPU: s.CPU, Running: s.Running, RIP: s.RIP, CR3: s.CR3, CPL: s.CPL})
		}
		return nil
	})
}

// redraw shows a report on a terminal in place of the one before; elsewhere one behind the other.
func redraw(out io.Writer, r perf.Report, lines int) error {
	if f, ok := out.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			if lines == 0 {
				lines = max(1, int(ws.Row)-5)
			}
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		}
	}
	return writeTop(out, r, lines)
}

// writeTop prints a report as perf top does.
func writeTop(out io.Writer, r perf.Report, lines int) error {
	var b strings.Builder
	total := r.Samples + r.Idle
	idle := 100 * float64(r.Idle) / float64(max(1, total))
	fmt.Fprintf(&b, "%s: %d samples, %.0f %% idle", r.Guest, total, idle)
	if r.Lost > 0 {
		fmt.Fprintf(&b, ", %d lost", r.Lost)
	}
	if words := strings.Fields(r.Kernel); len(words) > 2 {
		fmt.Fprintf(&b, ", Linux %s", words[2])
	}
	fmt.Fprintf(&b, "\n\n%8s  %-20s %s\n", "SHARE", "WHERE", "FUNCTION")
	for i, fn := range r.Functions {
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
		fmt.Fprintf(&b, "%7.2f%%  %-20s %s %s\n", 100*fn.Share, where, mark, fn.Name)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
