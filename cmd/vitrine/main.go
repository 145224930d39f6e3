// Vitrine runs Linux virtual machines that one can see into.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine"
)

func main() {
	vitrine.GuestMain()
	os.Exit(realMain(os.Args[1:]))
}

// realMain runs a command line and gives the status to exit with.
func realMain(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return 0
	}
	var e *exitError
	if errors.As(err, &e) {
		if e.err != nil {
			report(os.Stderr, e.err)
		}
		return e.status
	}
	report(os.Stderr, err)
	return vitrine.StatusFailed
}

// An exitError is a status to exit with, and what to say before, which may be nothing.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprint("exit status ", e.status)
	}
	return e.err.Error()
}

// report prints an error: one line, and what the guest's console said last where that is all there is to go by.
func report(w io.Writer, err error) {
	fmt.Fprintf(w, "vitrine: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	var g *vitrine.GuestError
	if !errors.As(err, &g) {
		return
	}
	for _, line := range g.Registers {
		fmt.Fprintf(w, "    %s\n", line)
	}
	if len(g.Console) > 0 {
		fmt.Fprintf(w, "vitrine: its console ended with:\n")
		for _, line := range g.Console {
			fmt.Fprintf(w, "    %s\n", line)
		}
	}
}

// newRoot makes the command line: one file a verb.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "vitrine",
		Short:         "runs Linux virtual machines that one can see into",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q is no verb of vitrine: see vitrine help", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: see %s --help", err, cmd.CommandPath())
	})
	for _, verb := range slices.Concat(verbs, lifeVerbs) {
		root.AddCommand(verb())
	}
	return root
}

// verbs are all there are, in the order of the help.
var verbs = []func() *cobra.Command{
	runVerb, lsVerb, stopVerb, topVerb, psVerb, dmesgVerb, modulesVerb, mountsVerb, symbolsVerb, mapsVerb, lsofVerb, socketsVerb, stackVerb, coreVerb, versionVerb,
}
