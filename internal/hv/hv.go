// Package hv is the seam between the machine and what runs its CPUs: KVM, or the CPU engine in software.
package hv

import (
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Exit says why Run returned.
type Exit uint8

// The exits. All else (ports, MMIO, MSRs, interrupts) a backend settles with its [IO].
const (
	Kicked     Exit = iota // Kick was called: the CPU is at an instruction boundary, no I/O is pending
	Halted                 // HLT with no interrupt pending: call Run again when IO.Pending
	Stepped                // one instruction, while single stepping
	Breakpoint             // a debugger's breakpoint
	Shutdown               // a triple fault
)

// A Backend makes virtual machines of one kind.
type Backend interface {
	// Name is the accelerator's: "kvm" or "soft".
	Name() string
	NewVM(ram *mem.Memory) (VM, error)
}

// A VM holds the CPUs of one guest. A VM may also be a [DirtyLogger].
type VM interface {
	// NewVCPU makes CPU number id (its APIC id), which reaches the machine through io. Call it before any CPU runs.
	NewVCPU(id int, io IO) (VCPU, error)
	// Close frees what the VM holds. No Run may be in progress.
	Close() error
}

// A VCPU is one processor. Run, State and SetState belong to one goroutine at a time, locked to its thread; Kick and Sample to any.
type VCPU interface {
	// Run executes the guest until there is a reason to stop. It looks at IO.Pending when it begins, so that what was raised
	// between two Runs, or before a Kick ended one, is not missed.
	Run() (Exit, error)
	// Kick makes the current or next Run return Kicked. It may be called from any goroutine, also after Close.
	Kick()
	State(*x86.State) error
	SetState(*x86.State) error
}

// IO is the machine as one CPU sees it. A backend calls it on the CPU's own goroutine.
type IO interface {
	ReadPort(port uint16, p []byte)
	WritePort(port uint16, p []byte)
	ReadMMIO(a mem.Addr, p []byte)
	WriteMMIO(a mem.Addr, p []byte)
	// ReadMSR and WriteMSR serve the MSRs that are the machine's (the LAPIC's, x2APIC's, TSC deadline). An error becomes #GP.
	ReadMSR(msr uint32) (uint64, error)
	WriteMSR(msr uint32, v uint64) error
	// Pending tells whether an interrupt or NMI waits for this CPU. It is cheap: an atomic load.
	Pending() bool
	// TakeNMI consumes a pending NMI.
	TakeNMI() bool
	// Acknowledge takes the highest-priority maskable interrupt, as the CPU's INTA cycle does.
	Acknowledge() (vector uint8, ok bool)
	// CR8 is the task priority's upper four bits, kept by the LAPIC.
	CR8() uint64
	SetCR8(v uint64)
}

// A Sampler is a VCPU whose registers can be had while it runs, at the cost of a copy and without leaving Run.
type Sampler interface {
	// Sample copies the registers of the code that was running when it was called. It returns false, with r untouched,
	// where the CPU does not run guest code now (it is halted or outside Run). It may be called from any goroutine.
	Sample(r *x86.Regs) bool
}

// A Pausable is a VCPU whose guest can be told that it was paused.
type Pausable interface {
	// Paused is called on the CPU's goroutine before it goes on.
	Paused()
}

// A Counter is a VCPU, or a VM, that counts what it does: instructions, exits by cause, TLB misses…
type Counter interface {
	// Counters calls fn with each counter's name and value; from any goroutine, values at most a block of code old.
	Counters(fn func(name string, value uint64))
}

// A DirtyLogger is a VM that knows which pages its guest wrote.
type DirtyLogger interface {
	StartDirtyLog() error
	// TakeDirtyLog calls fn with each page written since the last call.
	TakeDirtyLog(fn func(mem.Addr)) error
	StopDirtyLog() error
}

// An IRQChip is a VM that can have a PC's interrupt controllers of its own: two 8259A, an I/O APIC of 24 pins, a local APIC a CPU. With them
// its CPUs take interrupts, INIT, SIPI and HLT by themselves: Run does not return Halted, all CPUs but the first wait for their SIPI inside Run, and of
// IO only ports and MMIO are asked for. State.LAPIC is not empty then.
type IRQChip interface {
	// CreateIRQChip makes the controllers. Call it before NewVCPU.
	CreateIRQChip() error
	// SetLine sets the level of an I/O APIC pin, and of the PIC's input that the board wires to it: pin 2 goes with input 0, others below 16 with
	// their own. It returns false where an edge merged into one that waits. It may be called from any goroutine.
	SetLine(pin int, level bool) (seen bool)
	// SignalMSI delivers a message-signalled interrupt. It may be called from any goroutine.
	SignalMSI(addr uint64, data uint32)
	// ChipState is the state of the PIC and the I/O APIC; no CPU is in Run.
	ChipState() ([]byte, error)
	// SetChipState puts back what ChipState gave.
	SetChipState([]byte) error
}

// A Doorbeller is a VM whose guest can tell a device something without leaving the guest's code for long: a write to a doorbell's address
// adds 1 to an event counter (eventfd(2)) and does not reach IO.
type Doorbeller interface {
	// AddDoorbell makes writes of any width at a ring fd, which stays the caller's. It may be called from any goroutine.
	AddDoorbell(a mem.Addr, fd int) error
	// RemoveDoorbell ends what AddDoorbell began with the same arguments.
	RemoveDoorbell(a mem.Addr, fd int) error
}

// A Messenger is an [IRQChip] that keeps message-signalled interrupts ready to be sent.
type Messenger interface {
	// NewMessage makes a message that goes nowhere yet. It may be called from any goroutine, as a Message's methods.
	NewMessage() (Message, error)
}

// A Message is one message-signalled interrupt.
type Message interface {
	// Set says what is sent: data to addr.
	Set(addr uint64, data uint32) error
	// Send sends it, as [IRQChip] SignalMSI does.
	Send()
	// Close frees it; Set and Send are not called afterwards.
	Close() error
}
