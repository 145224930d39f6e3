package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest/dump"
)

func coreVerb() *cobra.Command {
	return lookVerb("core GUEST FILE", "writes the guest's memory to a file that crash, drgn and this program open",
		"Writes an ELF core file of the guest's memory and registers, which crash and drgn open, and every verb that looks into a\n"+
			"guest in its place. The guest goes on running: what it changes meanwhile may be in the file or not. Pages of zeros take no room.",
		1, func(_ context.Context, v *view, args []string, _ io.Writer) error {
			if len(args) != 1 {
				return errors.New("to which file?")
			}
			f, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) // a guest's secrets are in it
			if err != nil {
				return err
			}
			err = dump.Write(f, v.target, v.Kernel)
			if e := f.Close(); err == nil {
				err = e
			}
			if err != nil {
				os.Remove(args[0])
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return nil
		})
}
