package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest"
)

type dmesgFlags struct {
	json, follow, followNew, decode, raw bool
	kernel, userspace                    bool
	clock, none, delta                   bool // how times are shown; by default seconds since boot
	levels, facilities                   string
	keepLevels, keepFacilities           []int // nil: all
	boot                                 time.Time
}

// The kernel's levels, and syslog's facilities, as dmesg(1) calls them.
var (
	logLevels     = []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
	logFacilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
		"", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}
)

// A logLine is a message as JSON.
type logLine struct {
	Seq      uint64  `json:"seq"`
	Time     float64 `json:"time"` // seconds since boot
	Facility string  `json:"facility"`
	Level    string  `json:"level"`
	Text     string  `json:"text"`
}

func dmesgVerb() *cobra.Command {
	var f dmesgFlags
	cmd := lookVerb("dmesg [flags] GUEST", "prints the guest's kernel log, from its memory",
		"Prints the guest's kernel log as dmesg(1) in the guest would, with the same flags. What is not printable is shown as \\xNN.",
		0, func(ctx context.Context, v *view, _ []string, out io.Writer) error {
			return dmesg(ctx, v, f, out)
		})
	cmd.PreRunE = func(*cobra.Command, []string) error { return f.parse() }
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON: a list, or with --follow an object a line")
	cmd.Flags().BoolVarP(&f.follow, "follow", "w", false, "go on with what comes")
	cmd.Flags().BoolVarP(&f.followNew, "follow-new", "W", false, "only what comes from now on")
	cmd.Flags().BoolVarP(&f.decode, "decode", "x", false, "print facility and level")
	cmd.Flags().BoolVarP(&f.raw, "raw", "r", false, "print facility and level as the number they are in the log")
	cmd.Flags().BoolVarP(&f.clock, "ctime", "T", false, "print when by the guest's clock, in this host's time zone (off by what the guest slept, or set its clock)")
	cmd.Flags().BoolVarP(&f.none, "notime", "t", false, "print no times")
	cmd.Flags().BoolVarP(&f.delta, "show-delta", "d", false, "print how long after the one before, too")
	cmd.Flags().StringVarP(&f.levels, "level", "l", "", "only these: "+strings.Join(logLevels, ",")+"; err+ is err and graver")
	cmd.Flags().StringVarP(&f.facilities, "facility", "f", "", "only these: "+strings.Join(facilityNames(), ","))
	cmd.Flags().BoolVarP(&f.kernel, "kernel", "k", false, "only the kernel's")
	cmd.Flags().BoolVarP(&f.userspace, "userspace", "u", false, "only what programs wrote")
	cmd.MarkFlagsMutuallyExclusive("kernel", "userspace", "facility")
	cmd.MarkFlagsMutuallyExclusive("ctime", "notime")
	cmd.MarkFlagsMutuallyExclusive("raw", "decode", "json")
	return cmd
}

// parse makes lists of what was asked for.
func (f *dmesgFlags) parse() (err error) {
	if f.keepLevels, err = parseLevels(f.levels); err != nil {
		return err
	}
	switch {
	case f.kernel:
		f.facilities = logFacilities[0]
	case f.userspace:
		f.facilities = strings.Join(facilityNames()[1:], ",")
	case f.facilities == "":
		return nil
	}
	for name := range strings.SplitSeq(f.facilities, ",") {
		i := slices.Index(logFacilities, name)
		if i < 0 || name == "" {
			return fmt.Errorf("dmesg: no facility %q: there are %s", name, strings.Join(facilityNames(), ", "))
		}
		f.keepFacilities = append(f.keepFacilities, i)
	}
	return nil
}

// facilityNames are those that have one.
func facilityNames() []string {
	return slices.DeleteFunc(slices.Clone(logFacilities), func(s string) bool { return s == "" })
}

// keep tells whether a message was asked for.
func (f *dmesgFlags) keep(m guest.Message) bool {
	return (f.keepLevels == nil || slices.Contains(f.keepLevels, m.Level)) &&
		(f.keepFacilities == nil || slices.Contains(f.keepFacilities, m.Facility))
}

