package vitrine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"vitrine.dev/vitrine/internal/agent/client"
	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/printable"
)

// command boots, runs the command in the guest and powers it off.
func (m *Machine) command() (int, error) {
	limit := m.cfg.BootTimeout
	if limit == 0 {
		limit = DefaultBootTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	agent, err := m.ready(ctx)
	var failure *client.Failure
	switch {
	case errors.As(err, &failure):
		return m.fail("the guest could not be set up: %s", printable.Text(failure.Text))
	case ctx.Err() != nil:
		return m.fail("the guest was not ready after %v (--boot-timeout)", limit)
	case err != nil:
		return m.untimely("before it was ready")
	}
	m.setState("running")
	if m.net != nil && !m.net.Connected() {
		m.cfg.Log("the guest has no network: its kernel has no driver for virtio_net")
	}
	m.cfg.Log(fmt.Sprintf("%s is up after %.1f s", m.Name(), time.Since(m.began).Seconds()))
	if m.cfg.Idle {
		close(m.up)
		<-m.ended
		return m.verdict()
	}
	status, err := m.runCommand(agent)
	if errors.Is(err, client.ErrGone) {
		return m.untimely("before its command had ended")
	}
	m.setState("stopping")
	agent.PowerOff()
	select {
	case <-m.ended:
	case <-time.After(hangUp):
	}
	return status, err
}

// lastWords is how long what a guest said last is read after its end.
const lastWords = 200 * time.Millisecond

// ready waits until the guest is set up.
func (m *Machine) ready(ctx context.Context) (*client.Client, error) {
	stream, err := m.accept(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		<-m.ended // nobody is left to end the connection; what is in it is still to be read
		stream.SetReadDeadline(time.Now().Add(lastWords))
	}()
	// A guest that connects and then says nothing must not outlast ctx.
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	agent, err := client.New(stream)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.agent = agent
	m.mu.Unlock()
	return agent, agent.Setup(ctx, m.world())
}

// accept waits for the agent's connection, the guest's end, or ctx.
func (m *Machine) accept(ctx context.Context) (net.Conn, error) {
	type result struct {
		net.Conn
		error
	}
	got := make(chan result, 1)
	go func() {
		c, err := m.agents.Accept()
		got <- result{c, err}
	}()
	select {
	case r := <-got:
		return r.Conn, r.error
	case <-m.ended:
	case <-ctx.Done():
	}
	m.agents.Close()
	if r := <-got; r.error == nil {
		r.Close()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, errors.New("the guest has ended")
}

// world is how the guest is set up: its own file systems for what is private or passing on the host, and what is shared over all of it.
func (m *Machine) world() wire.Setup {
	return wire.Setup{
		Hostname: m.Name(), RootTag: rootTag, Tmpfs: []string{"/root", "/home", "/tmp", "/run"}, Shares: m.shares,
		Network: m.networkSetup(),
	}
}

// runCommand runs what was asked for, or a shell.
func (m *Machine) runCommand(agent *client.Client) (int, error) {
	tries := [][]string{m.cfg.Command}
	if len(m.cfg.Command) == 0 {
		tries = nil
		if sh := getenv(m.cfg.Env, "SHELL"); sh != "" && sh != "/bin/sh" {
			tries = append(tries, []string{sh})
		}
		tries = append(tries, []string{"/bin/sh"})
	}
	for i, args := range tries {
		p, err := agent.Start(client.Command{
			Start: wire.Start{
				Args: args, Env: m.environment(), Dir: m.cfg.Dir, Terminal: m.cfg.Terminal,
				Size: wire.Size{Rows: uint64(m.cfg.Rows), Cols: uint64(m.cfg.Cols)},
			},
			Stdin: m.cfg.Stdin, Stdout: m.cfg.Stdout, Stderr: m.cfg.Stderr,
		})
		if err != nil {
			return StatusFailed, err
		}
		m.mu.Lock()
		m.process = p
		m.mu.Unlock()
		if i == 0 {
			close(m.up)
		}
		status, err := p.Wait()
		m.mu.Lock()
		m.process = nil
		m.mu.Unlock()
		var failure *client.Failure
		if errors.As(err, &failure) {
			if i+1 < len(tries) && failure.Status != StatusFailed { // the caller's shell is not in the guest's view
				continue
			}
			return failure.Status, errors.New(printable.Text(failure.Text))
		}
		return status, err
	}
	panic("BUG: no command to try")
}

// environment is the command's: what the guest is, then what the caller gave.
func (m *Machine) environment() []string {
	env := []string{"HOME=/root", "USER=root", "LOGNAME=root", "HOSTNAME=" + m.Name()}
	if m.cfg.Dir != "" {
		env = append(env, "PWD="+m.cfg.Dir)
	}
	return append(env, m.cfg.Env...)
}

func getenv(env []string, name string) string {
	value := ""
	for _, e := range env {
		if len(e) > len(name) && e[:len(name)] == name && e[len(name)] == '=' {
			value = e[len(name)+1:]
		}
	}
	return value
}
