package fs

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"vitrine.dev/vitrine/internal/hostfs"
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
)

// echo is a server that answers with the request, in capitals.
type echo struct {
	confined atomic.Int32
	fail     error
	hold     *sync.WaitGroup // where set, requests wait until as many are there
	closed   atomic.Bool
}

func (e *echo) Confine() error {
	e.confined.Add(1)
	return e.fail
}

func (e *echo) Handle(in, out [][]byte) int {
	if e.hold != nil {
		e.hold.Done()
		e.hold.Wait()
	}
	req := bytes.ToUpper(bytes.Join(in, nil))
	n := 0
	for _, o := range out {
		n += copy(o, req[n:])
	}
	return n
}

func (e *echo) Close() error {
	e.closed.Store(true)
	return nil
}

func device(t *testing.T, s Server) *Device {
	t.Helper()
	d, err := New("tag", s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRequestsAreAnsweredOnConfinedThreads(t *testing.T) {
	s := &echo{}
	d := virtiotest.New(t, device(t, s)).Start(virtio.FeatureEventIdx, 0)
	for q := range queues {
		if got := d.Queues[q].Do([][]byte{[]byte("hello "), []byte("there")}, 4, 32).Answer(); string(got) != "HELLO THERE" {
			t.Errorf("queue %d answers %q", q, got)
		}
	}
	if n := s.confined.Load(); n != workers {
		t.Errorf("%d threads are confined, want %d", n, workers)
	}
}

func TestTheDriverFindsTheTagAndTheQueues(t *testing.T) {
	d := device(t, &echo{})
	defer d.Close()
	b := make([]byte, tagSize+4)
	d.ReadConfig(0, b)
	if tag := string(bytes.TrimRight(b[:tagSize], "\x00")); tag != "tag" || b[tagSize] != queues-1 {
		t.Errorf("tag %q, %d request queues", tag, b[tagSize])
	}
}

func TestAServerThatCannotBeConfinedIsNotUsed(t *testing.T) {
	s := &echo{fail: errors.New("no")}
	if d, err := New("tag", s); err == nil {
		d.Close()
		t.Error("New succeeds")
	}
	if !s.closed.Load() {
		t.Error("the server is left open")
	}
	for _, tag := range []string{"", string(make([]byte, tagSize+1))} {
		if d, err := New(tag, &echo{}); err == nil {
			d.Close()
			t.Errorf("tag of %d bytes is taken", len(tag))
		}
	}
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 4, 3, 1, 2, 3, 9, 9, 9})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := hostfs.New(hostfs.Export{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		virtiotest.Garbage(t, device(t, s), in)
	})
}
