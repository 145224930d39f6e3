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
	answered Answered
	hold     *sync.WaitGroup             // where set, requests wait until as many are there
	say      func(slot uint32, n uint64) // where set, it is told instead of the driver
	refuse   bool
	closed   atomic.Bool
}

func (e *echo) Start(a Answered) { e.answered = a }

func (e *echo) Submit(slot uint32, c *virtio.Chain) error {
	if e.refuse {
		return errors.New("no")
	}
	go func() {
		if e.hold != nil {
			e.hold.Done()
			e.hold.Wait()
		}
		req := bytes.ToUpper(bytes.Join(c.Readable, nil))
		n := 0
		for _, o := range c.Writable {
			n += copy(o, req[n:])
		}
		if e.say != nil {
			e.say(slot, uint64(n))
			return
		}
		e.answered(slot, uint64(n))
	}()
	return nil
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

func TestRequestsAreAnswered(t *testing.T) {
	d := virtiotest.New(t, device(t, &echo{})).Start(virtio.FeatureEventIdx, 0)
	for q := range queues {
		if got := d.Queues[q].Do([][]byte{[]byte("hello "), []byte("there")}, 4, 32).Answer(); string(got) != "HELLO THERE" {
			t.Errorf("queue %d answers %q", q, got)
		}
	}
}

func TestRequestsAreServedAtOnce(t *testing.T) {
	s := &echo{hold: &sync.WaitGroup{}}
	s.hold.Add(slots)
	d := virtiotest.New(t, device(t, s)).Start(virtio.FeatureEventIdx, 0)
	q := d.Queues[1]
	var all []*virtiotest.Request
	for range slots {
		all = append(all, q.Add([][]byte{[]byte("x")}, 8))
	}
	q.Kick()
	for i, r := range all {
		if q.Wait(r); string(r.Answer()) != "X" {
			t.Errorf("request %d is answered %q", i, r.Answer())
		}
	}
}

func TestAServerThatIsGoneIsAnError(t *testing.T) {
	d := virtiotest.New(t, device(t, &echo{refuse: true})).Start(virtio.FeatureEventIdx, 0)
	request := make([]byte, 40)
	request[offUnique] = 7
	got := d.Queues[1].Do([][]byte{request[:20], request[20:]}, 10, 100).Answer()
	want := []byte{16, 0, 0, 0, 0xFB, 0xFF, 0xFF, 0xFF, 7, 0, 0, 0, 0, 0, 0, 0}
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want EIO: %x", got, want)
	}
	for _, room := range [][]int{nil, {15}} { // FORGET wants no answer
		if r := d.Queues[0].Do([][]byte{request}, room...); r.Len != 0 {
			t.Errorf("a request with room for %v is answered with %d bytes", room, r.Len)
		}
	}
}

func TestAServerThatLiesIsNotBelieved(t *testing.T) {
	s := &echo{}
	d := virtiotest.New(t, device(t, s)).Start(virtio.FeatureEventIdx, 0)
	s.say = func(slot uint32, n uint64) {
		s.answered(slots, n)          // a slot that is not there
		s.answered(slot, 1<<40)       // more than there is room for
		s.answered(slot, n)           // twice
		s.answered((slot+1)%slots, n) // unasked
	}
	for range 3 * slots {
		if r := d.Queues[1].Do([][]byte{[]byte("abc")}, 5); r.Len != 5 {
			t.Fatalf("%d bytes are said to be written, of 5", r.Len)
		}
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

func TestATagThatDoesNotFitIsRefused(t *testing.T) {
	for _, tag := range []string{"", string(make([]byte, tagSize+1))} {
		if _, err := New(tag, &echo{}); err == nil {
			t.Errorf("tag of %d bytes is taken", len(tag))
		}
	}
}

func TestTheServerIsClosedWithTheDevice(t *testing.T) {
	s := &echo{}
	device(t, s).Close()
	if !s.closed.Load() {
		t.Error("the server is left open")
	}
}

// here serves files in this process.
type here struct {
	*hostfs.Server
	answered Answered
}

func (h *here) Start(a Answered) { h.answered = a }

func (h *here) Submit(slot uint32, c *virtio.Chain) error {
	h.answered(slot, uint64(h.Handle(c.Readable, c.Writable)))
	return nil
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 4, 3, 1, 2, 3, 9, 9, 9})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := hostfs.New(hostfs.Export{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		virtiotest.Garbage(t, device(t, &here{Server: s}), in)
	})
}
