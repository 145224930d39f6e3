package virtio

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/pci"
	"vitrine.dev/vitrine/internal/mem"
)

var le = binary.LittleEndian

// The PCI identity of a modern device (virtio 1.2 section 4.1.2), and the parts of BAR 0.
const (
	pciVendor    = 0x1AF4
	pciDevice    = 0x1040
	pciSubDevice = 0x1100
	pciRevision  = 1

	commonAt   = 0x0000
	isrAt      = 0x1000
	deviceAt   = 0x2000
	notifyAt   = 0x3000
	barSize    = 0x4000
	partSize   = 0x1000
	notifyStep = 4
	maxQueues  = partSize / notifyStep

	isrQueue  = 1
	isrConfig = 2
	noVector  = 0xFFFF
)

// Types of the vendor-specific capabilities (virtio 1.2 section 4.1.4).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capPCI    = 5
)

// PCI is a virtio device as a PCI function: registers in BAR 0, MSI-X in BAR 1. It is a [pci.Function] and a [pci.Pauser].
type PCI struct {
	dev      Device
	features uint64
	queues   []*Queue
	max      []uint16
	config   *pci.Config
	msix     *pci.MSIX

	generation   atomic.Uint32
	configVector atomic.Uint32
	needsReset   atomic.Bool // a queue broke
	broken       atomic.Uint64
	isrMu        sync.Mutex // before Config's
	isr          uint8

	mu        sync.Mutex // guards all below; before a queue's
	common    commonState
	stop      chan struct{} // ends the session's goroutines; nil outside of a session
	workers   sync.WaitGroup
	resetting chan struct{} // closed when the reset under way is done; nil where none is
	paused    bool
}

// NewPCI makes dev a PCI function whose queues lie in ram and whose interrupts go to msi, or to INTA where the driver
// does not use MSI-X. Attach it with [pci.Bus.Attach]; Close it when the machine ends.
func NewPCI(dev Device, ram *mem.Memory, msi bus.MSI) *PCI {
	class, ok := pciClass[dev.Type()]
	if !ok {
		class = classOther
	}
	t := &PCI{
		dev: dev, features: dev.Features() | transportFeatures, max: dev.QueueSizes(),
		config: pci.NewConfig(pci.ID{
			Vendor: pciVendor, Device: pciDevice + uint16(dev.Type()),
			SubVendor: pciVendor, SubDevice: pciSubDevice, Class: class, Revision: pciRevision,
		}),
	}
	if len(t.max) == 0 || len(t.max) > maxQueues {
		panic(fmt.Sprintf("BUG: virtio: %d queues", len(t.max)))
	}
	for i, n := range t.max {
		if n == 0 || n&(n-1) != 0 || n > 1<<15 {
			panic(fmt.Sprintf("BUG: virtio: queue of %d", n))
		}
		q := &Queue{Index: i, ram: ram, bell: make(chanBell, 1), broke: t.breakQueue}
		q.idle.L = &q.mu
		q.interrupt = func() { t.interrupt(isrQueue, q.vector.Load()) }
		q.reset(n)
		t.queues = append(t.queues, q)
	}
	t.configVector.Store(noVector)
	c := t.config
	c.UseINTA()
	c.AddBAR(0, barSize, false, (*registers)(t))
	t.msix = c.AddMSIX(1, len(t.queues)+1, msi)
	addCap(c, capCommon, commonAt, commonSize)
	addCap(c, capISR, isrAt, 1)
	addCap(c, capDevice, deviceAt, partSize)
	addCap(c, capNotify, notifyAt, notifyStep*uint32(len(t.queues)), le.AppendUint32(nil, notifyStep)...)
	at := addCap(c, capPCI, 0, 0, 0, 0, 0, 0)
	c.SetWritable(at+4, 1)
	c.SetWritable(at+8, 8)
	c.SetWindow(at+16, 4, &configAccess{t, at})
	return t
}

// addCap appends a virtio_pci_cap for [off, off+n) of BAR 0.
func addCap(c *pci.Config, kind uint8, off, n uint32, more ...byte) int {
	body := []byte{byte(16 + len(more)), kind, 0, 0, 0, 0}
	body = le.AppendUint32(body, off)
	body = le.AppendUint32(body, n)
	return c.AddCapability(pci.CapVendor, append(body, more...))
}

// Config implements [pci.Function].
func (t *PCI) Config() *pci.Config { return t.config }

