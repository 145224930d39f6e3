package main

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest"
)

type psFlags struct {
	json, tree, threads, user bool
	columns                   string
	container                 string
}

// A psRow is a line of ps.
type psRow struct {
	guest.Process
	indent string // of a tree
}

// A psColumn is a column, and what it says.
type psColumn struct {
	column[psRow]
	help string
}

// psColumns are all that there are, by the name they are asked for.
var psColumns = map[string]psColumn{
	"pid":       {column[psRow]{"PID", true, func(r psRow) string { return strconv.Itoa(r.PID) }}, "number of the process, or of the thread"},
	"ppid":      {column[psRow]{"PPID", true, func(r psRow) string { return strconv.Itoa(r.PPID) }}, "number of its parent"},
	"tgid":      {column[psRow]{"TGID", true, func(r psRow) string { return strconv.Itoa(r.TGID) }}, "number of the process that a thread belongs to"},
	"uid":       {column[psRow]{"UID", true, func(r psRow) string { return strconv.FormatUint(uint64(r.UID), 10) }}, "effective user"},
	"state":     {column[psRow]{"S", false, func(r psRow) string { return r.State }}, "R runs, S sleeps, D sleeps and cannot be woken, I idles, T and t are stopped, Z has ended, X is dead"},
	"cpu":       {column[psRow]{"CPU", true, func(r psRow) string { return strconv.Itoa(r.Process.CPU) }}, "where it runs, or ran last"},
	"time":      {column[psRow]{"TIME", true, func(r psRow) string { return cpuTime(r.CPUSeconds) }}, "CPU time"},
	"rss":       {column[psRow]{"RSS", true, func(r psRow) string { return shortSize(r.RSSBytes) }}, "memory that is in RAM"},
	"started":   {column[psRow]{"STARTED", false, func(r psRow) string { return startedAt(r.Started, time.Now()) }}, "when it began"},
	"cgroup":    {column[psRow]{"CGROUP", false, func(r psRow) string { return r.Cgroup }}, "control group, of version 2"},
	"container": {column[psRow]{"CONTAINER", false, func(r psRow) string { return orDash(r.Container) }}, "by the name of its control group"},
	"mntns":     {column[psRow]{"MNTNS", true, func(r psRow) string { return inode(r.Namespaces.Mount) }}, "mount namespace"},
	"pidns":     {column[psRow]{"PIDNS", true, func(r psRow) string { return inode(r.Namespaces.PID) }}, "PID namespace"},
	"netns":     {column[psRow]{"NETNS", true, func(r psRow) string { return inode(r.Namespaces.Net) }}, "network namespace"},
	"utsns":     {column[psRow]{"UTSNS", true, func(r psRow) string { return inode(r.Namespaces.UTS) }}, "namespace of the host name"},
	"ipcns":     {column[psRow]{"IPCNS", true, func(r psRow) string { return inode(r.Namespaces.IPC) }}, "namespace of System V IPC"},
	"cgroupns":  {column[psRow]{"CGROUPNS", true, func(r psRow) string { return inode(r.Namespaces.Cgroup) }}, "namespace of control groups"},
	"userns":    {column[psRow]{"USERNS", true, func(r psRow) string { return inode(r.Namespaces.User) }}, "user namespace"},
	"timens":    {column[psRow]{"TIMENS", true, func(r psRow) string { return inode(r.Namespaces.Time) }}, "namespace of clocks"},
	"nspid":     {column[psRow]{"NSPID", true, func(r psRow) string { return strconv.Itoa(r.NSPID) }}, "number in its own PID namespace"},
	"nlwp":      {column[psRow]{"NLWP", true, func(r psRow) string { return strconv.Itoa(r.Threads) }}, "how many threads its process has"},
	"comm":      {column[psRow]{"COMM", false, func(r psRow) string { return r.indent + r.Comm }}, "name"},
	"command": {column[psRow]{"COMMAND", false, func(r psRow) string {
		if r.Cmdline == "" {
			return r.indent + "[" + r.Comm + "]"
		}
		return r.indent + r.Cmdline
	}}, "arguments, or the name in brackets where there are none"},
}

const psDefault = "pid,ppid,uid,state,cpu,time,rss,started,command"

