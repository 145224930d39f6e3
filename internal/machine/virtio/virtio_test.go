package virtio_test

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
	"vitrine.dev/vitrine/internal/mem"
)

// echo answers each request with its own bytes; on queue 1 it does so on goroutines of its own. Queue 2 takes a chain only for data.
type echo struct {
	mu      sync.Mutex
	s       *virtio.Session
	data    [][]byte
	hold    chan struct{} // requests on queue 1 wait for it
	later   bool          // requests on queue 0 end with PushLater
	resets  int
	version int
}

func (e *echo) Type() virtio.Type               { return virtio.RNG }
func (e *echo) Features() uint64                { return 1 << 3 }
func (e *echo) QueueSizes() []uint16            { return []uint16{16, 64, 8} }
func (e *echo) ReadConfig(off uint64, p []byte) { virtio.ReadBytes([]byte("vitrine!"), off, p) }
func (e *echo) WriteConfig(uint64, []byte)      {}
func (e *echo) Save(enc *gob.Encoder) error     { return enc.Encode(struct{ Version int }{e.version}) }
func (e *echo) Load(dec *gob.Decoder) error {
	var s struct{ Version int }
	err := dec.Decode(&s)
	e.version = s.Version
	return err
}

func (e *echo) Activate(s *virtio.Session) {
	e.mu.Lock()
	e.s = s
	e.mu.Unlock()
}

func (e *echo) Reset() {
	e.mu.Lock()
	e.s = nil
	e.resets++
	e.mu.Unlock()
}

func (e *echo) Serve(q *virtio.Queue) {
	switch q.Index {
	case 0, 1:
		for c := q.Pop(); c != nil; c = q.Pop() {
			answer := func() {
				p := make([]byte, c.ReadableLen())
				c.Read(p)
				c.Write(p)
				if e.later && q.Index == 0 {
					q.PushLater(c, c.Filled())
				} else {
					q.Push(c, c.Filled())
				}
			}
			if q.Index == 0 {
				answer()
				continue
			}
			go func() {
				if e.hold != nil {
					<-e.hold
				}
				answer()
			}()
		}
	case 2:
		e.mu.Lock()
		defer e.mu.Unlock()
		for len(e.data) > 0 {
			c := q.Pop()
			if c == nil {
				return
			}
			c.Write(e.data[0])
			e.data = e.data[1:]
			q.Push(c, c.Filled())
		}
	}
}

// send gives queue 2 data.
func (e *echo) send(p string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.data = append(e.data, []byte(p))
	if e.s != nil {
		e.s.Queues[2].Wake()
	}
}

const (
	indirect = virtio.FeatureIndirectDesc
	eventIdx = virtio.FeatureEventIdx
)

func expect(t *testing.T, r *virtiotest.Request, want string) {
	t.Helper()
	if got := string(r.Answer()); got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
}

func TestNegotiation(t *testing.T) {
	d := virtiotest.New(t, &echo{})
	if got, want := d.Offered(), 1<<3|indirect|eventIdx|virtio.FeatureVersion1; got != want {
		t.Errorf("offered %#x, want %#x", got, want)
	}
	for _, c := range []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"without VERSION_1", 1 << 3, false},
		{"one that is not offered", virtio.FeatureVersion1 | 1<<34, false},
		{"a device's bit that is not offered", virtio.FeatureVersion1 | 1<<4, false},
		{"a subset", virtio.FeatureVersion1 | 1<<3, true},
		{"all", d.Offered(), true},
	} {
		d.Reset()
		d.SetStatus(3)
		d.Accept(c.features)
		if ok := d.Status()&virtio.StatusFeaturesOK != 0; ok != c.ok {
			t.Errorf("%s: FEATURES_OK %v, want %v", c.name, ok, c.ok)
		}
		d.SetStatus(d.Status() | virtio.StatusDriverOK)
		if ok := d.Status()&virtio.StatusDriverOK != 0; ok != c.ok {
			t.Errorf("%s: DRIVER_OK %v, want %v", c.name, ok, c.ok)
		}
	}
	if got := d.Read(d.Config, 8); got != 0x21656E6972746976 {
		t.Errorf("device configuration reads %#x", got)
	}
	if got := d.Read(d.Config+6, 4); got != 0x2165 {
		t.Errorf("across the configuration's end reads %#x, want zeros there", got)
	}
}

