package virtio

import (
	"io"

	"vitrine.dev/vitrine/internal/mem"
)

// A Chain is one request: buffers of the guest, none of them empty. The guest may change their bytes at any time, so what is
// checked must be copied first. A Chain belongs to whoever popped it until [Queue.Push].
type Chain struct {
	// Readable is what the driver gives, for reading only. Read consumes it from the front.
	Readable [][]byte
	// Writable is where the driver wants its answer. Who fills it tells Push how much; Write fills it from the front.
	Writable [][]byte

	head            uint16
	in, out         [][]byte // the whole of both: the memory is kept for the next chain
	inSegs, outSegs []Segment
	filled          uint64
}

// A Segment is where a buffer is in the guest.
type Segment struct {
	Addr mem.Addr
	Len  uint32
}

// Segments says where the whole of Readable and Writable is, for who has the guest's memory mapped elsewhere.
func (c *Chain) Segments() (readable, writable []Segment) { return c.inSegs, c.outSegs }

func (c *Chain) add(ram *mem.Memory, a mem.Addr, n uint32, write bool) error {
	if !write && len(c.out) > 0 {
		return errOrder
	}
	if n == 0 {
		return nil
	}
	p, err := ram.Slice(a, uint64(n))
	if err != nil {
		return err
	}
	if write {
		c.out, c.outSegs = append(c.out, p), append(c.outSegs, Segment{a, n})
		c.Writable = c.out
	} else {
		c.in, c.inSegs = append(c.in, p), append(c.inSegs, Segment{a, n})
		c.Readable = c.in
	}
	return nil
}

// ReadableLen is the bytes left in Readable.
func (c *Chain) ReadableLen() uint64 { return size(c.Readable) }

// WritableLen is the bytes left in Writable.
func (c *Chain) WritableLen() uint64 { return size(c.Writable) }

// Filled is how many bytes Write wrote, for Push.
func (c *Chain) Filled() uint64 { return c.filled }

// Read implements [io.Reader] on Readable.
func (c *Chain) Read(p []byte) (n int, err error) {
	for n < len(p) && len(c.Readable) > 0 {
		k := copy(p[n:], c.Readable[0])
		n += k
		c.Readable = advance(c.Readable, k)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write implements [io.Writer] on Writable.
func (c *Chain) Write(p []byte) (n int, err error) {
	for n < len(p) && len(c.Writable) > 0 {
		k := copy(c.Writable[0], p[n:])
		n += k
		c.Writable = advance(c.Writable, k)
	}
	c.filled += uint64(n)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// report tells the memory that the first n writable bytes were written.
func (c *Chain) report(ram *mem.Memory, n uint64) {
	for _, s := range c.outSegs {
		k := min(n, uint64(s.Len))
		if k == 0 {
			return
		}
		ram.Written(s.Addr, int(k))
		n -= k
	}
}

func advance(v [][]byte, n int) [][]byte {
	if v[0] = v[0][n:]; len(v[0]) == 0 {
		return v[1:]
	}
	return v
}

func size(v [][]byte) (n uint64) {
	for _, p := range v {
		n += uint64(len(p))
	}
	return n
}

// chain gives an empty Chain, an old one if there is one. q.mu is held.
func (q *Queue) chain() *Chain {
	if n := len(q.free); n > 0 {
		c := q.free[n-1]
		q.free = q.free[:n-1]
		*c = Chain{in: c.in[:0], out: c.out[:0], inSegs: c.inSegs[:0], outSegs: c.outSegs[:0]}
		return c
	}
	return &Chain{}
}

func (q *Queue) recycle(c *Chain) {
	c.Readable, c.Writable = nil, nil
	q.free = append(q.free, c)
}
