package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest"
)

func mountsVerb() *cobra.Command {
	asJSON, all, pid := false, false, 1
	cmd := lookVerb("mounts [flags] GUEST", "lists the guest's mounted file systems, from its memory",
		"Lists the file systems that a process of the guest sees, in the order of its mountinfo. Options are the flags of the mount\n"+
			"and of the file system; what only a file system's own code can print (size=, lowerdir=) is not among them.", 0,
		func(_ context.Context, v *view, _ []string, out io.Writer) error {
			mounts, err := mountsOf(v, pid, all)
			if err != nil {
				return err
			}
			if asJSON {
				return indented(out, mounts)
			}
			columns := mountColumns
			if all {
				columns = append([]column[guest.Mount]{{"NAMESPACE", true, func(m guest.Mount) string {
					return strconv.FormatUint(uint64(m.Namespace), 10)
				}}}, columns...)
			}
			return writeColumns(out, columns, mounts)
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "of every mount namespace, as its first process sees it")
	cmd.Flags().IntVarP(&pid, "pid", "p", 1, "as this process of the guest sees them")
	return cmd
}

var mountColumns = []column[guest.Mount]{
	{"TARGET", false, func(m guest.Mount) string { return m.Target }},
	{"SOURCE", false, func(m guest.Mount) string { return m.Source }},
	{"FSTYPE", false, func(m guest.Mount) string { return m.FSType }},
	{"OPTIONS", false, func(m guest.Mount) string { return m.Options }},
}

func mountsOf(v *view, pid int, all bool) ([]guest.Mount, error) {
	processes, err := v.Processes(false)
	if err != nil {
		return nil, err
	}
	mounts, seen := []guest.Mount{}, map[uint32]bool{}
	for _, p := range processes {
		if all && (p.Namespaces.Mount == 0 || seen[p.Namespaces.Mount]) || !all && p.PID != pid {
			continue
		}
		seen[p.Namespaces.Mount] = true
		m, err := v.Mounts(p.Task)
		if err != nil && !all {
			return nil, err
		}
		mounts = append(mounts, m...)
	}
	if len(seen) == 0 {
		if all {
			return nil, errors.New("the guest has no processes yet")
		}
		return nil, fmt.Errorf("the guest has no process %d", pid)
	}
	return mounts, nil
}