func TestQueuesAreServedByDoorbells(t *testing.T) {
	d, bells := virtiotest.NewWithDoorbells(t, &echo{})
	if n := bells.Hanging(); n != 3 {
		t.Fatalf("%d doorbells for 3 queues", n)
	}
	for range 3 { // sessions
		d.Start(0, 0)
		for n := range 50 {
			want := fmt.Sprintf("request %d", n)
			expect(t, d.Queues[n%2].Do([][]byte{[]byte(want)}, 100), want)
		}
		d.Fn.Pause()
		d.Fn.Resume()
		d.Reset()
	}
	if bells.Rung < 150 {
		t.Errorf("the doorbells were rung %d times for 150 requests", bells.Rung)
	}
	if err := d.Bus.Close(); err != nil || bells.Hanging() != 0 {
		t.Errorf("close: %v, %d doorbells left", err, bells.Hanging())
	}
}

func TestRingsWrap(t *testing.T) {
	for _, c := range []struct {
		features uint64
		size     int
	}{{0, 0}, {0, 4}, {indirect, 0}, {eventIdx, 4}, {indirect | eventIdx, 0}} {
		t.Run(fmt.Sprintf("%#x/%d", c.features, c.size), func(t *testing.T) {
			d := virtiotest.New(t, &echo{}).Start(c.features, c.size)
			for i := range 3 {
				q := d.Queues[i%2]
				q.UseIndirect = c.features&indirect != 0
				for n := range 100 {
					want := fmt.Sprintf("request %d of queue %d", n, i)
					expect(t, q.Do([][]byte{[]byte(want[:5]), []byte(want[5:])}, 3, 100), want)
				}
			}
		})
	}
}

func TestIndexWrapsAt65536(t *testing.T) {
	d := virtiotest.New(t, &echo{}).Start(eventIdx, 16)
	q := d.Queues[0]
	for n := 0; n < 1<<16+100; n += 16 {
		var rs []*virtiotest.Request
		for range 8 {
			rs = append(rs, q.Add([][]byte{{byte(n), byte(n >> 8)}}, 2))
		}
		q.Wait(rs[7])
		for range 8 {
			rs = append(rs, q.Add([][]byte{{byte(n), byte(n >> 8)}}, 2))
		}
		q.Wait(rs[15])
		if got := rs[15].Answer(); !bytes.Equal(got, []byte{byte(n), byte(n >> 8)}) {
			t.Fatalf("request %d: %v", n, got)
		}
	}
}

func TestManyRequestsInFlight(t *testing.T) {
	e := &echo{hold: make(chan struct{})}
	d := virtiotest.New(t, e).Start(0, 0)
	q := d.Queues[1]
	var rs []*virtiotest.Request
	for i := range 32 {
		rs = append(rs, q.Add([][]byte{{byte(i)}}, 1))
	}
	q.Kick()
	close(e.hold)
	for i, r := range rs {
		expect(t, q.Wait(r), string(rune(i)))
	}
}

func TestDataFromTheDeviceWaitsForBuffers(t *testing.T) {
	e := &echo{}
	d := virtiotest.New(t, e)
	e.send("early")
	d.Start(eventIdx, 0)
	q := d.Queues[2]
	r := q.Add(nil, 10)
	expect(t, q.Wait(r), "early")
	r1, r2 := q.Add(nil, 10), q.Add(nil, 10)
	q.Kick()
	e.send("one")
	e.send("two")
	expect(t, q.Wait(r1), "one")
	expect(t, q.Wait(r2), "two")
}

func TestDeviceWritesAreReported(t *testing.T) {
	d := virtiotest.New(t, &echo{}).Start(0, 0)
	d.RAM.StartLog()
	r := d.Queues[0].Do([][]byte{bytes.Repeat([]byte{1}, 5000)}, 10, 9000)
	dirty := map[mem.Addr]bool{}
	d.RAM.TakeLog(func(a mem.Addr) { dirty[a] = true })
	for _, a := range []mem.Addr{r.In[0].Addr, r.In[1].Addr, r.In[1].Addr + 4900, d.Queues[0].Used} {
		if !dirty[a&^0xFFF] {
			t.Errorf("the write to %#x was not reported", a)
		}
	}
}

