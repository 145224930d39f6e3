package rng

import (
	"bytes"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
)

func TestGivesDifferentBytesEachTime(t *testing.T) {
	d := virtiotest.New(t, New()).Start(virtio.FeatureEventIdx, 0)
	q := d.Queues[0]
	a := q.Do(nil, 32, 32).Answer()
	b := q.Do(nil, 64).Answer()
	if len(a) != 64 || len(b) != 64 || bytes.Equal(a, b) || bytes.Equal(a, make([]byte, 64)) {
		t.Errorf("%x then %x", a, b)
	}
}

func TestARequestAndARateAreBounded(t *testing.T) {
	d := virtiotest.New(t, New()).Start(0, 0)
	q := d.Queues[0]
	if n := q.Do(nil, 1<<20).Len; n != most {
		t.Errorf("%d bytes at once, want %d", n, most)
	}
	begin := time.Now()
	total := 0
	for total < 4*burst {
		total += q.Do(nil, most).Len
	}
	// The host may be slow, which makes it longer only.
	if took, least := time.Since(begin), time.Duration(total-burst)*time.Second/rate; took < least {
		t.Errorf("%d bytes in %v, want %v at least", total, took, least)
	}
}

func TestARequestWithoutRoomIsAnswered(t *testing.T) {
	d := virtiotest.New(t, New()).Start(0, 0)
	if n := d.Queues[0].Do([][]byte{{1, 2}}).Len; n != 0 {
		t.Errorf("%d bytes into nothing", n)
	}
}

func TestSurvivesMigration(t *testing.T) {
	d := virtiotest.New(t, New()).Start(virtio.FeatureEventIdx, 0)
	d.Queues[0].Do(nil, 64)
	d2 := d.Migrate(New())
	if n := d2.Queues[0].Do(nil, 64).Len; n != 64 {
		t.Errorf("%d bytes, want 64", n)
	}
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 4, 3, 1, 2, 3, 9, 9, 9})
	f.Fuzz(func(t *testing.T, in []byte) { virtiotest.Garbage(t, New(), in) })
}
