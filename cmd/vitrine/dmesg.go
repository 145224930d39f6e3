package main

import (
	"bufio"
	"context"
	"encoding/json"
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
	json, follow, decode bool
	levels               string
}

// The kernel's levels, and syslog's facilities, as dmesg(1) calls them.
var (
	logLevels     = []string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
	logFacilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"}
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
	var levels []int
	cmd := lookVerb("dmesg [flags] GUEST", "prints the guest's kernel log, from its memory",
		"Prints the guest's kernel log as dmesg(1) in the guest would. What is not printable is shown as \\xNN.",
		0, func(ctx context.Context, v *view, _ []string, out io.Writer) error {
			return dmesg(ctx, v, f, levels, out)
		})
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		levels, err = parseLevels(f.levels)
		return err
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON: a list, or with --follow an object a line")
	cmd.Flags().BoolVarP(&f.follow, "follow", "w", false, "go on with what comes")
	cmd.Flags().BoolVarP(&f.decode, "decode", "x", false, "print facility and level")
	cmd.Flags().StringVarP(&f.levels, "level", "l", "", "only these: emerg,alert,crit,err,warn,notice,info,debug; err+ is err and graver")
	return cmd
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

func dmesg(ctx context.Context, v *view, f dmesgFlags, levels []int, out io.Writer) error {
	next := uint64(0)
	for {
		all, err := v.Log(next)
		if err != nil {
			return err
		}
		if n := len(all); n > 0 {
			next = all[n-1].Seq + 1
		}
		if levels != nil {
			all = slices.DeleteFunc(all, func(m guest.Message) bool { return !slices.Contains(levels, m.Level) })
		}
		if err := writeLog(out, all, f); err != nil || !f.follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func writeLog(out io.Writer, all []guest.Message, f dmesgFlags) error {
	w := bufio.NewWriter(out)
	lines := make([]logLine, 0, len(all))
	for _, m := range all {
		if !f.json {
			writeMessage(w, m, f.decode)
			continue
		}
		lines = append(lines, logLine{m.Seq, float64(m.Time/time.Microsecond) / 1e6, facility(m.Facility), logLevels[m.Level&7], m.Text})
	}
	switch {
	case f.json && f.follow:
		enc := json.NewEncoder(w)
		for _, l := range lines {
			enc.Encode(l)
		}
	case f.json:
		indented(w, lines)
	}
	return w.Flush()
}

func facility(n int) string {
	if n < len(logFacilities) {
		return logFacilities[n]
	}
	return strconv.Itoa(n)
}

// writeMessage prints a record; further lines of it are indented, as util-linux does.
func writeMessage(w *bufio.Writer, m guest.Message, decode bool) {
	prefix := ""
	if decode {
		prefix = fmt.Sprintf("%-6s:%-6s: ", facility(m.Facility), logLevels[m.Level&7])
	}
	us := m.Time.Microseconds()
	prefix += fmt.Sprintf("[%5d.%06d] ", us/1e6, us%1e6)
	for i, line := range strings.Split(strings.TrimSuffix(m.Text, "\n"), "\n") {
		if i == 1 {
			prefix = strings.Repeat(" ", len(prefix))
		}
		fmt.Fprintf(w, "%s%s\n", prefix, line)
	}
}
