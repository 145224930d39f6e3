package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/host"
)

func lsVerb() *cobra.Command {
	asJSON, ended := false, false
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "lists the guests of this host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := host.List
			if ended {
				list = host.ListAll
			}
			all, err := list()
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			return writeTable(cmd.OutOrStdout(), all, time.Now())
		},
	}
	cmd.Flags().BoolVarP(&ended, "all", "a", false, "also those that have ended and are kept")
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

func writeTable(w io.Writer, all []host.Entry, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tVMM\tPID\tACCEL\tCPUS\tMEMORY\tKERNEL\tSTATE\tUP")
	for _, e := range all {
		kernel := e.Kernel
		if kernel == "" {
			kernel = "-"
		}
		state, until := e.State.State, now
		if e.Finished != nil {
			until = *e.Finished
		}
		if e.ExitStatus != nil {
			state = fmt.Sprintf("%s (%d)", state, *e.ExitStatus)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%s\t%s\t%s\t%s\n", e.Name, e.VMM, e.PID, e.Accelerator, e.CPUs,
			vitrine.FormatSize(e.MemoryBytes), kernel, state, until.Sub(e.Started).Truncate(time.Second))
	}
	return t.Flush()
}

// keptNames completes a guest's name, also of those that have ended.
func keptNames(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	all, _ := host.ListAll()
	for _, e := range all {
		names = append(names, e.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// guestNames completes a guest's name.
func guestNames(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	all, _ := host.List()
	for _, e := range all {
		names = append(names, e.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
