// Package virtiotest is a virtio driver for tests: it finds a device on a PCI bus and talks to it as a kernel would, or worse.
package virtiotest

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/machine/pci"
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/mem"
)

var le = binary.LittleEndian

// RAMSize is the RAM of a test's guest; the driver's rings and buffers lie between 1 MiB and its end.
const RAMSize = 16 << 20

const bufferBase = 1 << 20

// Wait bounds every wait for a device.
const Wait = 20 * time.Second

// A Driver drives one device.
type Driver struct {
	T        testing.TB
	RAM      *mem.Memory
	Fn       *virtio.PCI
	Bus      *pci.Bus
	MMIO     *bus.Bus
	Features uint64   // what was agreed on
	Queues   []*Queue // after Start
	Common   uint64   // where the common configuration is, and the other parts
	ISR      uint64
	Config   uint64
	Notify   uint64

	mu     sync.Mutex
	vector map[uint32]int
	intx   bool
	next   mem.Addr
	bells  *Doorbells // nil: notifications are MMIO
}

// SignalMSI implements [bus.MSI]: it counts.
func (d *Driver) SignalMSI(_ uint64, data uint32) {
	d.mu.Lock()
	d.vector[data]++
	d.mu.Unlock()
}

// Interrupts is how often MSI-X vector v came. Queue i uses vector i+1, the configuration vector 0.
func (d *Driver) Interrupts(v int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vector[uint32(v)]
}

// Set implements [bus.Line] for INTA.
func (d *Driver) Set(level bool) {
	d.mu.Lock()
	d.intx = level
	d.mu.Unlock()
}

// INTx is the level of INTA.
func (d *Driver) INTx() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.intx
}

// New puts dev on a bus of its own and finds its registers. The function is closed at the test's end, and dev with it.
func New(t testing.TB, dev virtio.Device) *Driver { return build(t, dev, nil) }

// Doorbells takes notifications to event counters as KVM does: a write at an address in it reaches no device. It is a [bus.Doorbeller].
type Doorbells struct {
	mu   sync.Mutex
	at   map[mem.Addr]int
	Rung int // how often
}

// AddDoorbell implements [bus.Doorbeller].
func (b *Doorbells) AddDoorbell(a mem.Addr, fd int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at[a] = fd
	return nil
}

// RemoveDoorbell implements [bus.Doorbeller].
func (b *Doorbells) RemoveDoorbell(a mem.Addr, fd int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at[a] != fd {
		return errors.New("there is no such doorbell")
	}
	delete(b.at, a)
	return nil
}

// Hanging is how many doorbells there are.
func (b *Doorbells) Hanging() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.at)
}

// ring tells whether there is a doorbell at a, and rings it.
func (b *Doorbells) ring(a uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	fd, ok := b.at[mem.Addr(a)]
	if ok {
		b.Rung++
		unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return ok
}

// NewWithDoorbells is New on a machine whose CPUs ring event counters.
func NewWithDoorbells(t testing.TB, dev virtio.Device) (*Driver, *Doorbells) {
	t.Helper()
	b := &Doorbells{at: map[mem.Addr]int{}}
	return build(t, dev, b), b
}

func build(t testing.TB, dev virtio.Device, bells *Doorbells) *Driver {
	t.Helper()
	ram, err := mem.New(RAMSize)
	if err != nil {
		t.Fatal(err)
	}
	d := &Driver{T: t, RAM: ram, MMIO: &bus.Bus{}, vector: map[uint32]int{}, next: bufferBase, bells: bells}
	d.Fn = virtio.NewPCI(dev, ram, d)
	d.Bus = pci.New(d.MMIO, [layout.PCIIRQs]bus.Line{d, d, d, d, d, d, d, d})
	if bells != nil {
		d.Bus.UseDoorbells(bells)
	}
	if err := d.Bus.MapECAM(); err != nil {
		t.Fatal(err)
	}
	slot, err := d.Bus.Attach(d.Fn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Bus.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		ram.Close()
	})
	d.probe(layout.ECAM + uint64(slot)<<15)
	return d
}

// probe reads the capabilities of the function at config, and turns on MSI-X with vector v sending data v.
func (d *Driver) probe(config uint64) {
	bar := func(i uint64) uint64 { return d.Read(config+0x10+4*i, 4) &^ 0xF }
	for c := d.Read(config+0x34, 1); c != 0; c = d.Read(config+c+1, 1) {
		at := config + c
		if id := d.Read(at, 1); id == 0x11 {
			table := bar(d.Read(at+4, 4) & 7)
			for v := range d.Read(at+2, 2)&0x7FF + 1 {
				d.Write(table+16*v, 4, 0xFEE00000)
				d.Write(table+16*v+8, 4, v)
				d.Write(table+16*v+12, 4, 0)
			}
			d.Write(at+2, 2, 0x8000)
			continue
		}
		where := bar(d.Read(at+4, 1)) + d.Read(at+8, 4)
		switch d.Read(at+3, 1) {
		case 1:
			d.Common = where
		case 2:
			d.Notify = where
		case 3:
			d.ISR = where
		case 4:
			d.Config = where
		}
	}
	if d.Common == 0 || d.Notify == 0 || d.ISR == 0 || d.Config == 0 {
		d.T.Fatal("a virtio capability is missing")
	}
}