// UseDoorbells implements [pci.Ringer]: a notification does not reach this program's vCPU thread.
func (t *PCI) UseDoorbells() error {
	for i, q := range t.queues {
		b, err := newEventBell()
		if err != nil {
			return err
		}
		q.bell = b
		t.config.AddDoorbell(0, notifyAt+uint64(i)*notifyStep, b.fd)
	}
	return nil
}

// Device is what NewPCI was given.
func (t *PCI) Device() Device { return t.dev }

// registers is BAR 0.
type registers PCI

// Read implements [bus.Device].
func (r *registers) Read(off uint64, p []byte) {
	t := (*PCI)(r)
	clear(p)
	switch off &^ (partSize - 1) {
	case commonAt:
		t.readCommon(off, p)
	case isrAt:
		if off == isrAt && len(p) > 0 {
			p[0] = t.takeISR()
		}
	case deviceAt:
		t.dev.ReadConfig(off-deviceAt, p)
	}
}

// Write implements [bus.Device].
func (r *registers) Write(off uint64, p []byte) {
	t := (*PCI)(r)
	switch off &^ (partSize - 1) {
	case commonAt:
		t.writeCommon(off, p)
	case deviceAt:
		t.dev.WriteConfig(off-deviceAt, p)
	case notifyAt:
		if i := (off - notifyAt) / notifyStep; i < uint64(len(t.queues)) {
			t.queues[i].Wake()
		}
	}
}

// configAccess is pci_cfg_data: BAR 0 through configuration space (virtio 1.2 section 4.1.4.9).
type configAccess struct {
	t  *PCI
	at int // the capability
}

// target is the register that the capability names, if len(p) is the length that it gives.
func (a *configAccess) target(off uint64, n int) (uint64, bool) {
	var p [12]byte // from the BAR number on
	a.t.config.Read(a.at+4, p[:])
	to, length := le.Uint32(p[4:]), le.Uint32(p[8:])
	ok := off == 0 && p[0] == 0 && int64(length) == int64(n) && (n == 1 || n == 2 || n == 4) &&
		to%uint32(n) == 0 && uint64(to)+uint64(n) <= barSize
	return uint64(to), ok
}

func (a *configAccess) Read(off uint64, p []byte) {
	clear(p)
	if to, ok := a.target(off, len(p)); ok {
		(*registers)(a.t).Read(to, p)
	}
}

func (a *configAccess) Write(off uint64, p []byte) {
	if to, ok := a.target(off, len(p)); ok {
		(*registers)(a.t).Write(to, p)
	}
}

// interrupt tells the driver by MSI-X vector, or by the ISR register and INTA.
func (t *PCI) interrupt(cause uint8, vector uint32) {
	if t.msix.Enabled() {
		t.msix.Signal(int(vector))
		return
	}
	t.isrMu.Lock()
	t.isr |= cause
	t.config.SetINTx(true)
	t.isrMu.Unlock()
}

// takeISR is the driver's read of the ISR register: it clears it and the interrupt.
func (t *PCI) takeISR() uint8 {
	t.isrMu.Lock()
	defer t.isrMu.Unlock()
	v := t.isr
	t.isr = 0
	t.config.SetINTx(false)
	return v
}

func (t *PCI) configChanged() {
	t.generation.Add(1)
	t.interrupt(isrConfig, t.configVector.Load())
}

// breakQueue is the answer to a queue that cannot be understood: the device waits for a reset (virtio 1.2 section 2.1.2).
func (t *PCI) breakQueue() {
	t.broken.Add(1)
	t.needsReset.Store(true)
	t.configChanged()
}

// Counters calls fn with each counter's name and value.
func (t *PCI) Counters(fn func(name string, value uint64)) {
	var s queueStats
	for _, q := range t.queues {
		q.mu.Lock()
		s.chains += q.stats.chains
		s.interrupts += q.stats.interrupts
		s.suppressed += q.stats.suppressed
		q.mu.Unlock()
	}
	fn("chains", s.chains)
	fn("interrupts", s.interrupts)
	fn("interrupts_suppressed", s.suppressed)
	fn("broken_queues", t.broken.Load())
}

// Close ends the device's goroutines, and closes the device if it can be closed.
func (t *PCI) Close() error {
	t.Pause()
	t.mu.Lock()
	t.endSession()
	t.mu.Unlock()
	for _, q := range t.queues {
		q.bell.close()
	}
	if c, ok := t.dev.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
