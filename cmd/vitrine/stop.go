package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/host"
)

func stopVerb() *cobra.Command {
	now := false
	cmd := &cobra.Command{
		Use:   "stop [--now] GUEST…",
		Short: "ends guests: asks, and after 10 seconds does not ask any more",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("stop: which guest? See vitrine ls")
			}
			return nil
		},
		ValidArgsFunction: guestNames,
		RunE: func(_ *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				if err := stop(name, now); err != nil {
					errs = append(errs, fmt.Errorf("stop: %w", err))
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "as if the plug were pulled")
	return cmd
}

func stop(name string, now bool) error {
	e, err := host.Find(name)
	if err != nil {
		return err
	}
	c, err := control.Dial(e)
	if err != nil {
		return err
	}
	defer c.Close()
	if now {
		err = c.Kill()
	} else {
		err = c.Stop()
	}
	if err != nil {
		return err
	}
	return e.WaitGone()
}
