package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/agent/client"
	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/printable"
	"vitrine.dev/vitrine/internal/transfer"
)

func cpVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "cp GUEST:SOURCE DEST | SOURCE GUEST:DEST",
		Short: "copies files and trees between host and guest",
		Long: `Copies a file or a tree out of a guest or into it. Where DEST is a directory, the copy goes into it under its own name. Modes, times, symbolic
links and holes are kept; owners are not; devices, FIFOs and sockets are left out. A file of the host with a colon in its name: ./a:b.`,
		Example: "  vitrine cp quick-heron:/var/log/dmesg .\n  vitrine cp ./test quick-heron:/tmp",
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			fromGuest, from, out := cutGuest(args[0])
			toGuest, to, in := cutGuest(args[1])
			var err error
			switch {
			case out && !in:
				err = copyOut(fromGuest, from, to)
			case in && !out:
				err = copyIn(from, toGuest, to)
			default:
				err = errors.New("give one place in a guest, as GUEST:PATH, and one on the host")
			}
			if err != nil {
				return fmt.Errorf("cp: %w", err)
			}
			return nil
		},
	}
}

// cutGuest tells GUEST:PATH from a path of the host.
func cutGuest(arg string) (guest, path string, ok bool) {
	guest, path, ok = strings.Cut(arg, ":")
	if !ok || guest == "" || strings.Contains(guest, "/") {
		return "", arg, false
	}
	if path == "" {
		path = "."
	}
	return guest, path, true
}

func copyOut(guest, from, to string) error {
	agent, err := connectAgent(guest)
	if err != nil {
		return err
	}
	defer agent.Close()
	r, w := io.Pipe()
	p, err := agent.Start(client.Command{Start: wire.Start{Args: []string{transfer.Program, transfer.VerbSend, from}}, Stdout: w})
	if err != nil {
		return err
	}
	go func() {
		_, err := p.Wait()
		w.CloseWithError(err) // io.EOF where there is none
	}()
	err = transfer.Receive(r, to)
	r.Close() // the sender may not have come to its end
	return plain(err)
}

func copyIn(from, guest, to string) error {
	agent, err := connectAgent(guest)
	if err != nil {
		return err
	}
	defer agent.Close()
	r, w := io.Pipe()
	defer r.Close()
	var said bytes.Buffer
	p, err := agent.Start(client.Command{
		Start: wire.Start{Args: []string{transfer.Program, transfer.VerbReceive, to}}, Stdin: r, Stderr: &bounded{&said, 4096},
	})
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		err := transfer.Send(w, from)
		w.Close()
		sent <- err
	}()
	status, err := p.Wait()
	r.Close() // ends Send
	sendErr := <-sent
	switch {
	case err != nil:
		return plain(err)
	case status == 0:
		return sendErr
	case said.Len() > 0:
		return errors.New(printable.Text(strings.TrimSpace(said.String())))
	}
	return fmt.Errorf("the guest's end ended with status %d", status)
}

// plain makes an error that the guest may have worded harmless.
func plain(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(printable.Text(err.Error()))
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	b    *bytes.Buffer
	room int
}

// Write implements io.Writer.
func (w *bounded) Write(p []byte) (int, error) {
	w.b.Write(p[:min(len(p), w.room-w.b.Len())])
	return len(p), nil
}
