package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/host/foreign"
)

func lsVerb() *cobra.Command {
	asJSON, ended, long := false, false, false
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "lists the guests of this host",
		Long: "Lists the guests of this host: Vitrine's own, and other programs' (QEMU, Firecracker, Cloud Hypervisor, crosvm, kvmtool, VirtualBox on\n" +
			"KVM, whatever else holds KVM's descriptors). What may not be seen of a guest is \"-\", and below the list it is said why. Nothing is opened\n" +
			"but files of /proc; no guest is stopped or asked.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := host.List
			if ended {
				list = host.ListAll
			}
			all, err := list()
			if err != nil {
				return err
			}
			others, err := host.Others()
			if err != nil {
				return err
			}
			for i := range others {
				others[i].Kernel = foreign.Release(others[i].Foreign())
			}
			all = append(all, others...)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			return writeTable(cmd.OutOrStdout(), all, long, time.Now())
		},
	}
	cmd.Flags().BoolVarP(&ended, "all", "a", false, "also those that have ended and are kept")
	cmd.Flags().BoolVarP(&long, "long", "l", false, "also whose they are, who manages them, and the container that their VMM is in")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeJSON(w io.Writer, all []host.Entry) error {
	states := make([]host.State, 0, len(all)) // none is [], not null
	for _, e := range all {
		states = append(states, e.State)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(states)
}

// lsColumns are what ls shows of a guest.
var lsColumns = []column[host.Entry]{
	{"NAME", false, func(e host.Entry) string { return e.Name }},
	{"VMM", false, func(e host.Entry) string { return e.VMM }},
	{"PID", false, func(e host.Entry) string { return strconv.Itoa(e.PID) }},
	{"ACCEL", false, func(e host.Entry) string { return e.Accelerator }},
	{"CPUS", false, func(e host.Entry) string {
		if e.CPUs == 0 {
			return "-"
		}
		return strconv.Itoa(e.CPUs)
	}},
	{"MEMORY", false, func(e host.Entry) string {
		if e.MemoryBytes == 0 {
			return "-"
		}
		return vitrine.FormatSize(e.MemoryBytes)
	}},
	{"KERNEL", false, func(e host.Entry) string { return orDash(e.Kernel) }},
	{"STATE", false, func(e host.Entry) string {
		if e.ExitStatus != nil {
			return fmt.Sprintf("%s (%d)", e.State.State, *e.ExitStatus)
		}
		return e.State.State
	}},
}

// writeTable prints a guest a line, and below what may not be seen.
func writeTable(w io.Writer, all []host.Entry, long bool, now time.Time) error {
	up := column[host.Entry]{"UP", false, func(e host.Entry) string {
		until := now
		if e.Finished != nil {
			until = *e.Finished
		}
		if e.Started.IsZero() {
			return "-"
		}
		return until.Sub(e.Started).Truncate(time.Second).String()
	}}
	columns := append(slices.Clone(lsColumns), up)
	if long {
		columns = append(columns,
			column[host.Entry]{"OWNER", false, func(e host.Entry) string { return orDash(e.Owner) }},
			column[host.Entry]{"MANAGER", false, func(e host.Entry) string { return orDash(e.Manager) }},
			column[host.Entry]{"CONTAINER", false, func(e host.Entry) string { return orDash(e.Container) }})
	}
	if err := writeColumns(w, columns, all); err != nil {
		return err
	}
	for _, e := range all {
		if e.Unseen == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", e.Name, e.Unseen); err != nil {
			return err
		}
	}
	return nil
}

// keptNames completes a guest's name, also of those that have ended.
func keptNames(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, _ := host.ListAll()
	return namesOf(all)
}

// guestNames completes the name of a guest of ours.
func guestNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, _ := host.List()
	return namesOf(all)
}

// anyNames completes the name of a guest to look into.
func anyNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	all, _ := host.List()
	others, _ := host.Others()
	return namesOf(append(all, others...))
}

func namesOf(all []host.Entry) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, e := range all {
		names = append(names, e.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
