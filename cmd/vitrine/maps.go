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

// processVerb makes a verb that looks at one process of a guest; with optional, no number means all.
func processVerb(use, short, long string, optional bool, fn func(v *view, all []guest.Process, asJSON bool, out io.Writer) error) *cobra.Command {
	asJSON := false
	cmd := lookVerb(use, short, long, 1, func(_ context.Context, v *view, args []string, out io.Writer) error {
		if len(args) == 0 && !optional {
			return errors.New("which process? See vitrine ps " + v.name)
		}
		all, err := v.Processes(true)
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if all, err = only(all, args[0]); err != nil {
				return err
			}
		}
		return fn(v, all, asJSON, out)
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// only is the process or thread of a number.
func only(all []guest.Process, arg string) ([]guest.Process, error) {
	pid, err := strconv.Atoi(arg)
	if err != nil {
		return nil, fmt.Errorf("%q is no process number", arg)
	}
	for _, p := range all {
		if p.PID == pid {
			return []guest.Process{p}, nil
		}
	}
	return nil, fmt.Errorf("the guest has no process %d", pid)
}

func mapsVerb() *cobra.Command {
	return processVerb("maps [--json] GUEST PID", "shows the memory map of a process of the guest", "", false,
		func(v *view, all []guest.Process, asJSON bool, out io.Writer) error {
			maps, err := v.Maps(all[0].Task)
			if err != nil {
				return err
			}
			if asJSON {
				return indented(out, append([]guest.Map{}, maps...))
			}
			for _, m := range maps {
				line := fmt.Sprintf("%08x-%08x %s %08x %s %d", m.Start, m.End, m.Perms, m.Offset, m.Device, m.Inode)
				if m.Name != "" {
					line = fmt.Sprintf("%-72s %s", line, m.Name)
				}
				if _, err := fmt.Fprintln(out, line); err != nil {
					return err
				}
			}
			return nil
		})
}

// An openFile is a line of lsof.
type openFile struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	guest.File
}

func lsofVerb() *cobra.Command {
	return processVerb("lsof [--json] GUEST [PID]", "lists the open files of the guest's processes", "", true,
		func(v *view, all []guest.Process, asJSON bool, out io.Writer) error {
			lines := []openFile{}
			for _, p := range all {
				if p.PID != p.TGID && len(all) > 1 {
					continue // threads share their process's files
				}
				files, err := v.Files(p.Task)
				if err != nil && len(all) == 1 {
					return err
				}
				for _, f := range files {
					lines = append(lines, openFile{p.PID, p.Comm, f})
				}
			}
			if asJSON {
				return indented(out, lines)
			}
			return writeColumns(out, lsofColumns, lines)
		})
}

var lsofColumns = []column[openFile]{
	{"COMMAND", false, func(f openFile) string { return f.Comm }},
	{"PID", true, func(f openFile) string { return strconv.Itoa(f.PID) }},
	{"FD", true, func(f openFile) string { return strconv.Itoa(f.FD) }},
	{"MODE", false, func(f openFile) string { return f.Mode }},
	{"OFFSET", true, func(f openFile) string { return strconv.FormatInt(f.Offset, 10) }},
	{"DEVICE", true, func(f openFile) string { return f.Device }},
	{"INODE", true, func(f openFile) string { return strconv.FormatUint(f.Inode, 10) }},
	{"NAME", false, func(f openFile) string {
		if f.Socket != nil {
			return f.Name + " " + socketName(*f.Socket)
		}
		return f.Name
	}},
}
