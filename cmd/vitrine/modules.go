package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest"
)

func modulesVerb() *cobra.Command {
	asJSON := false
	cmd := lookVerb("modules [--json] GUEST", "lists the modules of the guest's kernel, from its memory", "", 0,
		func(_ context.Context, v *view, _ []string, out io.Writer) error {
			all, err := v.Modules()
			if err != nil {
				return err
			}
			if asJSON {
				return indented(out, all)
			}
			return writeColumns(out, moduleColumns, all)
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

var moduleColumns = []column[guest.Module]{
	{"NAME", false, func(m guest.Module) string { return m.Name }},
	{"SIZE", true, func(m guest.Module) string { return strconv.FormatUint(m.Size, 10) }},
	{"ADDRESS", false, func(m guest.Module) string { return fmt.Sprintf("%#x", m.Address) }},
	{"STATE", false, func(m guest.Module) string { return m.State }},
	{"REFS", true, func(m guest.Module) string { return strconv.Itoa(m.Refs) }},
	{"USED BY", false, func(m guest.Module) string { return strings.Join(m.UsedBy, ",") }},
}
