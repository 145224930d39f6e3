package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/agent/client"
	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/printable"
)

func execVerb() *cobra.Command {
	var (
		dir, user     string
		env           []string
		tty, noTTY    bool
		noInteractive bool
	)
	cmd := &cobra.Command{
		Use:   "exec [flags] GUEST [--] CMD…",
		Short: "runs a command in a guest that is up",
		Long: `Runs CMD in a guest that is up, beside what runs in it. Where standard input and output are terminals, CMD has one too.

The exit status is CMD's. 125: Vitrine or the guest failed. 126, 127: CMD cannot be executed, was not found. When this process goes,
CMD is sent SIGHUP.`,
		Example: "  vitrine exec quick-heron ps aux\n  vitrine exec --user nobody quick-heron sh",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) == 2 && args[1] == "--" {
				return errors.New("exec: which guest, and what to run in it?")
			}
			return nil
		},
		ValidArgsFunction: guestNames,
		RunE: func(_ *cobra.Command, args []string) error {
			guest, args := args[0], args[1:]
			if args[0] == "--" {
				args = args[1:]
			}
			start := wire.Start{Args: args, Env: execEnvironment(env), Dir: dir, User: user}
			both := isTerminal(os.Stdin) && isTerminal(os.Stdout)
			start.Terminal = !noTTY && (tty || both)
			return execIn(guest, start, noInteractive)
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false) // what follows the guest is the command's
	fl.StringVarP(&dir, "workdir", "w", "", "CMD's working `DIR` (default: that of the guest's own command)")
	fl.StringVarP(&user, "user", "u", "", "`USER[:GROUP]` of the guest to run CMD as (default: root)")
	fl.StringArrayVarP(&env, "env", "e", nil, "`NAME[=VALUE]` for CMD's environment (repeatable)")
	fl.BoolVarP(&tty, "tty", "t", false, "give CMD a terminal, also where there is none here")
	fl.BoolVarP(&noTTY, "no-tty", "T", false, "give CMD no terminal")
	fl.BoolVarP(&noInteractive, "no-stdin", "n", false, "CMD's standard input is empty")
	fl.BoolP("interactive", "i", true, "CMD has our standard input: it always has, hands type it")
	return cmd
}

// execEnvironment is what the caller adds to the environment that the guest's own command has.
func execEnvironment(more []string) []string {
	var env []string
	for _, name := range []string{"TERM"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, named(more)...)
}

// execIn runs a command and sees it through.
func execIn(guest string, start wire.Start, noStdin bool) error {
	agent, err := connectAgent(guest)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	defer agent.Close()
	c := client.Command{Start: start, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if noStdin {
		c.Stdin = nil
	}
	if start.Terminal {
		rows, cols := terminalSize(os.Stdout)
		c.Size = wire.Size{Rows: uint64(rows), Cols: uint64(cols)}
		if isTerminal(os.Stdin) {
			restore, err := setRaw(os.Stdin, false)
			if err != nil {
				return err
			}
			defer restore()
		}
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGWINCH)
	defer signal.Stop(signals)
	p, err := agent.Start(c)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	go func() {
		for sig := range signals {
			if sig == unix.SIGWINCH {
				if rows, cols := terminalSize(os.Stdout); rows > 0 {
					p.Resize(wire.Size{Rows: uint64(rows), Cols: uint64(cols)})
				}
				continue
			}
			p.Signal(int(sig.(unix.Signal)))
		}
	}()
	status, err := p.Wait()
	var failure *client.Failure
	switch {
	case errors.As(err, &failure):
		return &exitError{failure.Status, fmt.Errorf("exec: %s", printable.Text(failure.Text))}
	case errors.Is(err, client.ErrGone):
		return &exitError{vitrine.StatusFailed, errors.New("exec: the guest has gone, or its agent")}
	case err != nil:
		return &exitError{vitrine.StatusFailed, fmt.Errorf("exec: %w", err)}
	case status != 0:
		return &exitError{status, nil}
	}
	return nil
}

// connectAgent gives a guest's agent, by way of the guest's process.
func connectAgent(guest string) (*client.Client, error) {
	c, err := dial(guest)
	if err != nil {
		return nil, err
	}
	stream, err := c.Stream(control.VerbExec)
	if err != nil {
		c.Close()
		return nil, err
	}
	return client.New(stream)
}
