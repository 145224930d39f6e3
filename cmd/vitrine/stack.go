package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/unwind"
)

// A stackLine is a frame as JSON.
type stackLine struct {
	Address  string `json:"address"`
	Function string `json:"function"`
	Module   string `json:"module"`
	Offset   uint64 `json:"offset"`
}

func stackVerb() *cobra.Command {
	return processVerb("stack [--json] GUEST PID", "shows where in the kernel a sleeping task of the guest waits",
		"Shows the kernel stack of a task that sleeps, the innermost function first, as /proc/PID/stack in the guest does.", false,
		func(v *view, all []guest.Process, asJSON bool, out io.Writer) error {
			u, err := unwind.New(v.Kernel)
			if err != nil {
				return err
			}
			frames, err := u.Sleeping(all[0].Task)
			if len(frames) == 0 && err != nil {
				return err
			}
			lines := []stackLine{}
			for _, f := range frames {
				if !asJSON {
					fmt.Fprintln(out, f)
					continue
				}
				lines = append(lines, stackLine{fmt.Sprintf("%#x", f.Addr), f.Symbol.Name, f.Symbol.Module, f.Offset})
			}
			if asJSON {
				if err := indented(out, lines); err != nil {
					return err
				}
			}
			return err // the chain may have ended early
		})
}
