package virtio

import (
	"time"

	"vitrine.dev/vitrine/internal/mem"
)

// Device status bits (virtio 1.2 section 2.1).
const (
	StatusAcknowledge = 1
	StatusDriver      = 2
	StatusDriverOK    = 4
	StatusFeaturesOK  = 8
	StatusNeedsReset  = 0x40
	StatusFailed      = 0x80
)

// Offsets in the common configuration (virtio 1.2 section 4.1.4.3).
const (
	offDeviceFeatureSelect = 0
	offDeviceFeature       = 4
	offDriverFeatureSelect = 8
	offDriverFeature       = 12
	offConfigVector        = 16
	offNumQueues           = 18
	offStatus              = 20
	offGeneration          = 21
	offQueueSelect         = 22
	offQueueSize           = 24
	offQueueVector         = 26
	offQueueEnable         = 28
	offQueueNotifyOff      = 30
	offQueueDesc           = 32
	offQueueDriver         = 40
	offQueueDevice         = 48
	commonSize             = 60
)

// resetWait bounds how long a CPU that resets the device waits for requests under way; after that the driver polls the status.
const resetWait = 10 * time.Millisecond

// commonState is what the driver wrote to the common configuration, without the queues.
type commonState struct {
	DeviceSelect, DriverSelect uint32
	Driver                     uint64 // the features that the driver wants
	Status                     uint8
	Queue                      uint16
}

// writable is the common configuration's registers that the driver writes, each with its own width only
// (virtio 1.2 section 4.1.3.1). t.mu is held.
var writable = []struct {
	off   uint64
	size  int
	write func(t *PCI, v uint32)
}{
	{offDeviceFeatureSelect, 4, func(t *PCI, v uint32) { t.common.DeviceSelect = v }},
	{offDriverFeatureSelect, 4, func(t *PCI, v uint32) { t.common.DriverSelect = v }},
	{offDriverFeature, 4, (*PCI).setDriverFeature},
	{offConfigVector, 2, func(t *PCI, v uint32) { t.configVector.Store(t.validVector(v)) }},
	{offStatus, 1, (*PCI).setStatus},
	{offQueueSelect, 2, func(t *PCI, v uint32) { t.common.Queue = uint16(v) }},
	{offQueueSize, 2, (*PCI).setQueueSize},
	{offQueueVector, 2, (*PCI).setQueueVector},
	{offQueueEnable, 2, (*PCI).enableQueue},
	{offQueueDesc, 4, func(t *PCI, v uint32) { t.setRing(func(r *ring) { setLow(&r.Desc, v) }) }},
	{offQueueDesc + 4, 4, func(t *PCI, v uint32) { t.setRing(func(r *ring) { setHigh(&r.Desc, v) }) }},
	{offQueueDriver, 4, func(t *PCI, v uint32) { t.setRing(func(r *ring) { setLow(&r.Avail, v) }) }},
	{offQueueDriver + 4, 4, func(t *PCI, v uint32) { t.setRing(func(r *ring) { setHigh(&r.Avail, v) }) }},
	{offQueueDevice, 4, func(t *PCI, v uint32) { t.setRing(func(r *ring) { setLow(&r.Used, v) }) }},
	{offQueueDevice + 4, 4, func(t *PCI, v uint32) { t.setRing(func(r *ring) { setHigh(&r.Used, v) }) }},
}

func setLow(a *mem.Addr, v uint32)  { *a = *a&^0xFFFFFFFF | mem.Addr(v) }
func setHigh(a *mem.Addr, v uint32) { *a = *a&0xFFFFFFFF | mem.Addr(v)<<32 }

// writeCommon takes a write to the common configuration. A 64-bit register may be written whole or in halves.
func (t *PCI) writeCommon(off uint64, p []byte) {
	if len(p) == 8 {
		t.writeCommon(off, p[:4])
		t.writeCommon(off+4, p[4:])
		return
	}
	var v uint32
	for i, b := range p {
		v |= uint32(b) << (8 * i)
	}
	t.mu.Lock()
	for _, w := range writable {
		if w.off == off && w.size == len(p) && t.resetting == nil {
			w.write(t, v)
			break
		}
	}
	done := t.resetting
	t.mu.Unlock()
	if done != nil && off == offStatus {
		select {
		case <-done:
		case <-time.After(resetWait):
		}
	}
}

