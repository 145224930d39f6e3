package fifo

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestBytesComeOutInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var f Bytes
	var in, out []byte
	for range 2000 {
		p := make([]byte, r.IntN(300))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		f.Write(p)
		in = append(in, p...)
		q := make([]byte, r.IntN(300))
		out = append(out, q[:f.Read(q)]...)
		if f.Len() != len(in)-len(out) {
			t.Fatalf("%d wait, want %d", f.Len(), len(in)-len(out))
		}
	}
	if out = append(out, f.Peek()...); !bytes.Equal(in, out) {
		t.Error("what came out is not what went in")
	}
	if c := cap(f.b); c > 1<<17 {
		t.Errorf("%d bytes kept for %d", c, f.Len())
	}
}
