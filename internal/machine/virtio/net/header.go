package net

import (
	"encoding/binary"
	"errors"

	"vitrine.dev/vitrine/internal/network"
)

var le = binary.LittleEndian

// struct virtio_net_hdr (virtio 1.2 section 5.1.6), which VERSION_1 gives num_buffers always.
const (
	hdrFlags      = 0
	hdrGSOType    = 1
	hdrLen        = 2
	hdrGSOSize    = 4
	hdrSumStart   = 6
	hdrSumOffset  = 8
	hdrNumBuffers = 10
	headerSize    = 12

	flagNeedsSum = 1

	gsoNone = 0
	gsoTCP4 = 1
	gsoTCP6 = 4
	gsoECN  = 0x80
)

// Why a header is refused.
var (
	errFlags   = errors.New("flags that were not agreed on")
	errGSOType = errors.New("a kind of segmentation that was not agreed on")
	errGSOSize = errors.New("segmentation without a size or a checksum")
	errSum     = errors.New("a checksum outside of the frame")
)

// segments is gso_type in our words.
var segments = map[uint8]network.Segment{gsoNone: network.Whole, gsoTCP4: network.TCP4, gsoTCP6: network.TCP6}

// parseHeader reads the header of a frame with size bytes that the guest sent. What it returns is within the frame and within what gives says.
func parseHeader(h *[headerSize]byte, size int, gives network.Abilities) (network.Offload, error) {
	var o network.Offload
	if h[hdrFlags]&^flagNeedsSum != 0 {
		return o, errFlags
	}
	segment, ok := segments[h[hdrGSOType]&^gsoECN]
	if !ok {
		return o, errGSOType
	}
	if o.Segment = segment; segment != network.Whole {
		o.SegmentSize, o.HeaderSize, o.ECN = le.Uint16(h[hdrGSOSize:]), le.Uint16(h[hdrLen:]), h[hdrGSOType]&gsoECN != 0
	}
	if h[hdrFlags]&flagNeedsSum != 0 {
		o.PartialSum, o.SumStart, o.SumOffset = true, le.Uint16(h[hdrSumStart:]), le.Uint16(h[hdrSumOffset:])
		if int(o.SumStart)+int(o.SumOffset)+2 > size {
			return network.Offload{}, errSum
		}
	}
	if segment != network.Whole && (o.SegmentSize == 0 || !o.PartialSum) {
		return network.Offload{}, errGSOSize
	}
	if !gives.Takes(o) {
		return network.Offload{}, errFlags
	}
	return o, nil
}

// putHeader writes the header of a frame for the guest, spread over buffers chains.
func putHeader(h *[headerSize]byte, o *network.Offload, buffers int) {
	*h = [headerSize]byte{}
	if o.PartialSum {
		h[hdrFlags] = flagNeedsSum
		le.PutUint16(h[hdrSumStart:], o.SumStart)
		le.PutUint16(h[hdrSumOffset:], o.SumOffset)
	}
	switch o.Segment {
	case network.TCP4:
		h[hdrGSOType] = gsoTCP4
	case network.TCP6:
		h[hdrGSOType] = gsoTCP6
	}
	if o.Segment != network.Whole {
		le.PutUint16(h[hdrGSOSize:], o.SegmentSize)
		le.PutUint16(h[hdrLen:], o.HeaderSize)
		if o.ECN {
			h[hdrGSOType] |= gsoECN
		}
	}
	le.PutUint16(h[hdrNumBuffers:], uint16(buffers))
}
