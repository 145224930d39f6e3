// Package client drives a guest's agent from the host.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// ErrGone is what calls give once the connection to the agent has ended.
var ErrGone = errors.New("the guest's agent has gone")

// A Failure is what the agent says when it could not do what it was asked to.
type Failure struct {
	Status int // as a shell has it: 127 not found, 126 not executable, 125 all else
	Text   string
}

func (f *Failure) Error() string { return f.Text }

// A receiver has a stream's frames. Neither method waits.
type receiver interface {
	receive(wire.Frame)
	end(status int, err error)
}

// A Client is one agent. Its methods may be called from any goroutine.
type Client struct {
	conn   *wire.Conn
	stream io.Closer
	done   chan struct{}   // closed when the connection has ended
	ready  chan wire.Frame // the answer to Setup

	abilities []string // of the agent

	mu        sync.Mutex // guards what follows
	processes map[uint32]receiver
	last      uint32
	err       error
}

// New says hello on a connection and takes it over.
func New(stream io.ReadWriteCloser) (*Client, error) {
	c := &Client{
		conn: wire.NewConn(stream), stream: stream,
		done: make(chan struct{}), ready: make(chan wire.Frame, 1),
		processes: map[uint32]receiver{},
	}
	hello, err := c.conn.Hello()
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("agent: hello: %w", err)
	}
	c.abilities = hello.Abilities
	go c.receive()
	return c, nil
}

// receive hands each frame to whom it concerns. It never waits for any of them: what a guest sends beyond its credit is cut off.
func (c *Client) receive() {
	var err error
	for err == nil {
		var f wire.Frame
		if f, err = c.conn.Recv(); err != nil {
			break
		}
		if f.Stream == 0 {
			if f.Type == wire.TypeReady || f.Type == wire.TypeFailed {
				f.Payload = append([]byte(nil), f.Payload...)
				select {
				case c.ready <- f:
				default:
				}
			}
			continue
		}
		c.mu.Lock()
		p := c.processes[f.Stream]
		c.mu.Unlock()
		if p != nil {
			p.receive(f)
		}
	}
	c.mu.Lock()
	c.err = err
	all := c.processes
	c.processes = map[uint32]receiver{}
	c.mu.Unlock()
	for _, p := range all {
		p.end(0, ErrGone)
	}
	close(c.done)
	c.stream.Close()
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection, upon which the agent powers the guest off.
func (c *Client) Close() error {
	err := c.stream.Close()
	<-c.done
	return err
}

// PowerOff asks the agent to sync and power off. It does not wait for it.
func (c *Client) PowerOff() error { return c.conn.Send(wire.TypePowerOff, 0, nil) }

// Setup makes the guest's world. It is the first call, made once.
func (c *Client) Setup(ctx context.Context, m wire.Setup) error {
	if err := c.conn.Send(wire.TypeSetup, 0, m.Marshal()); err != nil {
		return err
	}
	select {
	case f := <-c.ready:
		if f.Type == wire.TypeFailed {
			return failure(f.Payload)
		}
		return nil
	case <-c.done:
		return ErrGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

func failure(p []byte) error {
	var m wire.Failed
	if err := m.Unmarshal(p); err != nil {
		return err
	}
	status := int(m.Status)
	if m.Status == 0 || m.Status > 255 {
		status = 125
	}
	return &Failure{status, m.Text}
}
