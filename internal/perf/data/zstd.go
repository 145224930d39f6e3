package data

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"
)

// A decompressor gives the records within compressed ones (perf record -z). All of a file's are one zstd stream, flushed at the end of each.
type decompressor struct {
	do    func(raw []byte) bool
	input []byte // of the piece that is being decoded
	left  []byte // the beginning of a record whose end comes with the next piece
	// next gives what the stream holds, nil where it wants another piece.
	next func() ([]byte, bool)
	stop func()
	err  error
}

// decode is the stream: it stands still where it wants another piece, until next is called again.
func (d *decompressor) decode(yield func([]byte) bool) {
	stream, err := zstd.NewReader(source{d, yield}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrame))
	if err != nil {
		d.err = err
		return
	}
	defer stream.Close()
	for buf := make([]byte, 64<<10); ; {
		n, err := stream.Read(buf)
		if n > 0 && !yield(buf[:n]) {
			return
		}
		if err != nil {
			d.err = err
			return
		}
	}
}

// source is the stream's input: the pieces, one behind the other. The decoder calls it on the goroutine that reads the stream.
type source struct {
	d     *decompressor
	yield func([]byte) bool
}

func (s source) Read(p []byte) (int, error) {
	for len(s.d.input) == 0 {
		if !s.yield(nil) {
			return 0, io.EOF
		}
	}
	n := copy(p, s.d.input)
	s.d.input = s.d.input[n:]
	return n, nil
}

// maxFrame bounds what a piece may become: perf compresses 64 KiB at most into one, of data that may shrink a thousandfold.
const maxFrame = 64 << 20

// feed takes a compressed record. It returns false where do did.
func (d *decompressor) feed(record []byte) (more bool, err error) {
	payload := record[recordHead:]
	if le.Uint32(record) == RecordCompressed2 { // its length without padding comes first
		if len(payload) < 8 || le.Uint64(payload) > uint64(len(payload)-8) {
			return false, errors.New("a compressed record without its length")
		}
		payload = payload[8 : 8+le.Uint64(payload)]
	}
	if d.next == nil {
		d.next, d.stop = iter.Pull(d.decode)
	}
	d.input = payload
	for size := 0; ; {
		out, ok := d.next()
		if !ok {
			return false, fmt.Errorf("a compressed record: %w", d.err)
		}
		if out == nil && len(d.input) == 0 {
			break
		}
		if size += len(out); size > maxFrame {
			return false, fmt.Errorf("a compressed record holds more than %d bytes", maxFrame)
		}
		d.left = append(d.left, out...)
	}
	rest := d.left
	for len(rest) >= recordHead {
		size := int(le.Uint16(rest[6:]))
		if size < recordHead {
			return false, fmt.Errorf("a compressed record has one of %d bytes", size)
		}
		if size > len(rest) {
			break
		}
		if !d.do(rest[:size]) {
			return false, nil
		}
		rest = rest[size:]
	}
	d.left = append(d.left[:0], rest...)
	return true, nil
}

func (d *decompressor) close() {
	if d.stop != nil {
		d.stop()
	}
}