func parseLevels(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var all []int
	for name := range strings.SplitSeq(s, ",") {
		name, graver := strings.CutSuffix(name, "+")
		i := slices.Index(logLevels, name)
		if i < 0 {
			return nil, fmt.Errorf("dmesg: no level %q: there are %s", name, strings.Join(logLevels, ", "))
		}
		for j := range i {
			if graver {
				all = append(all, j)
			}
		}
		all = append(all, i)
	}
	return all, nil
}

func dmesg(ctx context.Context, v *view, f dmesgFlags, out io.Writer) error {
	if f.clock {
		if f.boot = v.BootTime(); f.boot.IsZero() {
			return errors.New("the guest's clock cannot be read: leave -T out")
		}
	}
	next, last := uint64(0), time.Duration(-1)
	skip := f.followNew
	for {
		all, err := v.Log(next)
		if err != nil {
			return err
		}
		if n := len(all); n > 0 {
			next = all[n-1].Seq + 1
		}
		if skip {
			all, skip = nil, false
		}
		all = slices.DeleteFunc(all, func(m guest.Message) bool { return !f.keep(m) })
		if last, err = writeLog(out, all, f, last); err != nil || !f.follow && !f.followNew {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// writeLog prints messages; last is when the one before was, or -1, and is given back for the next.
func writeLog(out io.Writer, all []guest.Message, f dmesgFlags, last time.Duration) (time.Duration, error) {
	w := bufio.NewWriter(out)
	lines := make([]logLine, 0, len(all))
	for _, m := range all {
		if f.json {
			lines = append(lines, logLine{m.Seq, float64(m.Time/time.Microsecond) / 1e6, facility(m.Facility), logLevels[m.Level&7], m.Text})
			continue
		}
		f.write(w, m, last)
		last = m.Time
	}
	switch {
	case f.json && (f.follow || f.followNew):
		enc := json.NewEncoder(w)
		for _, l := range lines {
			enc.Encode(l)
		}
	case f.json:
		indented(w, lines)
	}
	return last, w.Flush()
}

func facility(n int) string {
	if n < len(logFacilities) && logFacilities[n] != "" {
		return logFacilities[n]
	}
	return strconv.Itoa(n)
}

// write prints a record; further lines of it are indented, as util-linux does.
func (f *dmesgFlags) write(w *bufio.Writer, m guest.Message, last time.Duration) {
	prefix := ""
	switch {
	case f.raw:
		prefix = fmt.Sprintf("<%d>", m.Facility<<3|m.Level&7)
	case f.decode:
		prefix = fmt.Sprintf("%-6s:%-6s: ", facility(m.Facility), logLevels[m.Level&7])
	}
	prefix += f.when(m.Time, last)
	for i, line := range strings.Split(strings.TrimSuffix(m.Text, "\n"), "\n") {
		if i == 1 {
			prefix = strings.Repeat(" ", len(prefix))
		}
		fmt.Fprintf(w, "%s%s\n", prefix, line)
	}
}

// when is a time as it was asked for, in brackets.
func (f *dmesgFlags) when(t, last time.Duration) string {
	delta := ""
	if f.delta {
		if last < 0 {
			last = t
		}
		delta = fmt.Sprintf("<%12.6f>", (t - last).Seconds())
	}
	switch us := t.Microseconds(); {
	case f.none && f.delta:
		return "[" + delta + "] "
	case f.none:
		return ""
	case f.clock && f.delta:
		return fmt.Sprintf("[%s %s] ", f.boot.Add(t).Local().Format(time.ANSIC), delta)
	case f.clock:
		return fmt.Sprintf("[%s] ", f.boot.Add(t).Local().Format(time.ANSIC))
	case f.delta:
		return fmt.Sprintf("[%5d.%06d %s] ", us/1e6, us%1e6, delta)
	default:
		return fmt.Sprintf("[%5d.%06d] ", us/1e6, us%1e6)
	}
}
