package net

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
	"vitrine.dev/vitrine/internal/network"
)

var testMAC = network.MAC{2, 0, 0, 0, 0, 1}

// A loop is a network that gives back what tests put into it, and remembers what it is sent.
type loop struct {
	mu    sync.Mutex
	takes network.Abilities
	wake  func()
	room  func()
	full  bool
	sent  []string // frames and their offloads
	queue []network.Frame
}

func (l *loop) Up(takes network.Abilities, wake, room func()) {
	l.mu.Lock()
	l.takes, l.wake, l.room = takes, wake, room
	l.mu.Unlock()
}

func (l *loop) Down() {}

func (l *loop) Send(parts [][]byte, size int, o network.Offload) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full {
		return false
	}
	l.sent = append(l.sent, fmt.Sprintf("%s %d %+v", bytes.Join(parts, nil), size, o))
	return true
}

func (l *loop) Front() *network.Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil
	}
	return &l.queue[0]
}

func (l *loop) Pop() {
	l.mu.Lock()
	l.queue = l.queue[1:]
	l.mu.Unlock()
}

// give queues a frame for the guest, in two parts.
func (l *loop) give(frame []byte, o network.Offload) {
	l.mu.Lock()
	l.queue = append(l.queue, network.Frame{Parts: [][]byte{frame[:len(frame)/3], frame[len(frame)/3:]}, Size: len(frame), Offload: o})
	wake := l.wake
	l.mu.Unlock()
	wake()
}

func (l *loop) left() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

func start(t testing.TB, want uint64) (*virtiotest.Driver, *loop) {
	l := &loop{}
	d := virtiotest.New(t, New(testMAC, l))
	d.Start(want, 0)
	return d, l
}

const all = features | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestConfigTellsAddressLinkAndMTU(t *testing.T) {
	d, _ := start(t, all)
	var mac network.MAC
	for i := range mac {
		mac[i] = byte(d.Read(d.Config+uint64(i), 1))
	}
	status, mtu := d.Read(d.Config+cfgStatus, 2), d.Read(d.Config+cfgMTU, 2)
	if mac != testMAC || status != statusLinkUp || mtu != 1500 {
		t.Errorf("address %v, status %d, MTU %d", mac, status, mtu)
	}
}

func TestNetworkLearnsWhatTheDriverTakes(t *testing.T) {
	for _, c := range []struct {
		features uint64
		want     network.Abilities
	}{
		{0, 0},
		{FeatureGuestSum, network.Sums},
		{FeatureSum | FeatureHostTSO4, 0},
		{features, network.Sums | network.CutsTCP4 | network.CutsTCP6},
	} {
		if _, l := start(t, c.features); l.takes != c.want {
			t.Errorf("features %#x: abilities %#x, want %#x", c.features, l.takes, c.want)
		}
	}
}

// header is a struct virtio_net_hdr.
func header(flags, gso uint8, hdrLen, gsoSize, start, offset uint16) []byte {
	b := []byte{flags, gso}
	for _, v := range []uint16{hdrLen, gsoSize, start, offset, 0} {
		b = le.AppendUint16(b, v)
	}
	return b
}

func TestFramesOfTheGuestArriveWithTheirOffloads(t *testing.T) {
	d, l := start(t, all)
	frame := pattern(60)
	long := pattern(network.MaxFrame)
	for _, c := range []struct {
		name string
		out  [][]byte
		want string
	}{
		{"plain", [][]byte{append(header(0, 0, 0, 0, 0, 0), frame...)}, fmt.Sprintf("%s 60 %+v", frame, network.Offload{})},
		{"header apart", [][]byte{header(0, 0, 0, 0, 0, 0), frame[:1], frame[1:]}, fmt.Sprintf("%s 60 %+v", frame, network.Offload{})},
		{"header in pieces", [][]byte{header(1, 0, 0, 0, 34, 16)[:5], header(1, 0, 0, 0, 34, 16)[5:], frame},
			fmt.Sprintf("%s 60 %+v", frame, network.Offload{PartialSum: true, SumStart: 34, SumOffset: 16})},
		{"segments", [][]byte{header(1, gsoTCP4|gsoECN, 54, 1448, 34, 16), long},
			fmt.Sprintf("%s %d %+v", long, len(long), network.Offload{PartialSum: true, SumStart: 34, SumOffset: 16,
				Segment: network.TCP4, SegmentSize: 1448, HeaderSize: 54, ECN: true})},
	} {
		d.Queues[txQueue].Do(c.out)
		l.mu.Lock()
		if len(l.sent) != 1 || l.sent[0] != c.want {
			t.Errorf("%s: sent %.200q, want %.200q", c.name, l.sent, c.want)
		}
		l.sent = nil
		l.mu.Unlock()
	}
}

