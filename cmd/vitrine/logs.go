package main

import (
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/host"
)

func logsVerb() *cobra.Command {
	var follow, console bool
	cmd := &cobra.Command{
		Use:   "logs [--follow] [--console] GUEST",
		Short: "prints what a guest's command wrote, or its console",
		Long: `Prints what the command of a detached guest wrote, or, where the guest has no such command or --console is given, what its first serial
port wrote: the last 1 MiB or more. At a terminal, what is not printable is shown as dots.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: keptNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := host.FindAny(args[0])
			if err != nil {
				return err
			}
			name := host.OutputLog
			if console {
				name = host.ConsoleLog
			}
			r, err := e.OpenLog(name)
			if err != nil && !console {
				r, err = e.OpenLog(host.ConsoleLog)
			}
			if err != nil {
				return err
			}
			defer r.Close()
			w := cmd.OutOrStdout()
			if w == os.Stdout && isTerminal(os.Stdout) {
				w = harmless{w}
			}
			for {
				// Asked before it is read: what was written before the end is read after it.
				_, live := host.Find(e.Name)
				if _, err := io.Copy(w, r); err != nil {
					return err
				}
				if !follow || live != nil {
					return nil
				}
				time.Sleep(100 * time.Millisecond)
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the guest has ended")
	cmd.Flags().BoolVar(&console, "console", false, "what its first serial port wrote")
	return cmd
}

// harmless writes what a terminal does not obey; a character that is cut in two by the end of a write becomes dots.
type harmless struct{ w io.Writer }

// Write implements io.Writer.
func (h harmless) Write(p []byte) (int, error) {
	s := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		if r == '\r' {
			return -1
		}
		return '.'
	}, string(p))
	if _, err := io.WriteString(h.w, s); err != nil {
		return 0, err
	}
	return len(p), nil
}
