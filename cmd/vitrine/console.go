package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/control"
)

// detachKey leaves a console: Ctrl-].
const detachKey = 0x1D

// errDetached ends a console's attachment.
var errDetached = errors.New("detached")

func consoleVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "console GUEST",
		Short: "connects with a guest's first serial port; Ctrl-] leaves it",
		Long: `Connects with a guest's first serial port: what it wrote last, then what it writes, and what is typed goes to it. Ctrl-] leaves the console, the
guest goes on. In a guest that Vitrine set up, the kernel speaks there and nobody listens: see exec for a shell.`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: guestNames,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := dial(args[0])
			if err != nil {
				return err
			}
			stream, err := c.Stream(control.VerbConsole)
			if err != nil {
				c.Close()
				return fmt.Errorf("console: %w", err)
			}
			defer stream.Close()
			if isTerminal(os.Stdin) {
				restore, err := setRaw(os.Stdin, false)
				if err != nil {
					return err
				}
				defer restore()
				fmt.Fprint(os.Stderr, "vitrine: console of ", args[0], "; Ctrl-] leaves it\r\n")
			}
			left := make(chan error, 1)
			go func() { // a Read of standard input cannot be ended: this may outlive the verb
				_, err := io.Copy(stream, untilDetached{os.Stdin})
				if errors.Is(err, errDetached) {
					left <- nil
					stream.Close()
				}
			}()
			_, err = io.Copy(os.Stdout, stream)
			select {
			case err = <-left:
			default:
			}
			return err
		},
	}
}

// untilDetached reads keys up to the one that detaches.
type untilDetached struct{ r io.Reader }

// Read implements io.Reader.
func (u untilDetached) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if i := bytes.IndexByte(p[:n], detachKey); i >= 0 {
		return i, errDetached
	}
	return n, err
}
