package client

import (
	"errors"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// maxStreams is how many commands one peer may run at once.
const maxStreams = 1024

// A peer is another process that talks to the agent through us, as if we were the agent.
type peer struct {
	c    *Client
	conn *wire.Conn

	mu      sync.Mutex // guards what follows
	more    sync.Cond  // out has something, or gone
	streams map[uint32]*relay
	out     []wire.Frame // what is to be sent to the peer
	size    int          // bytes that out takes
	gone    bool         // nothing is sent any more
}

// A relay is one command of a peer.
type relay struct {
	p            *peer
	near, stream uint32 // its number with the peer, and with the agent
}

// Serve lets a peer run commands through this agent until the peer or the agent goes; it closes stream. Commands that run then are
// hung up, and what they still write is dropped. prepare may change what is started, and may be nil.
func (c *Client) Serve(stream io.ReadWriteCloser, prepare func(*wire.Start)) error {
	defer stream.Close()
	p := &peer{c: c, conn: wire.NewConn(stream), streams: map[uint32]*relay{}}
	p.more.L = &p.mu
	if _, err := p.conn.Hello(c.abilities...); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-c.done:
			stream.Close()
		case <-ended:
		}
	}()
	var writer sync.WaitGroup
	writer.Go(func() { p.write(stream) })
	var err error
	for err == nil {
		var f wire.Frame
		if f, err = p.conn.Recv(); err == nil {
			p.take(f, prepare)
		}
	}
	close(ended)
	p.hangUp()
	writer.Wait()
	if err == io.EOF {
		err = nil
	}
	return err
}

// write sends the peer what is for it.
func (p *peer) write(stream io.Closer) {
	for {
		p.mu.Lock()
		for len(p.out) == 0 && !p.gone {
			p.more.Wait()
		}
		out := p.out
		p.out, p.size = nil, 0
		p.mu.Unlock()
		if len(out) == 0 {
			stream.Close()
			return
		}
		for _, f := range out {
			if p.conn.Send(f.Type, f.Stream, f.Payload) != nil {
				stream.Close() // Recv ends, and all with it
				break
			}
		}
	}
}

// take does what the peer asks.
func (p *peer) take(f wire.Frame, prepare func(*wire.Start)) {
	if f.Type == wire.TypeStart && f.Stream != 0 {
		if err := p.start(f, prepare); err != nil {
			p.send(wire.Frame{Type: wire.TypeFailed, Stream: f.Stream, Payload: wire.Failed{Status: 125, Text: err.Error()}.Marshal()})
		}
		return
	}
	p.mu.Lock()
	r := p.streams[f.Stream]
	p.mu.Unlock()
	if r == nil {
		return
	}
	switch f.Type {
	case wire.TypeStdin, wire.TypeCredit, wire.TypeSignal, wire.TypeResize:
		p.c.conn.Send(f.Type, r.stream, f.Payload)
	}
}

func (p *peer) start(f wire.Frame, prepare func(*wire.Start)) error {
	var m wire.Start
	if err := m.Unmarshal(f.Payload); err != nil {
		return err
	}
	if prepare != nil {
		prepare(&m)
	}
	r := &relay{p: p, near: f.Stream}
	p.mu.Lock()
	_, used := p.streams[f.Stream]
	if !used && len(p.streams) < maxStreams {
		p.streams[f.Stream] = r
	}
	full := !used && p.streams[f.Stream] == nil
	p.mu.Unlock()
	if used || full {
		return errors.New("too many commands at once, or their stream is in use")
	}
	c := p.c
	c.mu.Lock()
	err := c.err
	if err == nil {
		c.last++
		r.stream = c.last
		c.processes[r.stream] = r
	}
	c.mu.Unlock()
	if err == nil {
		err = c.conn.Send(wire.TypeStart, r.stream, m.Marshal())
	}
	if err != nil {
		r.forget()
		return ErrGone
	}
	return nil
}

// frameCost is what a frame takes beside its payload.
const frameCost = 64

// send hands a frame to the peer's writer. A guest that sends more than its commands have credit for has its peer cut off: the agent's other
// streams are not to wait.
func (p *peer) send(f wire.Frame) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size += frameCost + len(f.Payload)
	if p.size > 4*wire.Window*(len(p.streams)+4) {
		p.gone = true
	}
	p.more.Signal()
	if p.gone {
		return false
	}
	p.out = append(p.out, f)
	return true
}

// hangUp ends what the peer left running.
func (p *peer) hangUp() {
	p.mu.Lock()
	p.gone = true
	p.more.Signal()
	all := make([]*relay, 0, len(p.streams))
	for _, r := range p.streams {
		all = append(all, r)
	}
	p.mu.Unlock()
	for _, r := range all {
		p.c.conn.Send(wire.TypeStdin, r.stream, nil)
		p.c.conn.Send(wire.TypeSignal, r.stream, wire.Number(unix.SIGHUP).Marshal())
		for _, of := range []wire.Type{wire.TypeStdout, wire.TypeStderr} {
			r.credit(of, wire.Window)
		}
	}
}

func (r *relay) credit(of wire.Type, n int) {
	r.p.c.conn.Send(wire.TypeCredit, r.stream, wire.Credit{Of: of, N: uint64(n)}.Marshal())
}

// receive passes on what the agent says of the stream.
func (r *relay) receive(f wire.Frame) {
	if f.Type == wire.TypeExit || f.Type == wire.TypeFailed {
		r.forget()
	}
	passed := r.p.send(wire.Frame{Type: f.Type, Stream: r.near, Payload: append([]byte(nil), f.Payload...)})
	if !passed && len(f.Payload) > 0 && (f.Type == wire.TypeStdout || f.Type == wire.TypeStderr) {
		go r.credit(f.Type, len(f.Payload)) // dropped; the agent's frames are not to wait for its credits
	}
}

func (r *relay) end(_ int, err error) {
	r.forget()
	r.p.send(wire.Frame{Type: wire.TypeFailed, Stream: r.near, Payload: wire.Failed{Status: 125, Text: err.Error()}.Marshal()})
}

func (r *relay) forget() {
	r.p.mu.Lock()
	delete(r.p.streams, r.near)
	r.p.mu.Unlock()
	r.p.c.mu.Lock()
	delete(r.p.c.processes, r.stream)
	r.p.c.mu.Unlock()
}
