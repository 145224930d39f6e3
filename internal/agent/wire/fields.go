package wire

import (
	"encoding/binary"
	"errors"
)

// Messages are sequences of fields: a key (field number times 8, plus 0 for a varint or 2 for bytes), then the value. It is the
// encoding of protobuf (protobuf.dev/programming-guides/encoding), of which this is the part that we need.

var errField = errors.New("wire: malformed message")

// appendUint appends a number, unless it is 0, which is what an absent one means.
func appendUint(b []byte, field int, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(field)<<3)
	return binary.AppendUvarint(b, v)
}

func appendBool(b []byte, field int, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, field, 1)
}

// appendString appends bytes, the empty ones too: in a repeated field they count.
func appendString[T string | []byte](b []byte, field int, s T) []byte {
	b = binary.AppendUvarint(b, uint64(field)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// eachField calls fn with each field of message p: v is a varint's value, s the bytes otherwise.
func eachField(p []byte, fn func(field int, v uint64, s []byte) error) error {
	for len(p) > 0 {
		key, n := binary.Uvarint(p)
		if n <= 0 || key>>3 == 0 || key>>3 > 1<<29-1 {
			return errField
		}
		p = p[n:]
		var v uint64
		var s []byte
		switch key & 7 {
		case 0:
			if v, n = binary.Uvarint(p); n <= 0 {
				return errField
			}
		case 1:
			n = 8
		case 5:
			n = 4
		case 2:
			size, k := binary.Uvarint(p)
			if k <= 0 || size > uint64(len(p)-k) {
				return errField
			}
			s, n = p[k:k+int(size)], k+int(size)
		default:
			return errField
		}
		if n > len(p) {
			return errField
		}
		p = p[n:]
		if err := fn(int(key>>3), v, s); err != nil {
			return err
		}
	}
	return nil
}
