package ring

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
)

const wait = 20 * time.Second

// An echo is a network that gives every frame back.
type echo struct {
	mu     sync.Mutex
	takes  network.Abilities
	wake   func()
	queue  []network.Frame
	events []string
}

func (e *echo) Up(takes network.Abilities, wake, _ func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.takes, e.wake = takes, wake
	e.events = append(e.events, "up")
}

func (e *echo) Down() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, "down")
}

func (e *echo) Send(parts [][]byte, size int, o network.Offload) bool {
	e.mu.Lock()
	e.queue = append(e.queue, network.Frame{Parts: [][]byte{bytes.Join(parts, nil)}, Size: size, Offload: o})
	wake := e.wake
	e.mu.Unlock()
	if wake != nil {
		wake()
	}
	return true
}

func (e *echo) Front() *network.Frame {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		return nil
	}
	return &e.queue[0]
}

func (e *echo) Pop() {
	e.mu.Lock()
	e.queue = e.queue[1:]
	e.mu.Unlock()
}

func (e *echo) seen() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.events)
}

// A rig is a card, and who serves it.
type rig struct {
	*Card
	t      testing.TB
	echo   echo
	served chan error
	wakes  chan struct{}
	rooms  chan struct{}
}

func start(t testing.TB) *rig {
	t.Helper()
	c, far, err := New()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Card: c, t: t, served: make(chan error, 1), wakes: make(chan struct{}, 1), rooms: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { r.served <- Serve(ctx, far, &r.echo) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.served; err != nil && !t.Failed() && !errors.Is(err, ErrBroken) {
			t.Errorf("served: %v", err)
		}
		c.Close()
	})
	r.up1(network.Sums)
	return r
}

func signal(c chan struct{}) func() {
	return func() {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (r *rig) up1(takes network.Abilities) { r.Up(takes, signal(r.wakes), signal(r.rooms)) }

// next waits for the next frame for the guest.
func (r *rig) next() *network.Frame {
	r.t.Helper()
	end := time.After(wait)
	for {
		if f := r.Front(); f != nil {
			return f
		}
		select {
		case <-r.wakes:
		case <-end:
			r.t.Fatal("no frame came, or nobody was woken for it")
		}
	}
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(wait); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within %v", what, wait)
		}
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestFramesComeBackWhole(t *testing.T) {
	r := start(t)
	o := network.Offload{PartialSum: true, SumStart: 34, SumOffset: 16, Segment: network.TCP6, SegmentSize: 1428, HeaderSize: 74, ECN: true}
	for i := range 200 { // several times round
		for _, size := range []int{60, 1514, network.MaxFrame, 61, 64, 65} {
			b := pattern(size + i)[i:]
			if !r.Send([][]byte{b[:20], b[20:]}, size, o) {
				t.Fatal("no room for one frame")
			}
			f := r.next()
			if got := bytes.Join(f.Parts, nil); !bytes.Equal(got, b) || f.Size != size || f.Offload != o {
				t.Fatalf("%d bytes: came back as %d bytes of %+v", size, len(got), f.Offload)
			}
			r.Pop()
		}
	}
}

func TestFullRingMakesTheSenderWaitAndLosesNothing(t *testing.T) {
	r := start(t)
	const frames = 500
	var lost int
	go func() {
		for i := range frames {
			b := pattern(60000)
			b[0], b[1] = byte(i), byte(i>>8)
			for !r.Send([][]byte{b}, len(b), network.Offload{}) {
				select {
				case <-r.rooms:
				case <-time.After(wait):
					t.Error("nobody was told of room")
					return
				}
			}
		}
	}()
	for i := range frames {
		f := r.next()
		if got := int(f.Parts[0][0]) | int(f.Parts[0][1])<<8; got != i {
			lost++
		}
		r.Pop()
	}
	if lost > 0 {
		t.Errorf("%d frames are not where they belong", lost)
	}
}

func TestNetworkHearsOfTheDriver(t *testing.T) {
	r := start(t)
	r.until("up", func() bool { return r.echo.seen() == 1 })
	if !r.Connected() {
		t.Error("not connected")
	}
	r.Down()
	r.until("down", func() bool { return r.echo.seen() == 2 })
	if r.Connected() {
		t.Error("connected without a driver")
	}
	r.up1(network.Sums | network.CutsTCP4)
	r.until("up", func() bool { return r.echo.seen() == 3 })
	r.echo.mu.Lock()
	defer r.echo.mu.Unlock()
	if r.echo.takes != network.Sums|network.CutsTCP4 {
		t.Errorf("the driver takes %#x", r.echo.takes)
	}
}

func TestCardEndsWithTheOtherSide(t *testing.T) {
	r := start(t)
	r.word(downAt + offHead).Store(1 << 40)
	if f := r.Front(); f != nil {
		t.Errorf("a frame of %d bytes from a broken ring", f.Size)
	}
	if r.broken.Load() != 1 {
		t.Error("the broken ring was not counted")
	}
	for range 100 { // what is sent is dropped: the guest must not wait for ever
		if !r.Send([][]byte{pattern(60000)}, 60000, network.Offload{}) {
			t.Fatal("the guest waits for a side that is gone")
		}
	}
}

func (c *Card) word(off int) *word { return wordAt(c.mapping, off) }

func TestServerEndsWhenTheCardBreaksTheRing(t *testing.T) {
	for name, spoil := range map[string]func(c *Card){
		"more than a ring":   func(c *Card) { c.word(upAt + offHead).Store(1 << 40) },
		"half a record":      func(c *Card) { c.word(upAt + offHead).Store(recordAlign + 1) },
		"a frame too long":   func(c *Card) { le.PutUint32(c.up.data, network.MaxFrame+1); c.word(upAt + offHead).Store(ringSize) },
		"more than is there": func(c *Card) { le.PutUint32(c.up.data, 1000); c.word(upAt + offHead).Store(recordAlign) },
		"a sum outside": func(c *Card) {
			c.up.data[recFlags], c.up.data[recSumAt] = flagSum, 99
			c.word(upAt + offHead).Store(recordAlign)
		},
		"unknown segments": func(c *Card) { c.up.data[recSegment] = 9; c.word(upAt + offHead).Store(recordAlign) },
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			r.until("the server's first look", func() bool { return r.word(upAt+offIdle).Load() == 1 })
			spoil(r.Card)
			ring(r.far)
			err := <-r.served
			if r.served <- err; !errors.Is(err, ErrBroken) {
				t.Errorf("served: %v, want %v", err, ErrBroken)
			}
		})
	}
}