func TestFrameOfTheGuestWaitsForRoom(t *testing.T) {
	d, l := start(t, all)
	l.mu.Lock()
	l.full = true
	l.mu.Unlock()
	q := d.Queues[txQueue]
	r := q.Add([][]byte{append(header(0, 0, 0, 0, 0, 0), pattern(60)...)})
	q.Kick()
	d.Bus.Pause() // what was to be served is
	d.Bus.Resume()
	if q.Poll(); r.Done {
		t.Error("a frame is done for which there was no room")
	}
	l.mu.Lock()
	l.full = false
	l.mu.Unlock()
	l.room()
	q.Wait(r)
	if len(l.sent) != 1 {
		t.Errorf("sent %d frames, want 1", len(l.sent))
	}
}

func TestBadFramesOfTheGuestAreDropped(t *testing.T) {
	frame := pattern(60)
	for _, c := range []struct {
		name     string
		features uint64
		out      []byte
	}{
		{"no header", all, make([]byte, 5)},
		{"no frame", all, header(0, 0, 0, 0, 0, 0)},
		{"a frame without all of its header", all, append(header(0, 0, 0, 0, 0, 0), frame[:13]...)},
		{"too long", all, append(header(0, 0, 0, 0, 0, 0), make([]byte, network.MaxFrame+1)...)},
		{"unknown flags", all, append(header(0x80, 0, 0, 0, 0, 0), frame...)},
		{"unknown segmentation", all, append(header(1, 3, 0, 10, 34, 16), frame...)},
		{"a sum past the end", all, append(header(1, 0, 0, 0, 50, 9), frame...)},
		{"segments of nothing", all, append(header(1, gsoTCP4, 54, 0, 34, 16), frame...)},
		{"segments without a sum", all, append(header(0, gsoTCP4, 54, 10, 34, 16), frame...)},
		{"a sum that was not agreed on", 0, append(header(1, 0, 0, 0, 34, 16), frame...)},
		{"segments that were not agreed on", FeatureSum, append(header(1, gsoTCP4, 54, 10, 34, 16), frame...)},
	} {
		d, l := start(t, c.features)
		d.Queues[txQueue].Do([][]byte{c.out})
		l.mu.Lock()
		if len(l.sent) != 0 {
			t.Errorf("%s: sent %.100q", c.name, l.sent)
		}
		l.mu.Unlock()
	}
}

func TestFrameForTheGuestIsSpreadOverItsBuffers(t *testing.T) {
	o := network.Offload{PartialSum: true, SumStart: 34, SumOffset: 16, Segment: network.TCP4, SegmentSize: 1448, HeaderSize: 54}
	for _, c := range []struct{ frame, buffers, size int }{{60, 1, 1526}, {1514, 1, 1526}, {1515, 2, 1526}, {65000, 43, 1526}, {5, 2, 14}} {
		d, l := start(t, all)
		q := d.Queues[rxQueue]
		var r []*virtiotest.Request
		for range c.buffers {
			r = append(r, q.Add(nil, c.size))
		}
		q.Kick()
		frame := pattern(c.frame)
		l.give(frame, o)
		d.Until("the frame", func() bool { q.Poll(); return r[len(r)-1].Done })
		var got []byte
		for _, r := range r {
			got = append(got, r.Answer()...)
		}
		want := header(1, gsoTCP4, 54, 1448, 34, 16)
		le.PutUint16(want[hdrNumBuffers:], uint16(c.buffers))
		if !bytes.Equal(got[:headerSize], want) {
			t.Errorf("%d bytes: header %x, want %x", c.frame, got[:headerSize], want)
		}
		if !bytes.Equal(got[headerSize:], frame) {
			t.Errorf("%d bytes: another frame, of %d bytes, arrived", c.frame, len(got)-headerSize)
		}
	}
}

