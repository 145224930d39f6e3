package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/x86"
)

// A Client is a tool's end of a guest's socket. Its methods may be called from any goroutine; each waits for the one before.
type Client struct {
	mu  sync.Mutex // guards what follows: one request at a time
	c   *net.UnixConn
	buf []byte
	fd  int // a descriptor that came with the last answer, or -1
}

// NewClient takes a connection over.
func NewClient(c *net.UnixConn) *Client { return &Client{c: c, fd: -1} }

// Dial connects to the process of a guest of the registry.
func Dial(e *host.Entry) (*Client, error) {
	c, err := e.Dial()
	if err != nil {
		return nil, err
	}
	return NewClient(c), nil
}

// Close ends the connection, and with it a call that waits.
func (c *Client) Close() error { return c.c.Close() }

// Info is what the process says of its guest.
func (c *Client) Info() (host.State, error) {
	a, err := c.call(Request{Verb: VerbInfo})
	if err != nil || a.State == nil {
		return host.State{}, orMissing(err)
	}
	return *a.State, nil
}

// Stop tells the guest to end, and returns when it has.
func (c *Client) Stop() error {
	_, err := c.call(Request{Verb: VerbStop})
	return err
}

// Kill ends the guest.
func (c *Client) Kill() error {
	_, err := c.call(Request{Verb: VerbKill})
	return err
}

// Pause makes the guest stand still.
func (c *Client) Pause() error {
	_, err := c.call(Request{Verb: VerbPause})
	return err
}

// Resume lets it go on.
func (c *Client) Resume() error {
	_, err := c.call(Request{Verb: VerbResume})
	return err
}

// Signal sends the guest's command a signal.
func (c *Client) Signal(sig unix.Signal) error {
	_, err := c.call(Request{Verb: VerbSignal, Signal: int(sig)})
	return err
}

// Wait waits until the guest has ended.
func (c *Client) Wait() (Exit, error) {
	a, err := c.call(Request{Verb: VerbWait})
	if err != nil || a.Exit == nil {
		return Exit{}, orMissing(err)
	}
	return *a.Exit, nil
}

// Inspect is all that the process says of its guest, as JSON.
func (c *Client) Inspect() ([]byte, error) {
	a, err := c.call(Request{Verb: VerbInspect})
	if err != nil {
		return nil, err
	}
	return a.Inspect, nil
}

// Stream makes the connection what verb, VerbExec or VerbConsole, makes of it. The Client is not to be used any more.
func (c *Client) Stream(verb string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.callLocked(Request{Verb: verb}); err != nil {
		return nil, err
	}
	return &stream{c.c, c.buf}, nil
}

// A stream is a connection of which some was read already. It is no *net.UnixConn, whose WriteTo would pass that over.
type stream struct {
	net.Conn
	read []byte
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.read) == 0 {
		return s.Conn.Read(p)
	}
	n := copy(p, s.read)
	s.read = s.read[n:]
	return n, nil
}

// Registers fills r with a CPU's.
func (c *Client) Registers(cpu int, r *x86.Regs) error {
	a, err := c.call(Request{Verb: VerbRegisters, CPU: cpu})
	if err != nil || a.Registers == nil {
		return orMissing(err)
	}
	*r = *a.Registers
	return nil
}

// Samples asks for samples and calls fn with each lot of them, on this goroutine; lost says how many are missing. It returns when the time
// is over, or fn returns an error. Registers cannot be had meanwhile: use another Client.
func (c *Client) Samples(hz int, seconds float64, fn func(all []Sample, lost int) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.callLocked(Request{Verb: VerbSamples, Hz: hz, Seconds: seconds})
	for err == nil {
		if err = fn(a.Samples, a.Lost); err != nil || a.Last {
			break
		}
		a, err = c.answer()
	}
	if err != nil {
		c.c.Close() // what still comes would be taken for the next answer
	}
	return err
}

func orMissing(err error) error {
	if err == nil {
		err = errors.New("control: the answer lacks what was asked for")
	}
	return err
}

func (c *Client) call(r Request) (*Answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.callLocked(r)
}

func (c *Client) callLocked(r Request) (*Answer, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, err := c.c.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	return c.answer()
}

// answer reads one. The caller holds c.mu.
func (c *Client) answer() (*Answer, error) {
	line, err := readLine(&c.buf, c.read)
	if err != nil {
		return nil, fmt.Errorf("control: the guest's process does not answer: %w", err)
	}
	var a Answer
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("control: answer: %w", err)
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return &a, nil
}

// read reads bytes, and keeps a descriptor that comes with them.
func (c *Client) read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.c.ReadMsgUnix(p, oob)
	if err != nil { // n and oobn are -1 then
		return 0, err
	}
	msgs, _ := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			if c.fd >= 0 {
				unix.Close(c.fd)
			}
			c.fd = fd
		}
	}
	if n == 0 && err == nil {
		err = net.ErrClosed
	}
	return n, err
}

// takeFD gives the descriptor that came with the last answer, once.
func (c *Client) takeFD() int {
	fd := c.fd
	c.fd = -1
	return fd
}
