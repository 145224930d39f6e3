package client

import (
	"errors"
	"io"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// A Command is what to run in the guest.
type Command struct {
	wire.Start
	Stdin          io.Reader // nil: /dev/null. Its Read may outlive the process, by one call
	Stdout, Stderr io.Writer // nil: dropped
}

// A Process is a command in the guest.
type Process struct {
	c      *Client
	stream uint32
	in     *wire.Flow
	outs   map[wire.Type]*wire.Queue
	pumps  sync.WaitGroup

	once   sync.Once
	done   chan struct{}
	status int
	err    error
}

// Start runs a command. That it could not be run is what Wait says.
func (c *Client) Start(cmd Command) (*Process, error) {
	if cmd.User != "" && !slices.Contains(c.abilities, wire.AbilityUser) {
		return nil, errors.New("the guest's agent is older than this and knows no users")
	}
	p := &Process{c: c, in: wire.NewFlow(), done: make(chan struct{}), outs: map[wire.Type]*wire.Queue{
		wire.TypeStdout: wire.NewQueue(), wire.TypeStderr: wire.NewQueue(),
	}}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, ErrGone
	}
	c.last++
	p.stream = c.last
	c.processes[p.stream] = p
	c.mu.Unlock()

	cmd.NoStdin = cmd.Stdin == nil && !cmd.Terminal
	p.pumps.Go(func() { p.pumpOut(wire.TypeStdout, cmd.Stdout) })
	p.pumps.Go(func() { p.pumpOut(wire.TypeStderr, cmd.Stderr) })
	if err := c.conn.Send(wire.TypeStart, p.stream, cmd.Marshal()); err != nil {
		p.end(0, err)
		return nil, err
	}
	if cmd.Stdin != nil {
		go p.pumpIn(cmd.Stdin)
	}
	return p, nil
}

// Wait gives the command's status as a shell has it, when all its output is written.
// The error is a *Failure where it did not start, ErrGone where the guest ended first.
func (p *Process) Wait() (int, error) {
	<-p.done
	p.pumps.Wait()
	return p.status, p.err
}

// Signal sends the command and its children a signal.
func (p *Process) Signal(n int) error {
	return p.c.conn.Send(wire.TypeSignal, p.stream, wire.Number(n).Marshal())
}

// Resize tells the command's terminal its size.
func (p *Process) Resize(size wire.Size) error {
	return p.c.conn.Send(wire.TypeResize, p.stream, size.Marshal())
}

func (p *Process) pumpIn(r io.Reader) {
	buf := make([]byte, wire.MaxData)
	for {
		n, err := r.Read(buf)
		for q := buf[:n]; len(q) > 0; {
			k := p.in.Take(len(q))
			if k == 0 || p.c.conn.Send(wire.TypeStdin, p.stream, q[:k]) != nil {
				return
			}
			q = q[k:]
		}
		if err != nil {
			p.c.conn.Send(wire.TypeStdin, p.stream, nil)
			return
		}
	}
}

// pumpOut writes what the command wrote. Where nobody reads it any more, the command gets the signal that a pipe would give it.
func (p *Process) pumpOut(of wire.Type, w io.Writer) {
	buf := make([]byte, wire.MaxData)
	for {
		n := p.outs[of].Take(buf)
		if n == 0 {
			return
		}
		if w != nil {
			if _, err := w.Write(buf[:n]); err != nil {
				w = nil
				p.Signal(int(unix.SIGPIPE))
			}
		}
		p.c.conn.Send(wire.TypeCredit, p.stream, wire.Credit{Of: of, N: uint64(n)}.Marshal())
	}
}

// receive takes a frame of this process's stream; it does not wait.
func (p *Process) receive(f wire.Frame) {
	switch f.Type {
	case wire.TypeStdout, wire.TypeStderr:
		p.outs[f.Type].Put(f.Payload)
	case wire.TypeCredit:
		var m wire.Credit
		if m.Unmarshal(f.Payload) == nil && m.Of == wire.TypeStdin {
			p.in.Add(m.N)
		}
	case wire.TypeExit:
		var n wire.Number
		if err := n.Unmarshal(f.Payload); err != nil {
			p.end(0, err)
			return
		}
		p.end(int(n&0xFF), nil)
	case wire.TypeFailed:
		p.end(0, failure(f.Payload))
	}
}

func (p *Process) end(status int, err error) {
	p.once.Do(func() {
		p.status, p.err = status, err
		p.in.Close()
		for _, q := range p.outs {
			q.Close()
		}
		p.c.mu.Lock()
		delete(p.c.processes, p.stream)
		p.c.mu.Unlock()
		close(p.done)
	})
}