func TestInterruptSuppression(t *testing.T) {
	t.Run("flag", func(t *testing.T) {
		d := virtiotest.New(t, &echo{}).Start(0, 0)
		q := d.Queues[0]
		q.SetFlags(1)
		q.Do([][]byte{{1}}, 1)
		d.Bus.Pause() // nothing is under way any more
		if n := d.Interrupts(1); n != 0 {
			t.Errorf("%d interrupts with NO_INTERRUPT", n)
		}
		d.Bus.Resume()
		q.SetFlags(0)
		q.Do([][]byte{{1}}, 1)
		d.Until("interrupt", func() bool { return d.Interrupts(1) == 1 })
	})
	t.Run("event index", func(t *testing.T) {
		d := virtiotest.New(t, &echo{}).Start(eventIdx, 0)
		q := d.Queues[0]
		for i, c := range []struct {
			event uint16
			want  int
		}{{0, 1}, {2, 1}, {2, 2}, {2, 2}, {4, 3}} {
			q.SetUsedEvent(c.event)
			q.Do([][]byte{{1}}, 1)
			d.Bus.Pause()
			if n := d.Interrupts(1); n != c.want {
				t.Errorf("after request %d, event %d: %d interrupts, want %d", i, c.event, n, c.want)
			}
			d.Bus.Resume()
		}
	})
}

func TestLateInterruptComesOnceUnlessTheDriverHasLooked(t *testing.T) {
	d := virtiotest.New(t, &echo{later: true}).Start(eventIdx, 0)
	q := d.Queues[0]
	q.Do([][]byte{{1}}, 1)
	q.Do([][]byte{{1}}, 1)
	d.Until("interrupt", func() bool { return d.Interrupts(1) > 0 })
	d.Bus.Pause()                               // which sends what was put off
	if n := d.Interrupts(1); n != 1 && n != 2 { // 2 where a millisecond passed between the requests
		t.Errorf("%d interrupts for two requests", n)
	}
	d.Bus.Resume()

	d.Until("silence where the driver has looked", func() bool {
		n := d.Interrupts(1)
		q.SetUsedEvent(q.UsedIndex())
		r := q.Add([][]byte{{1}}, 1)
		q.Kick()
		for !r.Done {
			q.Poll()
		}
		q.SetUsedEvent(q.UsedIndex())
		d.Bus.Pause()
		defer d.Bus.Resume()
		return d.Interrupts(1) == n
	})
}

func TestNotifyIsAskedForOnlyWhenIdle(t *testing.T) {
	e := &echo{hold: make(chan struct{})}
	d := virtiotest.New(t, e).Start(eventIdx, 0)
	q := d.Queues[0]
	q.Do([][]byte{{1}}, 1)
	d.Until("avail_event", func() bool {
		return d.RAM.Load16(q.Used+4+8*mem.Addr(q.Size)) == q.UsedIndex()
	})
	q.Add([][]byte{{1}}, 1)
	if !q.Kick() {
		t.Error("an idle queue does not ask for a notify")
	}
}

func TestINTxWithoutMSIX(t *testing.T) {
	d := virtiotest.New(t, &echo{}).Start(0, 0)
	c := d.Fn.Config()
	for off := 0x40; off < 0x100; off += 4 { // MSI-X off
		var p [4]byte
		if c.Read(off, p[:]); p[0] == 0x11 {
			c.Write(off+2, []byte{0, 0})
			break
		}
	}
	d.Queues[0].Do([][]byte{{1}}, 1)
	d.Until("INTx", d.INTx)
	if v := d.Read(d.ISR, 1); v != 1 || d.INTx() {
		t.Errorf("ISR %#x, line %v; want 1 and low after the read", v, d.INTx())
	}
	if v := d.Read(d.ISR, 1); v != 0 {
		t.Errorf("ISR reads %#x again", v)
	}
}

