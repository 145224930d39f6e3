package vitrine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/client"
	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/printable"
)

// A Command is one to run in a guest that is up, beside its own.
type Command struct {
	Args []string
	// Env is added to the environment that the guest's own command has.
	Env []string
	// Dir is the working directory; empty: that of the guest's own command.
	Dir string
	// User is NAME or number, with :GROUP or without; empty: root.
	User string
	// Stdin, Stdout and Stderr are the command's; nil: nothing. A Read of Stdin may outlive the command, by one.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Terminal gives the command a terminal of Rows by Cols; what it prints goes to Stdout.
	Terminal   bool
	Rows, Cols int
}

// A Process is a command in a guest.
type Process struct{ p *client.Process }

// Wait gives the command's status as a shell has it, when all its output is written. A command that did not start has the status and
// the reason that a shell gives.
func (p *Process) Wait() (int, error) {
	status, err := p.p.Wait()
	var failure *client.Failure
	if errors.As(err, &failure) {
		return failure.Status, errors.New(printable.Text(failure.Text))
	}
	if err != nil {
		status = StatusFailed
	}
	return status, err
}

// Signal sends the command and its children a signal.
func (p *Process) Signal(sig unix.Signal) error { return p.p.Signal(int(sig)) }

// Resize tells the command's terminal its size.
func (p *Process) Resize(rows, cols int) error {
	return p.p.Resize(wire.Size{Rows: uint64(rows), Cols: uint64(cols)})
}

// Exec runs a command in the guest, once that is up. When ctx is done, the command is sent SIGKILL.
func (m *Machine) Exec(ctx context.Context, c Command) (*Process, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("no command")
	}
	agent, err := m.whenUp(ctx)
	if err != nil {
		return nil, err
	}
	start := wire.Start{
		Args: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, Terminal: c.Terminal,
		Size: wire.Size{Rows: uint64(max(c.Rows, 0)), Cols: uint64(max(c.Cols, 0))},
	}
	m.prepare(&start)
	p, err := agent.Start(client.Command{Start: start, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr})
	if err != nil {
		return nil, err
	}
	process := &Process{p}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { process.Signal(unix.SIGKILL) })
		go func() {
			p.Wait()
			stop()
		}()
	}
	return process, nil
}

// Up is closed when commands can run in the guest, or, where exactly an image is booted, at once.
func (m *Machine) Up() <-chan struct{} { return m.up }

// whenUp waits until the guest is up.
func (m *Machine) whenUp(ctx context.Context) (*client.Client, error) {
	if m.exactly {
		return nil, errors.New("the guest was booted exactly as given: it has no agent to run a command by")
	}
	select {
	case <-m.up:
	case <-m.ended:
		return nil, errors.New("the guest has ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.agent, nil
}

// prepare fills in what a command has from its guest.
func (m *Machine) prepare(s *wire.Start) {
	env := m.environment()
	if s.User != "" { // the user's own
		env = env[3:]
	}
	s.Env = append(env, s.Env...)
	switch {
	case s.Dir == "":
		s.Dir = m.cfg.Dir
	case !filepath.IsAbs(s.Dir):
		s.Dir = filepath.Join("/", m.cfg.Dir, s.Dir)
	}
}

// ServeExec lets a tool run commands in the guest, as the agent would.
func (m *Machine) ServeExec(c net.Conn) {
	agent, err := m.whenUp(context.Background())
	if err != nil { // said as the agent would say it
		conn := wire.NewConn(c)
		if _, e := conn.Hello(); e == nil {
			if f, e := conn.Recv(); e == nil {
				conn.Send(wire.TypeFailed, f.Stream, wire.Failed{Status: StatusFailed, Text: fmt.Sprint(err)}.Marshal())
			}
		}
		c.Close()
		return
	}
	agent.Serve(c, m.prepare)
}
