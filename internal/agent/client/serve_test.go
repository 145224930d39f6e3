package client

import (
	"bytes"
	"io"
	"net"
	"testing"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// mute gives a client of an agent that says hello, and then nothing.
func mute(t testing.TB) *Client {
	t.Helper()
	host, guest := net.Pipe()
	go func() {
		if _, err := wire.NewConn(guest).Hello(); err == nil {
			io.Copy(io.Discard, guest)
		}
	}()
	c, err := New(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close(); c.Close() })
	return c
}

// A peer is another process of the guest's owner; what it sends must not harm the one that runs the machine.
func FuzzServe(f *testing.F) {
	hello := wire.Hello{Version: wire.Version}.Marshal()
	var b bytes.Buffer
	conn := wire.NewConn(&b)
	conn.Send(wire.TypeHello, 0, hello)
	conn.Send(wire.TypeStart, 1, wire.Start{Args: []string{"true"}}.Marshal())
	conn.Send(wire.TypeStdin, 1, []byte("text"))
	conn.Send(wire.TypeSignal, 1, wire.Number(9).Marshal())
	f.Add(b.Bytes())
	f.Add([]byte("garbage that is no frame at all"))
	f.Fuzz(func(t *testing.T, p []byte) {
		c := mute(t)
		near, far := net.Pipe()
		served := make(chan struct{})
		go func() { c.Serve(far, nil); close(served) }()
		go io.Copy(io.Discard, near)
		near.Write(p)
		near.Close()
		<-served
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			t.Errorf("the agent's connection ended: %v", c.err)
		}
	})
}
