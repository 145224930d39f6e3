// Package wire is what a guest's agent and the process that runs its machine say to each other.
//
// Frames travel over one stream connection (vsock). Each has a type, a stream and a payload; a stream is one command, number 0 is
// the guest itself. The first frame from either side is a Hello with the version and what its sender can do. Frames and
// fields that a side does not know it skips, so that either may be the older one. Messages are encoded as protobuf
// encodes them (fields.go).
package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"sync"
)

// Port is the vsock port on the host (CID 2) that an agent connects to.
const Port = 0x5654

// Version is the protocol's; it grows when an older peer could not follow.
const Version = 1

// AbilityUser is an agent's that heeds Start.User.
const AbilityUser = "user"

// Limits of what is accepted. An argument list is at most 2 MiB on Linux (MAX_ARG_STRLEN times much more, but a quarter of an
// 8 MiB stack in all), so the largest message is a Start.
const (
	MaxPayload = 4 << 20
	MaxData    = 32 << 10 // of Stdin, Stdout and Stderr as we send them
	Window     = 256 << 10
	headerSize = 12
)

// Type says what a frame carries.
type Type uint16

// The types of frames. (h): from host to guest, (g): from guest to host.
const (
	TypeHello    Type = 1  // Hello, first in both directions
	TypeSetup    Type = 2  // (h) Setup, on stream 0; answered by TypeReady or TypeFailed
	TypeReady    Type = 3  // (g) the guest is set up
	TypeFailed   Type = 4  // (g) Failed: on stream 0 of the set-up, else that command did not start
	TypeStart    Type = 5  // (h) Start: a new stream
	TypeStdin    Type = 6  // (h) bytes; empty is the end
	TypeStdout   Type = 7  // (g) bytes; empty is the end
	TypeStderr   Type = 8  // (g) bytes; empty is the end
	TypeCredit   Type = 9  // Credit: the receiver of Stdin, Stdout or Stderr can take more
	TypeSignal   Type = 10 // (h) Number: a signal for the command
	TypeResize   Type = 11 // (h) Size: the terminal's
	TypeExit     Type = 12 // (g) Number: the status as a shell has it; after the last Stdout and Stderr
	TypePowerOff Type = 13 // (h) on stream 0: sync and power off
)

// ErrTooLong is returned for a frame whose header announces more than MaxPayload.
var ErrTooLong = errors.New("wire: frame too long")

// A Frame is one unit of the conversation.
type Frame struct {
	Type    Type
	Stream  uint32
	Payload []byte // valid until the next Recv
}

// A Conn frames a byte stream. Send may be called from any goroutine, Recv from one at a time.
type Conn struct {
	rw  io.ReadWriter
	in  []byte // Recv's payload
	hdr [headerSize]byte

	mu  sync.Mutex // guards out, and keeps frames whole
	out []byte
}

// NewConn frames rw, which stays the caller's to close.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{rw: rw} }

// Send writes one frame, in one Write. It does not keep payload.
func (c *Conn) Send(t Type, stream uint32, payload []byte) error {
	if len(payload) > MaxPayload {
		return ErrTooLong
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b := binary.LittleEndian.AppendUint32(c.out[:0], uint32(len(payload)))
	b = binary.LittleEndian.AppendUint16(b, uint16(t))
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, stream)
	b = append(b, payload...)
	c.out = b
	_, err := c.rw.Write(b)
	return err
}

// Recv reads one frame, of any type. The end of the stream between two frames is io.EOF.
func (c *Conn) Recv() (Frame, error) {
	if _, err := io.ReadFull(c.rw, c.hdr[:]); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(c.hdr[:])
	f := Frame{Type: Type(binary.LittleEndian.Uint16(c.hdr[4:])), Stream: binary.LittleEndian.Uint32(c.hdr[8:])}
	if n > MaxPayload {
		return f, ErrTooLong
	}
	c.in = c.in[:0]
	for left := int(n); left > 0; { // what is announced is believed only as it arrives
		k, at := min(left, MaxData), len(c.in)
		c.in = append(c.in, make([]byte, k)...)
		if _, err := io.ReadFull(c.rw, c.in[at:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return f, err
		}
		left -= k
	}
	f.Payload = c.in
	return f, nil
}

// Hello begins a conversation: it sends ours and waits for the peer's.
func (c *Conn) Hello(abilities ...string) (Hello, error) {
	sent := make(chan error, 1)
	go func() { sent <- c.Send(TypeHello, 0, Hello{Version, abilities}.Marshal()) }()
	f, err := c.Recv()
	if err == nil {
		err = <-sent
	}
	if err != nil {
		return Hello{}, err
	}
	if f.Type != TypeHello {
		return Hello{}, errors.New("wire: the first frame is of type " + strconv.Itoa(int(f.Type)) + ", not a hello")
	}
	var h Hello
	if err := h.Unmarshal(f.Payload); err != nil {
		return Hello{}, err
	}
	if h.Version == 0 {
		return Hello{}, errors.New("wire: hello without a version")
	}
	return h, nil
}