// Read reads n bytes of MMIO.
func (d *Driver) Read(a uint64, n int) uint64 {
	var p [8]byte
	d.MMIO.Read(a, p[:n])
	return le.Uint64(p[:])
}

// Write writes n bytes of MMIO.
func (d *Driver) Write(a uint64, n int, v uint64) {
	if d.bells != nil && d.bells.ring(a) {
		return
	}
	d.MMIO.Write(a, le.AppendUint64(nil, v)[:n])
}

// Status reads the device status.
func (d *Driver) Status() uint8 { return uint8(d.Read(d.Common+20, 1)) }

// SetStatus writes the device status.
func (d *Driver) SetStatus(v uint8) { d.Write(d.Common+20, 1, uint64(v)) }

// Offered is the device's features.
func (d *Driver) Offered() uint64 {
	d.Write(d.Common, 4, 0)
	v := d.Read(d.Common+4, 4)
	d.Write(d.Common, 4, 1)
	return v | d.Read(d.Common+4, 4)<<32
}

// Negotiate resets the device and agrees on those of want that it offers, and VERSION_1.
func (d *Driver) Negotiate(want uint64) {
	d.T.Helper()
	d.Reset()
	d.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	d.Features = d.Offered() & (want | virtio.FeatureVersion1)
	d.Accept(d.Features)
	if d.Status()&virtio.StatusFeaturesOK == 0 {
		d.T.Fatalf("features %#x refused", d.Features)
	}
}

// Accept writes features and FEATURES_OK.
func (d *Driver) Accept(features uint64) {
	d.Write(d.Common+8, 4, 0)
	d.Write(d.Common+12, 4, features&0xFFFFFFFF)
	d.Write(d.Common+8, 4, 1)
	d.Write(d.Common+12, 4, features>>32)
	d.SetStatus(d.Status() | virtio.StatusFeaturesOK)
}

// Reset resets the device and waits until it says so.
func (d *Driver) Reset() {
	d.T.Helper()
	d.SetStatus(0)
	d.Until("reset", func() bool { return d.Status() == 0 })
	d.Queues = nil
}

// Start negotiates want, sets up all queues at their largest size, at most size if that is not 0, and says DRIVER_OK.
func (d *Driver) Start(want uint64, size int) *Driver {
	d.T.Helper()
	d.Negotiate(want)
	d.SetUp(size)
	d.SetStatus(d.Status() | virtio.StatusDriverOK)
	return d
}

// SetUp gives all queues their rings and vectors.
func (d *Driver) SetUp(size int) {
	d.Write(d.Common+16, 2, 0)
	for i := range d.Read(d.Common+18, 2) {
		d.Write(d.Common+22, 2, i)
		n := int(d.Read(d.Common+24, 2))
		if size != 0 && size < n {
			n = size
			d.Write(d.Common+24, 2, uint64(n))
		}
		q := newQueue(d, int(i), n)
		d.Write(d.Common+26, 2, i+1)
		d.Write(d.Common+32, 8, uint64(q.Desc))
		d.Write(d.Common+40, 8, uint64(q.Avail))
		d.Write(d.Common+48, 4, uint64(q.Used))
		d.Write(d.Common+52, 4, uint64(q.Used)>>32)
		d.Write(d.Common+28, 2, 1)
		d.Queues = append(d.Queues, q)
	}
}

// Until waits for ok.
func (d *Driver) Until(what string, ok func() bool) {
	d.T.Helper()
	end := time.Now().Add(Wait)
	for n := 0; !ok(); n++ {
		// Most answers take microseconds; an idle Go program sleeps a millisecond at least.
		if n < 1000 {
			runtime.Gosched()
			continue
		}
		time.Sleep(100 * time.Microsecond)
		if time.Now().After(end) {
			d.T.Fatalf("%s: not within %v", what, Wait)
		}
	}
}

// Alloc gives n bytes of guest memory, 16-byte aligned. Memory comes round again: keep nothing for long.
func (d *Driver) Alloc(n int) mem.Addr {
	size := mem.Addr(n+15) &^ 15
	if size > RAMSize-bufferBase {
		d.T.Fatalf("%d bytes are more than the guest has", n)
	}
	if d.next+size > RAMSize {
		d.next = bufferBase
		if len(d.Queues) > 0 {
			last := d.Queues[len(d.Queues)-1]
			d.next = last.end
		}
	}
	a := d.next
	d.next += size
	return a
}
