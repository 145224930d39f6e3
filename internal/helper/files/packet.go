package files

import (
	"encoding/binary"
	"errors"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/mem"
)

// A request is a slot (32 bits), how many segments are readable and how many writable (16 bits each), and the segments, each an address in guest
// memory (64) and a length (32). An answer is the slot and the bytes written. Little-endian, one packet each.
const (
	requestHead = 8
	segmentSize = 12
	answerSize  = 8
	maxRequest  = requestHead + segmentSize*virtio.MaxChain
)

var le = binary.LittleEndian

func appendRequest(b []byte, slot uint32, in, out []virtio.Segment) []byte {
	b = le.AppendUint32(b, slot)
	b = le.AppendUint16(b, uint16(len(in)))
	b = le.AppendUint16(b, uint16(len(out)))
	for _, all := range [2][]virtio.Segment{in, out} {
		for _, s := range all {
			b = le.AppendUint64(b, uint64(s.Addr))
			b = le.AppendUint32(b, s.Len)
		}
	}
	return b
}

var errPacket = errors.New("helper files: a malformed request")

// A request is one as the helper sees it: buffers of guest memory, which may change at any time.
type request struct {
	slot    uint32
	in, out [][]byte
}

// parse reads a packet, keeping the memory of the last one's buffers. Who sends it is not trusted: it runs the guest.
func (r *request) parse(ram *mem.Memory, b []byte) error {
	if len(b) < requestHead {
		return errPacket
	}
	r.slot = le.Uint32(b)
	in, out := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if b = b[requestHead:]; len(b) != segmentSize*(in+out) {
		return errPacket
	}
	r.in, r.out = r.in[:0], r.out[:0]
	for i := range in + out {
		s := b[segmentSize*i:]
		p, err := ram.Slice(mem.Addr(le.Uint64(s)), uint64(le.Uint32(s[8:])))
		if err != nil {
			return err
		}
		if i < in {
			r.in = append(r.in, p)
		} else {
			r.out = append(r.out, p)
		}
	}
	return nil
}

func putAnswer(b *[answerSize]byte, slot, n uint32) {
	le.PutUint32(b[:], slot)
	le.PutUint32(b[4:], n)
}

func parseAnswer(b []byte) (slot, n uint32, ok bool) {
	if len(b) != answerSize {
		return 0, 0, false
	}
	return le.Uint32(b), le.Uint32(b[4:]), true
}