func TestFrameWaitsForBuffers(t *testing.T) {
	d, l := start(t, all)
	q := d.Queues[rxQueue]
	first := q.Add(nil, 1000)
	q.Kick()
	l.give(pattern(1500), network.Offload{})
	second := q.Add(nil, 1000)
	q.Wait(second)
	if !first.Done || first.Len+second.Len != headerSize+1500 {
		t.Errorf("buffers of %d and %d bytes used, first done: %v", first.Len, second.Len, first.Done)
	}
	if l.left() != 0 {
		t.Error("the frame is still queued")
	}
}

func TestFrameThatFitsNowhereIsDropped(t *testing.T) {
	for _, c := range []struct {
		name     string
		features uint64
		buffers  int
		size     int
	}{
		{"buffers that cannot be merged", features &^ FeatureMergeRX, 1, 1000},
		{"a buffer without room for the header", features, 1, 8},
		{"all of the queue's buffers", features, 16, 10 + headerSize},
	} {
		l := &loop{}
		d := virtiotest.New(t, New(testMAC, l))
		d.Start(c.features, 16)
		q := d.Queues[rxQueue]
		var r []*virtiotest.Request
		for range c.buffers {
			r = append(r, q.Add(nil, c.size))
		}
		q.Kick()
		l.give(pattern(1500), network.Offload{})
		d.Until("the drop", func() bool { return l.left() == 0 })
		if q.Poll(); r[0].Done {
			t.Errorf("%s: a buffer was used", c.name)
		}
	}
}

func TestFrameThatTheDriverDoesNotTakeIsDropped(t *testing.T) {
	d, l := start(t, FeatureMergeRX)
	q := d.Queues[rxQueue]
	r := q.Add(nil, 2000)
	q.Kick()
	l.give(pattern(100), network.Offload{PartialSum: true, SumStart: 34, SumOffset: 16})
	l.give(pattern(200), network.Offload{})
	if q.Wait(r); r.Len != headerSize+200 {
		t.Errorf("%d bytes arrived, want the second frame's", r.Len)
	}
}

func TestCardSurvivesMigration(t *testing.T) {
	d, _ := start(t, all)
	l := &loop{}
	to := d.Migrate(New(network.MAC{}, l))
	to.Queues[txQueue].Do([][]byte{header(0, 0, 0, 0, 0, 0), pattern(60)})
	if len(l.sent) != 1 || network.MAC([]byte{byte(to.Read(to.Config, 1)), 0, 0, 0, 0, byte(to.Read(to.Config+5, 1))}) != testMAC {
		t.Errorf("after migration: sent %.100q, address %x..%x", l.sent, to.Read(to.Config, 1), to.Read(to.Config+5, 1))
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(header(1, gsoTCP4, 54, 1448, 34, 16), 1514, uint8(7))
	f.Fuzz(func(t *testing.T, b []byte, size int, gives uint8) {
		if len(b) < headerSize || size < network.HeaderSize || size > network.MaxFrame {
			return
		}
		o, err := parseHeader((*[headerSize]byte)(b), size, network.Abilities(gives))
		if err != nil {
			return
		}
		if o.PartialSum && int(o.SumStart)+int(o.SumOffset)+2 > size {
			t.Errorf("sum at %d+%d in %d bytes", o.SumStart, o.SumOffset, size)
		}
		if o.Segment != network.Whole && o.SegmentSize == 0 || !network.Abilities(gives).Takes(o) {
			t.Errorf("%+v with abilities %#x", o, gives)
		}
	})
}

func FuzzCard(f *testing.F) {
	f.Add([]byte("\xff\xff\xff\xff\x10\x01\x04\x40" + string(make([]byte, 64))))
	f.Fuzz(func(t *testing.T, in []byte) {
		l := &loop{}
		for i := range 32 {
			l.queue = append(l.queue, network.Frame{Parts: [][]byte{pattern(100 * i)}, Size: 100 * i})
		}
		virtiotest.Garbage(t, New(testMAC, l), in)
	})
}
