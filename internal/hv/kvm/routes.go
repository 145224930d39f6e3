package kvm

//lint:file-ignore U1000 the structures are KVM's (include/uapi/linux/kvm.h): a field that we do not use keeps the place of those behind it

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
)

// Where interrupts go: a number (GSI) leads to pins of the controllers or to a message, and an event counter can raise it
// (Documentation/virt/kvm/api.rst, KVM_SET_GSI_ROUTING, KVM_IRQFD).

type route struct {
	gsi, kind, flags, _ uint32
	to                  [8]uint32 // controller and pin; of a message address, its upper half, data
}

// Kinds of routes.
const (
	routeToChip = 1
	routeToMSI  = 2
)

const (
	chipRoutes  = ioPins + 16 - 1 // the PIC's 15 inputs that have wires, and the I/O APIC's pins
	maxMessages = 2048            // KVM has at most 4096 routes (KVM_MAX_IRQ_ROUTES)
)

// routing is struct kvm_irq_routing.
type routing struct {
	n, _    uint32
	entries [chipRoutes + maxMessages]route
}

// routes is a VM's routes.
type routes struct {
	mu    sync.Mutex // guards what follows
	table *routing
	free  []uint32 // numbers of messages that were closed
	next  uint32   // the first number that was not used yet
}

// wire makes the board's wires, not KVM's own idea of them, which has the timer at pin 0.
func (r *routes) wire(vm int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table, r.next = &routing{}, ioPins
	add := func(gsi, chip, pin int) {
		r.table.entries[r.table.n] = route{gsi: uint32(gsi), kind: routeToChip, to: [8]uint32{uint32(chip), uint32(pin)}}
		r.table.n++
	}
	for gsi := range ioPins {
		switch {
		case gsi == 2:
			add(gsi, chipPICMaster, 0)
		case gsi > 0 && gsi < 8:
			add(gsi, chipPICMaster, gsi)
		case gsi >= 8 && gsi < 16:
			add(gsi, chipPICSlave, gsi-8)
		}
		add(gsi, chipIOAPIC, gsi)
	}
	return r.apply(vm)
}

// apply shows KVM the table. r.mu is held.
func (r *routes) apply(vm int) error {
	if _, err := ioctlAt(vm, setGSIRouting, r.table); err != nil {
		return fmt.Errorf("kvm: interrupt routes: %w", err)
	}
	return nil
}

// find is the entry of a message, or nil while it goes nowhere. r.mu is held.
func (r *routes) find(gsi uint32) *route {
	for i := range r.table.entries[:r.table.n] {
		if e := &r.table.entries[i]; e.gsi == gsi && e.kind == routeToMSI {
			return e
		}
	}
	return nil
}

// A message is a number with a route to a message, and the event counter that raises it. It implements [hv.Message].
type message struct {
	vm  *VM
	gsi uint32
	fd  int
}

type irqFDRequest struct {
	fd, gsi, flags, resample uint32
	_                        [16]uint8
}

const irqFDDeassign = 1

var errNoEvents = errors.New("kvm: this host has no event counters for interrupts")

// NewMessage implements [hv.Messenger].
func (v *VM) NewMessage() (hv.Message, error) {
	if !v.chip || v.b.has(capIRQFD) == 0 {
		return nil, errNoEvents
	}
	r := &v.routes
	r.mu.Lock()
	defer r.mu.Unlock()
	gsi := r.next
	if n := len(r.free); n > 0 {
		gsi, r.free = r.free[n-1], r.free[:n-1]
	} else if r.next++; r.next > ioPins+maxMessages {
		r.next--
		return nil, fmt.Errorf("kvm: more than %d messages", maxMessages)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		if _, err = ioctlAt(v.fd, irqFD, &irqFDRequest{fd: uint32(fd), gsi: gsi}); err == nil {
			return &message{v, gsi, fd}, nil
		}
		unix.Close(fd)
	}
	r.free = append(r.free, gsi)
	return nil, fmt.Errorf("kvm: an event counter for interrupts: %w", err)
}

// Set implements [hv.Message].
func (m *message) Set(addr uint64, data uint32) error {
	r := &m.vm.routes
	r.mu.Lock()
	defer r.mu.Unlock()
	to := [8]uint32{uint32(addr), uint32(addr >> 32), data}
	e := r.find(m.gsi)
	if e == nil {
		e = &r.table.entries[r.table.n]
		*e = route{gsi: m.gsi, kind: routeToMSI}
		r.table.n++
	} else if e.to == to {
		return nil
	}
	e.to = to
	return r.apply(m.vm.fd)
}

// one is what adds 1 to an event counter.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// Send implements [hv.Message].
func (m *message) Send() { unix.Write(m.fd, one) }

// Close implements [hv.Message].
func (m *message) Close() error {
	r := &m.vm.routes
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := ioctlAt(m.vm.fd, irqFD, &irqFDRequest{fd: uint32(m.fd), gsi: m.gsi, flags: irqFDDeassign})
	err = errors.Join(err, unix.Close(m.fd))
	if e := r.find(m.gsi); e != nil {
		r.table.n--
		*e = r.table.entries[r.table.n]
		err = errors.Join(err, r.apply(m.vm.fd))
	}
	r.free = append(r.free, m.gsi)
	return err
}

type ioEventFDRequest struct {
	match, addr uint64
	size        uint32
	fd          int32
	flags       uint32
	_           [36]uint8
}

const ioEventFDDeassign = 1 << 2

// AddDoorbell implements [hv.Doorbeller].
func (v *VM) AddDoorbell(a mem.Addr, fd int) error { return v.doorbell(a, fd, 0) }

// RemoveDoorbell implements [hv.Doorbeller].
func (v *VM) RemoveDoorbell(a mem.Addr, fd int) error { return v.doorbell(a, fd, ioEventFDDeassign) }

// doorbell has no width, which is any width; Intel's KVM does not even decode the instruction then (KVM_FAST_MMIO_BUS).
func (v *VM) doorbell(a mem.Addr, fd int, flags uint32) error {
	if !v.b.bells {
		return errors.New("kvm: this host has no event counters for writes of any width")
	}
	if _, err := ioctlAt(v.fd, ioEventFD, &ioEventFDRequest{addr: uint64(a), fd: int32(fd), flags: flags}); err != nil {
		return fmt.Errorf("kvm: a doorbell at %#x: %w", uint64(a), err)
	}
	return nil
}
