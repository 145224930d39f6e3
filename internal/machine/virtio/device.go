// Package virtio carries virtio 1.2 devices over PCI: features, split virtqueues, interrupts, and who serves a queue when.
//
// A vCPU only ever leaves a note. Each queue has a goroutine that calls the device's Serve after the guest's notify or the
// device's own [Queue.Wake]; several queues are served at once, and a device may finish requests on goroutines of its own.
package virtio

import (
	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/mem"
)

// Type is a device's kind (virtio 1.2 section 5).
type Type uint16

// The kinds of device.
const (
	Net     Type = 1
	Block   Type = 2
	Console Type = 3
	RNG     Type = 4
	Balloon Type = 5
	SCSI    Type = 8
	GPU     Type = 16
	Input   Type = 18
	Vsock   Type = 19
	FS      Type = 26
)

// pciClass is the PCI class code that QEMU gives each kind; other kinds are classOther.
var pciClass = map[Type]uint32{
	Net: 0x020000, Block: 0x010000, Console: 0x078000, Balloon: 0x00FF00, SCSI: 0x010000,
	GPU: 0x038000, Input: 0x090000, Vsock: 0x078000, FS: 0x018000,
}

const classOther = 0x00FF00

// Feature bits of no particular device (virtio 1.2 section 6), all offered.
const (
	FeatureIndirectDesc uint64 = 1 << 28
	FeatureEventIdx     uint64 = 1 << 29
	FeatureVersion1     uint64 = 1 << 32
	transportFeatures          = FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1
)

// A Device is one kind of virtio device, whatever carries it.
type Device interface {
	Type() Type
	// Features are the device's own bits; the transport adds its own. They do not change.
	Features() uint64
	// QueueSizes gives each queue's largest size, a power of two. They do not change.
	QueueSizes() []uint16
	// ReadConfig and WriteConfig serve the device-specific configuration, from any CPU. Bytes that do not exist read 0.
	ReadConfig(off uint64, p []byte)
	WriteConfig(off uint64, p []byte)
	// Activate says that the driver is ready; Serve follows for each enabled queue. It must not block.
	Activate(s *Session)
	// Serve takes what it wants from q with [Queue.Pop] and gives each chain back with [Queue.Push], then or later.
	// It runs on q's goroutine alone. Neither Serve nor what holds a chain may wait for anything but the host's disk: a device that
	// lacks data or room returns, and wakes the queue when there is some.
	Serve(q *Queue)
	// Reset forgets the driver. No Serve runs and no chain is out.
	Reset()
	// Save and Load carry what is the device's own; registers and queues are the transport's. Load comes before Activate.
	bus.Stateful
}

// A Session is the time from DRIVER_OK to reset.
type Session struct {
	// Features is what device and driver agreed on.
	Features uint64
	// RAM is the guest's.
	RAM *mem.Memory
	// Queues are all of the device's, in order; see [Queue.Enabled]. They are the same in each session.
	Queues []*Queue
	// ConfigChanged tells the driver to read the configuration again. It may be called from any goroutine.
	ConfigChanged func()
}

// Has tells whether all bits of feature were agreed on.
func (s *Session) Has(feature uint64) bool { return s.Features&feature == feature }

// ReadBytes serves a ReadConfig from the bytes of a configuration structure.
func ReadBytes(config []byte, off uint64, p []byte) {
	clear(p)
	if off < uint64(len(config)) {
		copy(p, config[off:])
	}
}
