package cfi

import "errors"

var (
	errTruncated = errors.New("it ends too early")
	errEncoding  = errors.New("a pointer of unknown encoding")
)

// An encoding says how a pointer is stored (LSB 10.5.1).
type encoding uint8

const (
	absptr encoding = 0x00
	uleb   encoding = 0x01
	udata2 encoding = 0x02
	udata4 encoding = 0x03
	udata8 encoding = 0x04
	sleb   encoding = 0x09
	sdata2 encoding = 0x0A
	sdata4 encoding = 0x0B
	sdata8 encoding = 0x0C

	pcrel    encoding = 0x10
	datarel  encoding = 0x30
	indirect encoding = 0x80
	omit     encoding = 0xFF

	formatMask   encoding = 0x0F
	relativeMask encoding = 0x70
)

// size is the bytes of a pointer; 0 where that varies or is unknown.
func (e encoding) size() uint64 {
	switch e & formatMask {
	case udata2, sdata2:
		return 2
	case udata4, sdata4:
		return 4
	case absptr, udata8, sdata8:
		return 8
	}
	return 0
}

// A reader takes values off memory from at to end. After an error all are 0.
type reader struct {
	mem     Memory
	at, end uint64
	data    uint64 // what datarel is relative to
	err     error
	window  [64]byte // of memory from start
	start   uint64
	n       uint64
}

// byte gives the next byte. Short windows, since what lies behind end may not be there.
func (r *reader) byte() byte {
	if r.err == nil && r.at >= r.end {
		r.err = errTruncated
	}
	if r.err != nil {
		return 0
	}
	if r.at-r.start >= r.n {
		n := min(r.end-r.at, uint64(len(r.window)))
		if err := r.mem.ReadAt(r.window[:n], r.at); err != nil {
			r.err = err
			return 0
		}
		r.start, r.n = r.at, n
	}
	b := r.window[r.at-r.start]
	r.at++
	return b
}

func (r *reader) uint(bytes uint64) (v uint64) {
	for i := range bytes {
		v |= uint64(r.byte()) << (8 * i)
	}
	return v
}

func (r *reader) uleb() (v uint64) {
	for shift := 0; ; shift += 7 {
		b := r.byte()
		if shift < 64 {
			v |= uint64(b&0x7F) << shift
		}
		if b < 0x80 {
			return v
		}
	}
}

func (r *reader) sleb() int64 {
	var v uint64
	for shift := 0; ; {
		b := r.byte()
		if shift < 64 {
			v |= uint64(b&0x7F) << shift
		}
		shift += 7
		if b < 0x80 {
			if b&0x40 != 0 && shift < 64 {
				v |= ^uint64(0) << shift
			}
			return int64(v)
		}
	}
}

func (r *reader) string() string {
	var s []byte
	for {
		b := r.byte()
		if b == 0 {
			return string(s)
		}
		s = append(s, b)
	}
}

func (r *reader) skip(n uint64) {
	if r.err == nil && n > r.end-r.at {
		r.err = errTruncated
	}
	if r.err == nil {
		r.at += n
	}
}

// take gives the next n bytes, which are the caller's.
func (r *reader) take(n uint64) []byte {
	at := r.at
	if r.skip(n); r.err != nil {
		return nil
	}
	p := make([]byte, n)
	if err := r.mem.ReadAt(p, at); err != nil {
		r.err = err
		return nil
	}
	return p
}

// rest gives all up to the end.
func (r *reader) rest() []byte {
	if r.err != nil || r.at > r.end {
		return nil
	}
	return r.take(r.end - r.at)
}

// pointer reads an encoded pointer. One that is to be read through another is given as 0: only handlers' addresses are, which nobody here needs.
func (r *reader) pointer(e encoding) (v uint64) {
	if e == omit {
		return 0
	}
	base := uint64(0)
	switch e & relativeMask {
	case 0:
	case pcrel:
		base = r.at
	case datarel:
		base = r.data
	default:
		r.fail(errEncoding)
	}
	switch f := e & formatMask; f {
	case absptr, udata8, sdata8:
		v = r.uint(8)
	case udata2:
		v = r.uint(2)
	case udata4:
		v = r.uint(4)
	case sdata2:
		v = uint64(int16(r.uint(2)))
	case sdata4:
		v = uint64(int32(r.uint(4)))
	case uleb:
		v = r.uleb()
	case sleb:
		v = uint64(r.sleb())
	default:
		r.fail(errEncoding)
	}
	if e&indirect != 0 || r.err != nil {
		return 0
	}
	return base + v
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}
