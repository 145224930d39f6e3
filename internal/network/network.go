// Package network is what a guest's network card and the network that it is plugged into say to each other: Ethernet frames, and
// which part of the work on them is left to whoever receives them.
package network

import "fmt"

const (
	// HeaderSize is the Ethernet header's: destination, source, type.
	HeaderSize = 14
	// MTU is the most that a frame carries on the wire. A frame with a Segment size carries more, to be cut.
	MTU = 1500
	// MaxFrame bounds every frame: a whole IP packet behind an Ethernet header.
	MaxFrame = HeaderSize + 1<<16 - 1
)

// A MAC is an Ethernet address.
type MAC [6]byte

// String writes the address as Linux does.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// An Offload is what the receiver of a frame does, or need not have done, because the frame never crosses a wire. The zero value is a frame
// as it would be on one.
type Offload struct {
	// PartialSum: where the checksum belongs, at SumStart+SumOffset, stands the sum of the pseudo-header only. Added up are the bytes from SumStart
	// to the frame's end.
	PartialSum          bool
	SumStart, SumOffset uint16
	// Segment says how the frame is to be cut, into SegmentSize bytes of payload each, behind headers of HeaderSize bytes (a hint).
	Segment     Segment
	SegmentSize uint16
	HeaderSize  uint16
	// ECN: the TCP header has CWR set, which belongs to the first segment only.
	ECN bool
}

// Segment is how a frame is to be cut.
type Segment uint8

// The kinds of frames that are cut.
const (
	Whole Segment = iota // it is not cut
	TCP4                 // TCP over IPv4
	TCP6                 // TCP over IPv6
)

// Abilities are what one side takes from the other, as bits.
type Abilities uint8

// The abilities.
const (
	Sums     Abilities = 1 << iota // frames with a partial checksum
	CutsTCP4                       // frames to be cut, with a partial checksum
	CutsTCP6
)

// Takes tells whether a frame with o may be given to who has these abilities.
func (a Abilities) Takes(o Offload) bool {
	need := Abilities(0)
	if o.PartialSum {
		need |= Sums
	}
	switch o.Segment {
	case TCP4:
		need |= Sums | CutsTCP4
	case TCP6:
		need |= Sums | CutsTCP6
	}
	return a&need == need
}

// A Frame is one on its way to the guest.
type Frame struct {
	// Parts are the frame's bytes, one part after the other, from the Ethernet header on; Size is all of them.
	Parts [][]byte
	Size  int
	Offload
}

// A Network is what a card is plugged into. Up and Down may be called from any goroutine, Send from one at a time, Front and Pop from one at a time.
type Network interface {
	// Up says that the guest's driver is ready and takes frames with what takes says. wake is called whenever Front may give something
	// after it gave nothing, room whenever Send may take a frame after it took none; they do not block. Down follows before the next Up; wake
	// and room may still be called once after it.
	Up(takes Abilities, wake, room func())
	Down()
	// Send hands over a frame of the guest, of size bytes in all, or tells that there is no room for it now. The guest may change the bytes at
	// any time: they are copied before they are looked at, and not kept. Send never waits for anybody; what finds no room further on
	// is dropped.
	Send(parts [][]byte, size int, o Offload) bool
	// Front gives the next frame for the guest, or nil. It is valid until Pop, which takes it away.
	Front() *Frame
	Pop()
}