func psVerb() *cobra.Command {
	var f psFlags
	var chosen []column[psRow]
	cmd := lookVerb("ps [flags] GUEST", "lists the guest's processes, from its memory",
		"Lists the guest's processes as its kernel's memory has them: nothing runs in the guest for it.\n"+
			"RSS is exact, where the guest's own ps may be off by some pages a CPU. CPU time is what the scheduler counted.",
		0, func(_ context.Context, v *view, _ []string, out io.Writer) error {
			all, err := v.Processes(f.threads)
			if err != nil {
				return err
			}
			all = f.keep(all)
			if f.json {
				return indented(out, all)
			}
			return writeColumns(out, chosen, psRows(all, f.tree))
		})
	needsGuest, look := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if f.columns == "help" {
			return nil
		}
		return needsGuest(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.columns == "help" {
			return columnHelp(cmd.OutOrStdout())
		}
		return look(cmd, args)
	}
	cmd.PreRunE = func(*cobra.Command, []string) error {
		names := f.columns
		if names == "help" {
			return nil
		}
		if f.threads && names == psDefault {
			names = "tgid," + strings.Replace(names, "command", "comm", 1)
		}
		for name := range strings.SplitSeq(names, ",") {
			c, ok := psColumns[name]
			if !ok {
				return fmt.Errorf("ps: no column %q: there are %s", name, strings.Join(columnNames(), ", "))
			}
			chosen = append(chosen, c.column)
		}
		return nil
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&f.threads, "threads", "T", false, "every thread, not only processes")
	cmd.Flags().BoolVar(&f.tree, "tree", false, "children below their parents")
	cmd.Flags().BoolVarP(&f.user, "user", "u", false, "without the kernel's own threads")
	cmd.Flags().StringVarP(&f.columns, "columns", "o", psDefault, "which to show, with commas between; help lists them")
	cmd.Flags().StringVar(&f.container, "container", "", "only the processes of a container (a beginning of its name)")
	return cmd
}

// inode is a namespace's number, or a dash.
func inode(n uint32) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(n), 10)
}

// columnHelp lists the columns.
func columnHelp(out io.Writer) error {
	for _, name := range columnNames() {
		if _, err := fmt.Fprintf(out, "%-10s %s\n", name, psColumns[name].help); err != nil {
			return err
		}
	}
	return nil
}

func columnNames() []string {
	names := make([]string, 0, len(psColumns))
	for name := range psColumns {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (f *psFlags) keep(all []guest.Process) []guest.Process {
	kept := make([]guest.Process, 0, len(all)) // none is [], not null
	for _, p := range all {
		if f.user && p.Kernel || f.container != "" && (p.Container == "" || !strings.HasPrefix(p.Container, f.container)) {
			continue
		}
		kept = append(kept, p)
	}
	return kept
}

// psRows are the lines for all, as a tree if so asked. A process whose parent is not listed is at the left, and so is one that
// a guest claims to be its own forefather.
func psRows(all []guest.Process, tree bool) []psRow {
	rows := make([]psRow, 0, len(all))
	if !tree {
		for _, p := range all {
			rows = append(rows, psRow{p, ""})
		}
		return rows
	}
	listed, children := map[int]bool{}, map[int][]guest.Process{}
	for _, p := range all {
		listed[p.PID] = true
	}
	parentOf := func(p guest.Process) int {
		if p.PID != p.TGID && listed[p.TGID] {
			return p.TGID
		}
		return p.PPID
	}
	for _, p := range all {
		children[parentOf(p)] = append(children[parentOf(p)], p)
	}
	shown := map[int]bool{}
	var show func(p guest.Process, depth int)
	show = func(p guest.Process, depth int) {
		if shown[p.PID] {
			return
		}
		shown[p.PID] = true
		rows = append(rows, psRow{p, strings.Repeat("  ", min(depth, 32))})
		for _, c := range children[p.PID] {
			show(c, depth+1)
		}
	}
	for _, p := range all {
		if !listed[parentOf(p)] {
			show(p, 0)
		}
	}
	for _, p := range all {
		show(p, 0)
	}
	return rows
}

// cpuTime is written as ps(1) does.
func cpuTime(s float64) string {
	n := int64(s)
	days, text := n/86400, fmt.Sprintf("%02d:%02d:%02d", n/3600%24, n/60%60, n%60)
	if days > 0 {
		return fmt.Sprintf("%d-%s", days, text)
	}
	return text
}

func startedAt(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case now.Sub(t) < 24*time.Hour:
		return t.Local().Format("15:04:05")
	}
	return t.Local().Format("2006-01-02")
}

// shortSize is a size in bytes with three or four digits.
func shortSize(n uint64) string {
	for _, unit := range []struct {
		shift uint
		name  string
	}{{40, "T"}, {30, "G"}, {20, "M"}, {10, "K"}} {
		if n>>unit.shift >= 1 {
			v := float64(n) / float64(uint64(1)<<unit.shift)
			if v < 10 {
				return fmt.Sprintf("%.1f%s", v, unit.name)
			}
			return fmt.Sprintf("%.0f%s", v, unit.name)
		}
	}
	return strconv.FormatUint(n, 10)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