// readCommon answers from an image of the whole structure.
func (t *PCI) readCommon(off uint64, p []byte) {
	var b [commonSize]byte
	t.mu.Lock()
	c := &t.common
	le.PutUint32(b[offDeviceFeatureSelect:], c.DeviceSelect)
	le.PutUint32(b[offDeviceFeature:], half(t.features, c.DeviceSelect))
	le.PutUint32(b[offDriverFeatureSelect:], c.DriverSelect)
	le.PutUint32(b[offDriverFeature:], half(c.Driver, c.DriverSelect))
	le.PutUint16(b[offConfigVector:], uint16(t.configVector.Load()))
	le.PutUint16(b[offNumQueues:], uint16(len(t.queues)))
	b[offStatus] = c.Status
	if t.needsReset.Load() && c.Status != 0 {
		b[offStatus] |= StatusNeedsReset
	}
	b[offGeneration] = uint8(t.generation.Load())
	le.PutUint16(b[offQueueSelect:], c.Queue)
	if q := t.selected(); q != nil {
		q.mu.Lock()
		r := q.ring
		q.mu.Unlock()
		le.PutUint16(b[offQueueSize:], r.Size)
		le.PutUint16(b[offQueueVector:], uint16(q.vector.Load()))
		if r.Enabled {
			b[offQueueEnable] = 1
		}
		le.PutUint16(b[offQueueNotifyOff:], uint16(q.Index))
		le.PutUint64(b[offQueueDesc:], uint64(r.Desc))
		le.PutUint64(b[offQueueDriver:], uint64(r.Avail))
		le.PutUint64(b[offQueueDevice:], uint64(r.Used))
	}
	t.mu.Unlock()
	ReadBytes(b[:], off, p)
}

// half is the 32 bits of a feature set that a select register names.
func half(v uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(v >> (32 * sel))
}

func (t *PCI) setDriverFeature(v uint32) {
	c := &t.common
	if c.Status&StatusFeaturesOK != 0 || c.DriverSelect > 1 {
		return
	}
	sh := 32 * c.DriverSelect
	c.Driver = c.Driver&^(0xFFFFFFFF<<sh) | uint64(v)<<sh
}

// selected is the queue that queue_select names, or nil.
func (t *PCI) selected() *Queue {
	if i := int(t.common.Queue); i < len(t.queues) {
		return t.queues[i]
	}
	return nil
}

// setRing changes the selected queue's ring, which the driver may do until it enables it.
func (t *PCI) setRing(fn func(*ring)) {
	q := t.selected()
	if q == nil || t.stop != nil {
		return
	}
	q.mu.Lock()
	if !q.ring.Enabled {
		fn(&q.ring)
	}
	q.mu.Unlock()
}

func (t *PCI) setQueueSize(v uint32) {
	t.setRing(func(r *ring) {
		if n := uint16(v); n != 0 && n&(n-1) == 0 && n <= t.max[t.common.Queue] {
			r.Size = n
		}
	})
}

func (t *PCI) enableQueue(v uint32) {
	if v == 1 {
		t.setRing(func(r *ring) { r.Enabled = true })
	}
}

func (t *PCI) setQueueVector(v uint32) {
	if q := t.selected(); q != nil {
		q.vector.Store(t.validVector(v))
	}
}

// validVector is v, or no vector where the table has no such entry: the driver reads it back to see.
func (t *PCI) validVector(v uint32) uint32 {
	if int(v) >= t.msix.Vectors() {
		return noVector
	}
	return v
}

// setStatus adds the bits that the driver sets, if it may, or resets the device.
func (t *PCI) setStatus(v uint32) {
	c := &t.common
	if v == 0 {
		t.beginReset()
		return
	}
	v &= StatusAcknowledge | StatusDriver | StatusDriverOK | StatusFeaturesOK | StatusFailed
	add := uint8(v) &^ c.Status
	if add&StatusFeaturesOK != 0 && (c.Driver&^t.features != 0 || c.Driver&FeatureVersion1 == 0) {
		add &^= StatusFeaturesOK
	}
	if (c.Status|add)&StatusFeaturesOK == 0 {
		add &^= StatusDriverOK
	}
	c.Status |= add
	if add&StatusDriverOK != 0 {
		t.beginSession()
	}
}
