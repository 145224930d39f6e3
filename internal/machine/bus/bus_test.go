package bus

import (
	"bytes"
	"sync"
	"testing"
)

// latch remembers the last access.
type latch struct {
	off  uint64
	data []byte
}

func (l *latch) Read(off uint64, p []byte) {
	l.off = off
	copy(p, l.data)
}

func (l *latch) Write(off uint64, p []byte) { l.off, l.data = off, bytes.Clone(p) }

func TestAccessReachesTheDeviceThatClaimsIt(t *testing.T) {
	var b Bus
	devs := []*latch{{}, {}, {}}
	for i, base := range []uint64{0x300, 0x100, 0x200} {
		if err := b.Map(base, 0x100, devs[i]); err != nil {
			t.Fatal(err)
		}
	}
	b.Write(0x2FF, []byte{1, 2})
	if devs[2].off != 0xFF || !bytes.Equal(devs[2].data, []byte{1, 2}) {
		t.Errorf("device at 0x200 got offset %#x, %v", devs[2].off, devs[2].data)
	}
	p := make([]byte, 2)
	b.Read(0x200, p)
	if !bytes.Equal(p, []byte{1, 2}) {
		t.Errorf("read gives %v", p)
	}
}

func TestUnclaimedReadsAllOnes(t *testing.T) {
	var b Bus
	p := []byte{0, 0, 0, 0}
	b.Read(5, p)
	b.Write(5, p)
	if !bytes.Equal(p, []byte{0xFF, 0xFF, 0xFF, 0xFF}) || b.Misses() != 2 {
		t.Errorf("read %v, %d misses", p, b.Misses())
	}
}

func TestMapRefusesOverlaps(t *testing.T) {
	var b Bus
	if err := b.Map(0x100, 0x10, &latch{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]uint64{{0x100, 1}, {0x10F, 1}, {0xF8, 0x10}, {0, 0x1000}, {0, 0}, {^uint64(0), 2}} {
		if b.Map(r[0], r[1], &latch{}) == nil {
			t.Errorf("[%#x, +%#x) is taken", r[0], r[1])
		}
	}
	b.Unmap(0x100)
	if err := b.Map(0x108, 0x10, &latch{}); err != nil {
		t.Errorf("after Unmap: %v", err)
	}
}

func TestRoutesChangeUnderReaders(t *testing.T) {
	var b Bus
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					b.Read(0x105, make([]byte, 1))
				}
			}
		})
	}
	for range 1000 {
		if err := b.Map(0x100, 0x10, &stateless{}); err != nil {
			t.Error(err)
		}
		b.Unmap(0x100)
	}
	close(stop)
	wg.Wait()
}

type stateless struct{}

func (*stateless) Read(uint64, []byte)  {}
func (*stateless) Write(uint64, []byte) {}
