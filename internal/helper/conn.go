package helper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// MaxPacket bounds a packet, in bytes; maxFiles the descriptors that come with one.
const (
	MaxPacket = 64 << 10
	maxFiles  = 64
)

// A Conn carries packets of JSON, with descriptors. Send may be called from any goroutine, Recv from one at a time.
type Conn struct {
	c  *net.UnixConn
	mu sync.Mutex // held while sending
}

// newConn takes descriptor fd over.
func newConn(fd int) (*Conn, error) {
	f := os.NewFile(uintptr(fd), "helper")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("not a unix socket")
	}
	return &Conn{c: u}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

// Send sends v, with copies of descriptors, which stay the caller's.
func (c *Conn) Send(v any, files ...int) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > MaxPacket {
		return fmt.Errorf("a packet of %d bytes", len(text))
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, err = c.c.WriteMsgUnix(text, oob, nil)
	return err
}

// Recv receives a packet into v, and the descriptors that came with it, which are the caller's. The error is io.EOF where the other side has gone.
func (c *Conn) Recv(v any) (files []int, err error) {
	text, oob := make([]byte, MaxPacket), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range msgs {
		fds, _ := unix.ParseUnixRights(&m)
		files = append(files, fds...)
	}
	switch {
	case err != nil:
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("a packet that was cut")
	default:
		err = json.Unmarshal(text[:n], v)
	}
	if err != nil {
		for _, fd := range files {
			unix.Close(fd)
		}
		return nil, err
	}
	return files, nil
}
