package decompress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The legacy frame, the one that Linux reads (lib/decompress_unlz4.c): the magic, then blocks, each with the length of its compressed
// bytes before it; a block holds 8 MiB, the last one less. There is no end mark and no checksum.
const (
	lz4Magic = "\x02\x21\x4c\x18"
	lz4Block = 8 << 20
)

var errLZ4 = errors.New("bad block")

type lz4Reader struct {
	r    io.Reader
	in   []byte
	out  []byte // the block
	rest []byte // what of out is not read yet
	n    int    // blocks read
}

func openLZ4(r io.Reader) (io.Reader, error) {
	var magic [4]byte
	_, err := io.ReadFull(r, magic[:])
	return &lz4Reader{r: r}, err
}

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		if err := z.block(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lz4Reader) block() error {
	var word [4]byte
	for {
		if _, err := io.ReadFull(z.r, word[:]); err != nil {
			return err // io.EOF between blocks is the end
		}
		if string(word[:]) != lz4Magic { // of a file appended to the first
			break
		}
	}
	n := binary.LittleEndian.Uint32(word[:])
	if n > lz4Block+lz4Block/255+16 { // LZ4_COMPRESSBOUND
		return fmt.Errorf("block %d of %d bytes", z.n, n)
	}
	if z.out == nil {
		z.out = make([]byte, 0, lz4Block)
		z.in = make([]byte, lz4Block+lz4Block/255+16)
	}
	if _, err := io.ReadFull(z.r, z.in[:n]); err != nil {
		return noEOF(err)
	}
	out, err := lz4Decode(z.out[:0], z.in[:n])
	if err != nil {
		return fmt.Errorf("block %d: %w", z.n, err)
	}
	z.rest = out
	z.n++
	return nil
}

// lz4Decode appends a block's content to dst, never beyond its capacity (LZ4 block format description, v1.6.3).
func lz4Decode(dst, src []byte) ([]byte, error) {
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		lit := int(token >> 4)
		if lit == 15 {
			var ok bool
			if lit, src, ok = lz4Length(lit, src); !ok {
				return nil, errLZ4
			}
		}
		if lit > len(src) || lit > cap(dst)-len(dst) {
			return nil, errLZ4
		}
		dst, src = append(dst, src[:lit]...), src[lit:]
		if len(src) == 0 {
			return dst, nil // the last sequence has literals only
		}
		if len(src) < 2 {
			return nil, errLZ4
		}
		dist := int(src[0]) | int(src[1])<<8
		src = src[2:]
		n := int(token & 15)
		if n == 15 {
			var ok bool
			if n, src, ok = lz4Length(n, src); !ok {
				return nil, errLZ4
			}
		}
		if dst = copyMatch(dst, dist, n+4); dst == nil {
			return nil, errLZ4
		}
	}
	return nil, errLZ4
}

// lz4Length reads the bytes that go on counting: 255 means that another follows.
func lz4Length(n int, src []byte) (int, []byte, bool) {
	for i, b := range src {
		if n += int(b); b != 255 {
			return n, src[i+1:], true
		}
	}
	return 0, nil, false
}

// copyMatch appends n bytes from dist before the end of dst, where the two may overlap. It returns nil if they are not there or do not fit.
func copyMatch(dst []byte, dist, n int) []byte {
	from := len(dst) - dist
	if dist == 0 || from < 0 || n > cap(dst)-len(dst) {
		return nil
	}
	for n > 0 {
		k := min(n, len(dst)-from)
		dst = append(dst, dst[from:from+k]...)
		n -= k
		// What was copied is a repetition, so going on from the same place with twice as much is right.
	}
	return dst
}
