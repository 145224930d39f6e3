package kvm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
)

// A VCPU is one CPU. It implements [hv.VCPU], [hv.Sampler] and [hv.Counter].
type VCPU struct {
	vm   *VM
	id   int
	fd   int
	io   hv.IO
	area []byte   // shared with KVM
	page *runPage // its beginning

	prepared bool
	halted   bool   // HLT was executed: KVM, without a LAPIC of its own, would go on behind it
	inIO     bool   // the next KVM_RUN completes an access
	apicBase uint64 // KVM's idea of it, which has no effect
	tscHz    uint64 // the guest's
	tscRead  uint64 // the last State's
	xsave    []byte
	xcr0     uint64 // what XCR0 can be

	kicked  atomic.Bool
	sampled atomic.Bool   // asked is not empty
	tid     atomic.Int32  // the thread that is in Run, or 0
	pokes   atomic.Int32  // calls of poke under way
	offset  atomic.Uint64 // the guest's time stamp counter less the host's
	count   counters
	stats   *stats // KVM's own; nil where it has none

	mu      sync.Mutex // guards what follows
	running bool
	asked   []question
}

// Run implements [hv.VCPU].
func (v *VCPU) Run() (hv.Exit, error) {
	if err := v.prepare(); err != nil {
		return 0, err
	}
	v.enter()
	defer v.leave()
	for {
		if w := v.page.immediate(); w.Load()&immediateExit != 0 {
			w.And(^uint32(immediateExit))
		}
		if v.kicked.Load() {
			v.kicked.Store(false)
			return hv.Kicked, v.settle()
		}
		if v.sampled.Load() {
			v.answer()
		}
		runs, err := v.interrupts()
		if err != nil {
			return 0, err
		}
		if !runs {
			return hv.Halted, nil
		}
		if _, err = v.enterGuest(); err != nil {
			return 0, err
		}
		if v.page.reason == exitShutdown {
			return hv.Shutdown, nil
		}
	}
}

// settle completes the access that is under way, and goes no further. It may turn out to have more parts.
func (v *VCPU) settle() error {
	for v.inIO {
		v.page.immediate().Or(immediateExit)
		if _, err := v.enterGuest(); err != nil {
			return err
		}
	}
	return nil
}

// enterGuest runs the guest until KVM wants something, and does that. It tells whether it was interrupted instead.
func (v *VCPU) enterGuest() (interrupted bool, err error) {
	v.inIO = false
	if v.vm.chip {
		_, err = ioctl(v.fd, run, 0)
	} else {
		cr8 := v.io.CR8()
		v.page.cr8 = cr8
		_, err = ioctl(v.fd, run, 0)
		if v.page.cr8 != cr8 {
			v.io.SetCR8(v.page.cr8)
		}
	}
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		v.count.note(exitINTR, 0)
		v.page.reason = exitINTR
		return true, nil
	}
	if err != nil {
		return false, v.failure(hv.Internal, fmt.Sprintf("KVM_RUN: %v", err))
	}
	began := rdtsc()
	reason := v.page.reason
	err = v.serve(reason)
	v.count.note(reason, rdtsc()-began)
	return false, err
}

// serve does what an exit asks for.
func (v *VCPU) serve(reason uint32) error {
	switch reason {
	case exitIO:
		v.port(view[ioExit](v.page.exit[:]))
	case exitMMIO:
		v.mmio(view[mmioExit](v.page.exit[:]))
	case exitReadMSR, exitWriteMSR:
		v.msr(view[msrExit](v.page.exit[:]), reason == exitWriteMSR)
	case exitHLT:
		v.halted = true
	case exitIRQWindow, exitINTR, exitSetTPR, exitShutdown:
	case exitInternalError:
		return v.internalError(view[internalExit](v.page.exit[:]))
	case exitFailEntry:
		return v.failure(hv.Entry, fmt.Sprintf("the host's processor refuses to enter the guest (hardware reason %#x)", *view[uint64](v.page.exit[:])))
	default:
		return v.failure(hv.Internal, fmt.Sprintf("KVM left the guest for reason %d, which it was not asked for", reason))
	}
	return nil
}

// port is an IN or OUT, also of a string: count items of size bytes.
func (v *VCPU) port(e *ioExit) {
	v.inIO = true
	size := uint64(e.size)
	for i := range uint64(e.count) {
		p := v.area[e.data+i*size:][:size]
		if e.out != 0 {
			v.io.WritePort(e.port, p)
		} else {
			v.io.ReadPort(e.port, p)
		}
	}
}

func (v *VCPU) mmio(e *mmioExit) {
	v.inIO = true
	p := e.data[:min(e.n, 8)]
	if e.write != 0 {
		v.io.WriteMMIO(mem.Addr(e.addr), p)
	} else {
		v.io.ReadMMIO(mem.Addr(e.addr), p)
	}
}

func (v *VCPU) msr(e *msrExit, write bool) {
	v.inIO = true
	var err error
	if write {
		err = v.io.WriteMSR(e.index, e.data)
	} else {
		e.data, err = v.io.ReadMSR(e.index)
	}
	e.fault = 0
	if err != nil {
		e.fault = 1
	}
}

// interrupts gives the guest what waits for it, or asks KVM to come back when it takes that. It tells whether the CPU runs.
func (v *VCPU) interrupts() (runs bool, err error) {
	if v.vm.chip {
		return true, nil
	}
	if !v.io.Pending() {
		v.page.requestWindow = 0
		return !v.halted, nil
	}
	if v.io.TakeNMI() {
		if err := v.injectNMI(); err != nil {
			return false, err
		}
	}
	if v.page.ready != 0 {
		if vector, ok := v.io.Acknowledge(); ok {
			irq := uint32(vector)
			if _, err := ioctlAt(v.fd, interrupt, &irq); err != nil {
				return false, fmt.Errorf("kvm: CPU %d: interrupt %d: %w", v.id, vector, err)
			}
			v.page.ready = 0
			v.halted = false
		}
	}
	v.page.requestWindow = 0
	if !v.halted && v.io.Pending() {
		v.page.requestWindow = 1
	}
	return !v.halted, nil
}

// injectNMI queues an NMI. It ends a HLT, unless that is in the handler of an earlier one.
func (v *VCPU) injectNMI() error {
	if v.halted {
		var e vcpuEvents
		if _, err := ioctlAt(v.fd, getVCPUEvents, &e); err != nil {
			return fmt.Errorf("kvm: CPU %d: events: %w", v.id, err)
		}
		v.halted = e.nmi.masked != 0
	}
	if _, err := ioctl(v.fd, nmi, 0); err != nil {
		return fmt.Errorf("kvm: CPU %d: NMI: %w", v.id, err)
	}
	return nil
}
