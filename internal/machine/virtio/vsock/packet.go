package vsock

import (
	"encoding/binary"
	"io"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

var le = binary.LittleEndian

// headerSize is that of struct virtio_vsock_hdr (virtio 1.2 section 5.10.6).
const headerSize = 44

// Operations, the socket type, flags of a shutdown, and the event.
const (
	opRequest       = 1
	opResponse      = 2
	opRST           = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	typeStream = 1

	noReceive = 1 // the sender will not receive any more
	noSend    = 2

	eventTransportReset = 0
)

type header struct {
	srcCID, dstCID     uint64
	srcPort, dstPort   uint32
	length             uint32
	kind, op           uint16
	flags              uint32
	bufAlloc, fwdCount uint32
}

func (h *header) append(b []byte) []byte {
	b = le.AppendUint64(b, h.srcCID)
	b = le.AppendUint64(b, h.dstCID)
	b = le.AppendUint32(b, h.srcPort)
	b = le.AppendUint32(b, h.dstPort)
	b = le.AppendUint32(b, h.length)
	b = le.AppendUint16(b, h.kind)
	b = le.AppendUint16(b, h.op)
	b = le.AppendUint32(b, h.flags)
	b = le.AppendUint32(b, h.bufAlloc)
	return le.AppendUint32(b, h.fwdCount)
}

func parse(b *[headerSize]byte) header {
	return header{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		length: le.Uint32(b[24:]), kind: le.Uint16(b[28:]), op: le.Uint16(b[30:]),
		flags: le.Uint32(b[32:]), bufAlloc: le.Uint32(b[36:]), fwdCount: le.Uint32(b[40:]),
	}
}

// readHeader takes a packet's header from c; ok is false for one that is cut short.
func readHeader(c *virtio.Chain) (h header, ok bool) {
	var b [headerSize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return h, false
	}
	h = parse(&b)
	return h, uint64(h.length) <= c.ReadableLen()
}