func TestPCIConfigAccess(t *testing.T) {
	d := virtiotest.New(t, &echo{})
	c := d.Fn.Config()
	for off := 0x40; off < 0x100; off += 4 {
		var p [4]byte
		if c.Read(off, p[:]); p[0] != 0x09 || p[3] != 5 {
			continue
		}
		set := func(reg, n uint32) {
			c.Write(off+4, []byte{0})
			c.Write(off+8, []byte{byte(reg), byte(reg >> 8), byte(reg >> 16), byte(reg >> 24)})
			c.Write(off+12, []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
		}
		set(0x2000, 4)
		if c.Read(off+16, p[:]); string(p[:]) != "vitr" {
			t.Errorf("device configuration through pci_cfg_data reads %q", p)
		}
		set(20, 1)
		c.Write(off+16, []byte{3})
		if d.Status() != 3 {
			t.Errorf("status %d, want 3", d.Status())
		}
		for _, bad := range [][2]uint32{{0xFFFFFFFF, 4}, {0x4000, 4}, {1, 4}, {0, 8}, {0, 0}} {
			set(bad[0], bad[1])
			if c.Read(off+16, p[:]); p != [4]byte{} {
				t.Errorf("access of %d at %#x reads %v", bad[1], bad[0], p)
			}
		}
		return
	}
	t.Fatal("no PCI configuration access capability")
}

func TestBadChainsBreakTheQueueOnly(t *testing.T) {
	type q = *virtiotest.Queue
	const buf = 0x200000
	for _, c := range []struct {
		name string
		make func(d *virtiotest.Driver, q q)
	}{
		{"loop", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, buf, 1, virtiotest.Next, 1)
			q.SetDesc(q.Desc, 1, buf, 1, virtiotest.Next, 0)
			q.Publish(0)
		}},
		{"next out of range", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, buf, 1, virtiotest.Next, 16)
			q.Publish(0)
		}},
		{"head out of range", func(d *virtiotest.Driver, q q) { q.Publish(999) }},
		{"outside RAM", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, virtiotest.RAMSize-1, 2, 0, 0)
			q.Publish(0)
		}},
		{"address wraps", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, ^mem.Addr(0), 2, 0, 0)
			q.Publish(0)
		}},
		{"readable after writable", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, buf, 1, virtiotest.Next|virtiotest.Writable, 1)
			q.SetDesc(q.Desc, 1, buf, 1, 0, 0)
			q.Publish(0)
		}},
		{"indirect with next", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, buf, 16, virtiotest.Indirect|virtiotest.Next, 1)
			q.Publish(0)
		}},
		{"indirect in indirect", func(d *virtiotest.Driver, q q) {
			q.SetDesc(buf, 0, buf, 16, virtiotest.Indirect, 0)
			q.SetDesc(q.Desc, 0, buf, 16, virtiotest.Indirect, 0)
			q.Publish(0)
		}},
		{"indirect loop", func(d *virtiotest.Driver, q q) {
			q.SetDesc(buf, 0, buf, 16, virtiotest.Next, 0)
			q.SetDesc(q.Desc, 0, buf, 16, virtiotest.Indirect, 0)
			q.Publish(0)
		}},
		{"indirect table of 17 bytes", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, buf, 17, virtiotest.Indirect, 0)
			q.Publish(0)
		}},
		{"indirect table outside RAM", func(d *virtiotest.Driver, q q) {
			q.SetDesc(q.Desc, 0, 0xF0000000, 32, virtiotest.Indirect, 0)
			q.Publish(0)
		}},
		{"index jumps", func(d *virtiotest.Driver, q q) { d.RAM.Store16(q.Avail+2, 17) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &echo{}
			d := virtiotest.New(t, e).Start(indirect, 0)
			c.make(d, d.Queues[0])
			d.Queues[0].Notify()
			d.Until("NEEDS_RESET", func() bool { return d.Status()&virtio.StatusNeedsReset != 0 })
			d.Until("configuration interrupt", func() bool { return d.Interrupts(0) == 1 })
			expect(t, d.Queues[1].Do([][]byte{[]byte("other")}, 9), "other")
			d.Start(indirect, 0)
			expect(t, d.Queues[0].Do([][]byte{[]byte("again")}, 9), "again")
			if e.resets != 1 {
				t.Errorf("%d resets of the device, want 1", e.resets)
			}
		})
	}
}

func TestRingsOutsideRAMBreakTheQueue(t *testing.T) {
	for _, a := range []uint64{virtiotest.RAMSize - 16, 0xFFFFFFFF_FFFFFFF0, 0x100001} {
		d := virtiotest.New(t, &echo{})
		d.Negotiate(0)
		d.Write(d.Common+22, 2, 0)
		for _, reg := range []uint64{32, 40, 48} {
			d.Write(d.Common+reg, 8, a)
		}
		d.Write(d.Common+28, 2, 1)
		d.SetStatus(d.Status() | virtio.StatusDriverOK)
		if d.Status()&virtio.StatusNeedsReset == 0 {
			t.Errorf("rings at %#x: status %#x", a, d.Status())
		}
	}
}

func TestIndirectIsRefusedUnlessNegotiated(t *testing.T) {
	d := virtiotest.New(t, &echo{}).Start(0, 0)
	d.Queues[0].UseIndirect = true
	d.Queues[0].Add([][]byte{{1}}, 1)
	d.Queues[0].Notify()
	d.Until("NEEDS_RESET", func() bool { return d.Status()&virtio.StatusNeedsReset != 0 })
}

