// Package guest knows a Linux guest from its memory and registers alone.
package guest

import (
	"errors"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// ErrNoRegisters is returned by Target.CPU where registers cannot be had.
var ErrNoRegisters = errors.New("guest: no registers")

// A Target is a guest to look at: a live one, another VMM's, a snapshot or a crash dump.
type Target interface {
	mem.Reader
	// Regions lists the guest's RAM in ascending order.
	Regions() []mem.Region
	NumCPU() int
	// CPU fills r with the registers of CPU i, or returns ErrNoRegisters.
	CPU(i int, r *x86.Regs) error
}
