package hv

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
)

// A Fault is what ended a CPU.
type Fault uint8

// The ways in which a CPU ends that cannot go on.
const (
	Internal  Fault = iota // the accelerator failed
	Emulation              // it met an instruction that it could neither execute nor emulate
	Entry                  // the host's processor refused the CPU's state
	Crash                  // the guest's own doing: [Shutdown]
)

// A Failure is a CPU that cannot go on, as it stands.
type Failure struct {
	CPU   int
	Fault Fault
	What  string
	Regs  x86.Regs // as far as they could be had
	Code  []byte   // the bytes of the instruction to be executed and behind it, as far as they are mapped
}

// Error is one line: what, where, and the instruction's bytes.
func (f *Failure) Error() string {
	return fmt.Sprintf("CPU %d: %s at %#x, code % x", f.CPU, f.What, f.Regs.RIP, f.Code)
}

// Report is the registers and the code, some to a line.
func (f *Failure) Report() string { return f.Regs.Dump() + fmt.Sprintf("code % x", f.Code) }
