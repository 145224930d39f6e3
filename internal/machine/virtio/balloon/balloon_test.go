package balloon

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
	"vitrine.dev/vitrine/internal/mem"
)

const all = ^uint64(0)

// counted is a device's counters.
func counted(d *Device) map[string]uint64 {
	m := map[string]uint64{}
	d.Counters(func(name string, v uint64) { m[name] = v })
	return m
}

// pfns is a request of the inflate queue.
func pfns(pages ...uint32) []byte {
	var p []byte
	for _, n := range pages {
		p = binary.LittleEndian.AppendUint32(p, n)
	}
	return p
}

func TestInflatedPagesGoBackToTheHost(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev).Start(all, 0)
	const at = 8 << 20
	for a := mem.Addr(at); a < at+16*mem.PageSize; a += mem.PageSize {
		d.RAM.Store64(a, 1)
	}
	before, _ := d.RAM.Resident()
	first := uint32(at / mem.PageSize)
	// A run upwards, a run downwards as Linux makes it, one alone, one that is not RAM.
	d.Queues[inflateQueue].Do([][]byte{pfns(first, first+1, first+2, first+7, first+6, first+5, first+12, 0xFFFFF)})
	after, _ := d.RAM.Resident()
	if d.RAM.Huge() == mem.HugeOff && before-after != 7*mem.PageSize {
		t.Errorf("%d bytes came back, want %d", before-after, 7*mem.PageSize)
	}
	for i := range mem.Addr(16) {
		gone := i <= 2 || i >= 5 && i <= 7 || i == 12
		if v := d.RAM.Load64(at + i*mem.PageSize); (v == 0) != gone {
			t.Errorf("page %d holds %d, given away: %v", i, v, gone)
		}
	}
	if c := counted(dev); c["inflated_bytes"] != 7*mem.PageSize || c["refused"] != 1 {
		t.Errorf("counters %v", c)
	}
	d.Queues[deflateQueue].Do([][]byte{pfns(first)})
}

func TestReportedPagesGoBackByBothNumbersOfTheQueue(t *testing.T) {
	for _, i := range []int{reportQueue, otherReportQueue} {
		dev := New()
		d := virtiotest.New(t, dev).Start(all, 0)
		q := d.Queues[i]
		r := q.Add(nil, 4*mem.PageSize, mem.PageSize)
		for _, b := range r.In {
			d.RAM.Store64((b.Addr+mem.PageSize-1)&^(mem.PageSize-1), 1)
		}
		q.Wait(r)
		given := counted(dev)["reported_free_bytes"]
		if given < 3*mem.PageSize || given > 5*mem.PageSize {
			t.Errorf("queue %d: %d bytes came back", i, given)
		}
		if v := d.RAM.Load64((r.In[0].Addr + mem.PageSize - 1) &^ (mem.PageSize - 1)); v != 0 {
			t.Errorf("queue %d: the page holds %d", i, v)
		}
	}
}

func TestTargetIsConfiguration(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev).Start(all, 0)
	before := d.Interrupts(0)
	dev.SetTarget(5<<20 + 17)
	d.Until("configuration interrupt", func() bool { return d.Interrupts(0) > before })
	if n := d.Read(d.Config, 4); n != 5<<20/mem.PageSize {
		t.Errorf("target %d pages", n)
	}
	d.Write(d.Config+4, 4, 7)
	d.Write(d.Config, 4, 9) // not the driver's to write
	if dev.Size() != 7*mem.PageSize || d.Read(d.Config, 8) != 7<<32|5<<20/mem.PageSize {
		t.Errorf("size %d, configuration %#x", dev.Size(), d.Read(d.Config, 8))
	}
	to := New()
	if d.Migrate(to); to.Size() != 7*mem.PageSize || to.target != 5<<20/mem.PageSize {
		t.Errorf("carried over: %d bytes of %d pages", to.Size(), to.target)
	}
}

func TestStatisticsAreThoseOfNow(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev).Start(all, 0)
	q := d.Queues[statsQueue]
	tell := func(free uint64) *virtiotest.Request {
		p := binary.LittleEndian.AppendUint16(nil, 4)
		p = binary.LittleEndian.AppendUint64(p, free)
		p = binary.LittleEndian.AppendUint16(p, 0xF000) // of another time
		p = binary.LittleEndian.AppendUint64(p, 1)
		r := q.Add([][]byte{p})
		q.Notify()
		return r
	}
	first := tell(100)
	d.Until("first statistics", func() bool { return counted(dev)["guest_free_bytes"] == 100 })
	if q.Poll(); first.Done {
		t.Error("the first chain came back at once")
	}
	var wg sync.WaitGroup
	wg.Go(func() { dev.Refresh(virtiotest.Wait) })
	d.Until("chain", func() bool { q.Poll(); return first.Done })
	tell(200)
	wg.Wait()
	if n := counted(dev)["guest_free_bytes"]; n != 200 {
		t.Errorf("%d bytes free after Refresh, want 200", n)
	}
	d.Reset()
	dev.Refresh(time.Hour) // there is no driver: it does not wait
}

func TestADriverThatPoisonsIsNotAskedToReport(t *testing.T) {
	if f := New().Features(); f&(1<<4) != 0 {
		t.Errorf("features %#x have PAGE_POISON", f)
	}
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 4, 3, 1, 2, 3, 9, 9, 9, 2, 5, 30, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, in []byte) { virtiotest.Garbage(t, New(), in) })
}

var _ virtio.Device = (*Device)(nil)