func TestResetWaitsForRequestsAndDoesNotHoldTheCPU(t *testing.T) {
	e := &echo{hold: make(chan struct{})}
	d := virtiotest.New(t, e).Start(0, 0)
	q := d.Queues[1]
	r := q.Add([][]byte{[]byte("late")}, 4)
	q.Kick()
	d.Until("taken", func() bool {
		n := uint64(0)
		d.Fn.Counters(func(name string, v uint64) {
			if name == "chains" {
				n = v
			}
		})
		return n == 1
	})
	d.SetStatus(0)
	if d.Status() == 0 {
		t.Error("status 0 while a request is under way")
	}
	d.SetStatus(1)
	close(e.hold)
	d.Until("reset", func() bool { return d.Status() == 0 })
	q.Poll()
	if !r.Done {
		t.Error("the request was lost")
	}
	d.Start(0, 0)
	expect(t, d.Queues[1].Do([][]byte{[]byte("new")}, 4), "new")
}

func TestSaveLoadGoesOnWhereItWas(t *testing.T) {
	e := &echo{version: 7}
	d := virtiotest.New(t, e).Start(indirect|eventIdx, 0)
	for range 5 {
		d.Queues[0].Do([][]byte{[]byte("before")}, 10)
	}
	d.Bus.Pause()
	r := d.Queues[0].Add([][]byte{[]byte("between")}, 10) // made available, not served
	d.Queues[0].Kick()
	e2 := &echo{}
	d2 := d.Migrate(e2)
	if e2.version != 7 {
		t.Errorf("device state %d, want 7", e2.version)
	}
	expect(t, d2.Queues[0].Wait(r), "between")
	expect(t, d2.Queues[1].Do([][]byte{[]byte("after")}, 10), "after")
	d2.Until("interrupt", func() bool { return d2.Interrupts(2) > 0 })
}

func TestLoadRefusesAnotherDevicesState(t *testing.T) {
	d := virtiotest.New(t, &echo{}).Start(0, 0)
	var b bytes.Buffer
	if err := d.Fn.Save(gob.NewEncoder(&b)); err != nil {
		t.Fatal(err)
	}
	other := virtiotest.New(t, &small{})
	if err := other.Fn.Load(gob.NewDecoder(&b)); err == nil {
		t.Error("a device with one queue loaded the state of three")
	}
}

type small struct{ echo }

func (*small) QueueSizes() []uint16 { return []uint16{16} }

func FuzzGarbage(f *testing.F) {
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 4, 0, 4, 3, 1, 2, 3, 9, 9, 9, 1, 3, 0, 0, 0, 7, 0})
	f.Add([]byte{0, 3, 0, 0, 16, 0, 1, 0, 1, 2, 3, 4, 5, 6, 1, 2, 0, 0, 3, 0, 0, 0, 2, 9, 9})
	f.Fuzz(func(t *testing.T, in []byte) { virtiotest.Garbage(t, &echo{}, in) })
}

// FuzzLoad reads damaged states: each is refused, or gives a device that can be driven.
func FuzzLoad(f *testing.F) {
	d := virtiotest.New(f, &echo{version: 1}).Start(eventIdx, 0)
	d.Queues[0].Do([][]byte{[]byte("x")}, 1)
	d.Bus.Pause()
	var b bytes.Buffer
	if err := d.Fn.Save(gob.NewEncoder(&b)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		d := virtiotest.New(t, &echo{})
		d.Bus.Pause()
		err := d.Fn.Load(gob.NewDecoder(bytes.NewReader(in)))
		d.Bus.Resume()
		if err != nil {
			return
		}
		d.Bus.Pause()
		if err := d.Fn.Save(gob.NewEncoder(io.Discard)); err != nil {
			t.Error(err)
		}
		d.Bus.Resume()
	})
}

func BenchmarkEcho(b *testing.B) {
	d := virtiotest.New(b, &echo{}).Start(eventIdx, 0)
	q := d.Queues[0]
	q.Do([][]byte{make([]byte, 512)}, 512)
	head := d.RAM.Load32(q.Used + 4)
	b.ReportAllocs()
	for b.Loop() {
		want := q.UsedIndex() + 1
		q.Publish(uint16(head))
		q.Notify()
		for q.UsedIndex() != want {
			runtime.Gosched()
		}
	}
}