func TestFileThatCanShrinkIsRefused(t *testing.T) {
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "x")
	f.Truncate(totalSize)
	if err := Serve(context.Background(), []*os.File{f, f, f}, &echo{}); err == nil {
		t.Error("served a file whose pages can go away")
	}
}

func FuzzGet(f *testing.F) {
	good := make([]byte, 64)
	encode(good, 20, &network.Offload{PartialSum: true, SumStart: 2, SumOffset: 3})
	f.Add(good, uint64(64), uint64(0))
	f.Add([]byte{0xFF, 0xFF, 0, 0, 0, 1, 1}, uint64(1<<20), uint64(1<<20-32))
	f.Fuzz(func(t *testing.T, data []byte, head, at uint64) {
		h := half{words: make([]byte, 256), data: make([]byte, ringSize), at: at &^ (recordAlign - 1)}
		h.copyIn(h.at, data[:min(len(data), ringSize)])
		h.word(offHead).Store(head)
		var fr network.Frame
		for range ringSize / recordAlign {
			ok, err := h.get(&fr)
			if err != nil || !ok {
				return
			}
			n := 0
			for _, p := range fr.Parts {
				n += len(p)
			}
			if n != fr.Size || fr.Size > network.MaxFrame || fr.PartialSum && int(fr.SumStart)+int(fr.SumOffset)+2 > fr.Size {
				t.Fatalf("%d bytes for a frame of %d, %+v", n, fr.Size, fr.Offload)
			}
			h.done(fr.Size)
		}
		if have := h.word(offHead).Load() - h.at; have != 0 {
			t.Fatalf("%d bytes are left of a ring that was read", have)
		}
	})
}

func BenchmarkFrames(b *testing.B) {
	r := start(b)
	p := [][]byte{pattern(1514)}
	b.ReportAllocs()
	b.SetBytes(1514)
	for b.Loop() {
		for !r.Send(p, 1514, network.Offload{}) {
			<-r.rooms
		}
		if f := r.Front(); f != nil {
			r.Pop()
		}
	}
}
