package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/host"
)

// lifeVerbs are those for guests that run or have run.
var lifeVerbs = []func() *cobra.Command{
	execVerb, cpVerb, logsVerb, consoleVerb, pauseVerb, resumeVerb, killVerb, waitVerb, rmVerb, inspectVerb, manVerb,
}

// atLeastOneGuest is the Args of a verb for guests.
func atLeastOneGuest(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: which guest? See vitrine ls", cmd.Name())
	}
	return nil
}

// forEach does fn for each guest named, and says of each that failed why.
func forEach(verb string, names []string, fn func(*control.Client) error) error {
	var errs []error
	for _, name := range names {
		c, err := dial(name)
		if err == nil {
			err = fn(c)
			c.Close()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", verb, name, err))
		}
	}
	return errors.Join(errs...)
}

// dial connects to the process of the guest of this name.
func dial(name string) (*control.Client, error) {
	e, err := host.Find(name)
	if err != nil {
		return nil, err
	}
	return control.Dial(e)
}

func pauseVerb() *cobra.Command {
	return &cobra.Command{
		Use: "pause GUEST…", Short: "makes guests stand still, their clocks too", Args: atLeastOneGuest, ValidArgsFunction: guestNames,
		RunE: func(_ *cobra.Command, args []string) error { return forEach("pause", args, (*control.Client).Pause) },
	}
}

func resumeVerb() *cobra.Command {
	return &cobra.Command{
		Use: "resume GUEST…", Short: "lets paused guests go on", Args: atLeastOneGuest, ValidArgsFunction: guestNames,
		RunE: func(_ *cobra.Command, args []string) error { return forEach("resume", args, (*control.Client).Resume) },
	}
}

func killVerb() *cobra.Command {
	name := ""
	cmd := &cobra.Command{
		Use:   "kill [--signal SIGNAL] GUEST…",
		Short: "ends guests as if their plugs were pulled, or sends their commands a signal",
		Args:  atLeastOneGuest, ValidArgsFunction: guestNames,
		RunE: func(_ *cobra.Command, args []string) error {
			if name == "" {
				var errs []error
				for _, name := range args {
					if err := stop(name, true); err != nil {
						errs = append(errs, fmt.Errorf("kill: %w", err))
					}
				}
				return errors.Join(errs...)
			}
			sig, err := parseSignal(name)
			if err != nil {
				return err
			}
			return forEach("kill", args, func(c *control.Client) error { return c.Signal(sig) })
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "", "the `SIGNAL` for the guest's command, like HUP, SIGHUP or 1")
	return cmd
}

// parseSignal knows a signal by name or number.
func parseSignal(name string) (unix.Signal, error) {
	upper := strings.ToUpper(name)
	if sig := unix.SignalNum("SIG" + strings.TrimPrefix(upper, "SIG")); sig != 0 {
		return sig, nil
	}
	n := 0
	if _, err := fmt.Sscanf(name+"\n", "%d\n", &n); err != nil || n < 1 || n > 64 {
		return 0, fmt.Errorf("--signal %s: give a name like HUP, or 1 to 64", name)
	}
	return unix.Signal(n), nil
}

func waitVerb() *cobra.Command {
	return &cobra.Command{
		Use: "wait GUEST…", Short: "waits until guests have ended and prints their statuses", Args: atLeastOneGuest, ValidArgsFunction: keptNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				status, err := wait(name)
				if err != nil {
					errs = append(errs, fmt.Errorf("wait %s: %w", name, err))
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), status)
			}
			return errors.Join(errs...)
		},
	}
}

func wait(name string) (int, error) {
	e, err := host.FindAny(name)
	if err != nil {
		return 0, err
	}
	if e.State.State == host.Ended {
		return endedStatus(e)
	}
	c, err := control.Dial(e)
	if err == nil {
		defer c.Close()
		var exit control.Exit
		if exit, err = c.Wait(); err == nil {
			return exit.Status, e.WaitGone() // then rm finds it ended
		}
	}
	if werr := e.WaitGone(); werr != nil {
		return 0, werr
	}
	if e, ferr := host.FindAny(e.Name); ferr == nil && e.State.State == host.Ended { // it ended on our way to it
		return endedStatus(e)
	}
	return 0, err
}

func endedStatus(e *host.Entry) (int, error) {
	if e.ExitStatus == nil {
		return 0, errors.New("it has ended, its status is not known")
	}
	return *e.ExitStatus, nil
}

func rmVerb() *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use: "rm [--force] GUEST…", Short: "removes what is kept of guests that have ended", Args: atLeastOneGuest, ValidArgsFunction: keptNames,
		RunE: func(_ *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				if err := removeGuest(name, force); err != nil {
					errs = append(errs, fmt.Errorf("rm: %w", err))
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end those that run")
	return cmd
}

func removeGuest(name string, force bool) error {
	e, err := host.FindAny(name)
	if err != nil {
		return err
	}
	if force && e.State.State != host.Ended {
		if err := endNow(e); err != nil {
			return err
		}
	}
	return e.Remove()
}

// endNow ends a guest and waits until its process has let go of it.
func endNow(e *host.Entry) error {
	c, err := control.Dial(e)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Kill(); err != nil {
		return err
	}
	return e.WaitGone()
}

func inspectVerb() *cobra.Command {
	asJSON := true
	cmd := &cobra.Command{
		Use: "inspect GUEST…", Short: "says all there is to say of guests, as JSON",
		Long: "Says all there is to say of guests or of dumps, as JSON: how they run, and what their kernels' memory says: banner, uptime, load, memory,\n" +
			"taint, panic and oops.", Args: atLeastOneGuest, ValidArgsFunction: keptNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []any
			for _, name := range args {
				i, err := inspect(cmd.Context(), name)
				if err != nil {
					return fmt.Errorf("inspect: %w", err)
				}
				all = append(all, i)
			}
			return printJSON(cmd.OutOrStdout(), all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", true, "print JSON (always)")
	return cmd
}
