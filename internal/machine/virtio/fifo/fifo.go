// Package fifo is a queue of bytes in memory; its users bound it.
package fifo

// Bytes is a queue of bytes. Its zero value is empty.
type Bytes struct {
	b   []byte
	off int // what was read
}

// Of makes a queue of p, which it owns from then on.
func Of(p []byte) Bytes { return Bytes{b: p} }

// Len is how many bytes wait.
func (f *Bytes) Len() int { return len(f.b) - f.off }

// Peek is all bytes that wait, until the next call.
func (f *Bytes) Peek() []byte { return f.b[f.off:] }

// Write appends p.
func (f *Bytes) Write(p []byte) {
	// Moving less than was read keeps the cost of a byte constant.
	if 2*f.off >= len(f.b) && len(f.b)+len(p) > cap(f.b) {
		f.b = f.b[:copy(f.b, f.b[f.off:])]
		f.off = 0
	}
	f.b = append(f.b, p...)
}

// Read takes as many bytes as there are and p holds.
func (f *Bytes) Read(p []byte) int {
	n := copy(p, f.Peek())
	f.Drop(n)
	return n
}

// Drop takes n bytes, which must be there.
func (f *Bytes) Drop(n int) {
	if f.off += n; f.off == len(f.b) {
		f.b, f.off = f.b[:0], 0
	}
}
