package decompress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
)

const (
	lzopMagic = "\x89LZO\x00\r\n\x1a\n"
	lzopBlock = 8 << 20 // more than any block that lzop makes for a kernel: 256 KiB (lib/decompress_unlzo.c)
)

// Flags of an lzop file: which checksums stand before each block, of its content (D) or of its compressed form (C).
const (
	lzopAdlerD = 1 << 0
	lzopAdlerC = 1 << 1
	lzopExtra  = 1 << 6
	lzopCRCD   = 1 << 8
	lzopCRCC   = 1 << 9
	lzopFilter = 1 << 11
)

var errLZO = errors.New("bad block")

type lzopReader struct {
	r     io.Reader
	flags uint32
	in    []byte
	out   []byte
	rest  []byte
	n     int
	err   error // the first error of a field read
}

// openLZOP reads the header (lzop's own format; lib/decompress_unlzo.c parse_header).
func openLZOP(r io.Reader) (io.Reader, error) {
	z := &lzopReader{r: r}
	z.skip(len(lzopMagic))
	version := z.uint(2)
	z.skip(2) // the library's version
	newer := version >= 0x0940
	if newer {
		z.skip(2) // the version needed
	}
	z.skip(1) // method: all are LZO1X to a decompressor
	if newer {
		z.skip(1) // level
	}
	z.flags = z.uint(4)
	if z.flags&(lzopFilter|lzopExtra) != 0 {
		return nil, errors.New("lzop filters and extra fields are not known")
	}
	z.skip(8) // mode, time
	if newer {
		z.skip(4)
	}
	z.skip(int(z.uint(1))) // name
	z.skip(4)              // header's checksum
	return z, z.err
}

func (z *lzopReader) skip(n int) {
	if z.err == nil {
		_, z.err = io.CopyN(io.Discard, z.r, int64(n))
		z.err = noEOF(z.err)
	}
}

func (z *lzopReader) uint(n int) uint32 {
	var p [4]byte
	if z.err == nil {
		_, z.err = io.ReadFull(z.r, p[4-n:])
		z.err = noEOF(z.err)
	}
	return binary.BigEndian.Uint32(p[:])
}

func (z *lzopReader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		if z.err == nil {
			z.err = z.block()
		}
		if z.err != nil {
			return 0, z.err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lzopReader) block() error {
	size := z.uint(4)
	if z.err != nil || size == 0 {
		return cmpErr(z.err, io.EOF)
	}
	packed := z.uint(4)
	if size > lzopBlock || packed > size || packed == 0 {
		return cmpErr(z.err, fmt.Errorf("block %d of %d bytes in %d", z.n, size, packed))
	}
	var adler uint32
	if z.flags&lzopAdlerD != 0 {
		adler = z.uint(4)
	}
	for _, f := range []uint32{lzopCRCD, lzopAdlerC, lzopCRCC} {
		if z.flags&f != 0 && (f == lzopCRCD || packed < size) {
			z.skip(4)
		}
	}
	if z.err != nil {
		return z.err
	}
	if cap(z.in) < int(packed) {
		z.in = make([]byte, packed)
	}
	if cap(z.out) < int(size) {
		z.out = make([]byte, 0, size)
	}
	in := z.in[:packed]
	if _, err := io.ReadFull(z.r, in); err != nil {
		return noEOF(err)
	}
	out := in
	if packed < size {
		var err error
		if out, err = lzoDecode(z.out[:0:size], in); err != nil || len(out) != int(size) {
			return fmt.Errorf("block %d: %w", z.n, cmpErr(err, errLZO))
		}
	}
	if z.flags&lzopAdlerD != 0 && adler32.Checksum(out) != adler {
		return fmt.Errorf("block %d: wrong checksum", z.n)
	}
	z.rest = out
	z.n++
	return nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// lzoDecode appends an LZO1X stream's content to dst, never beyond its capacity. The format, with its "state" (how many
// literals came before), is Linux's Documentation/staging/lzo.rst.
func lzoDecode(dst, src []byte) ([]byte, error) {
	pos := 0
	next := func() int { // 0 past the end, where the check below the switch catches it
		if pos < len(src) {
			pos++
			return int(src[pos-1])
		}
		pos = len(src) + 1
		return 0
	}
	length := func(n, bits int) int { // 0 in the field: zeros of 255 each follow, then the last byte
		if n != 0 {
			return n
		}
		n = 1<<bits - 1
		for pos < len(src) && src[pos] == 0 {
			n += 255
			pos++
		}
		return n + next()
	}
	state := 0
	literals := func(n int) bool {
		if n > len(src)-pos || n > cap(dst)-len(dst) {
			return false
		}
		dst = append(dst, src[pos:pos+n]...)
		pos += n
		return true
	}
	if len(src) > 0 && src[0] > 17 {
		n := next() - 17
		if !literals(n) {
			return nil, errLZO
		}
		state = min(n, 4)
	}
	for pos < len(src) {
		var dist, n, trail int
		switch op := next(); {
		case op >= 64:
			n = 3 + op>>5&1
			if op >= 128 {
				n = 5 + op>>5&3
			}
			dist, trail = next()<<3+op>>2&7+1, op&3
		case op >= 32:
			n = 2 + length(op&31, 5)
			lo := next()
			dist, trail = (next()<<8|lo)>>2+1, lo&3
		case op >= 16:
			n = 2 + length(op&7, 3)
			lo := next()
			dist, trail = 16384+op>>3&1<<14+(next()<<8|lo)>>2, lo&3
			if dist == 16384 {
				if pos != len(src) {
					return nil, errLZO
				}
				return dst, nil
			}
		case state == 0:
			if !literals(3 + length(op, 4)) {
				return nil, errLZO
			}
			state = 4
			continue
		case state == 4:
			n, dist, trail = 3, next()<<2+op>>2+2049, op&3
		default:
			n, dist, trail = 2, next()<<2+op>>2+1, op&3
		}
		if pos > len(src) {
			return nil, errLZO
		}
		if dst = copyMatch(dst, dist, n); dst == nil || !literals(trail) {
			return nil, errLZO
		}
		state = trail
	}
	return nil, errLZO
}
