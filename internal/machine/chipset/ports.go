package chipset

import (
	"io"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
)

// ResetRegister is port 0xCF9, which ACPI's reset register names: bit 2 resets.
func ResetRegister(reset func()) bus.Device { return &resetPort{reset: reset, bit: 1 << 2} }

// Port92 is system control port A: bit 0 resets, bit 1 is the A20 gate, always open.
func Port92(reset func()) bus.Device { return &resetPort{reset: reset, bit: 1, always: 2} }

type resetPort struct {
	reset       func()
	bit, always uint8

	mu sync.Mutex
	v  uint8
}

func (d *resetPort) Read(_ uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	putLE(p, 0, uint64(d.v|d.always))
}

func (d *resetPort) Write(_ uint64, p []byte) {
	d.mu.Lock()
	d.v = p[0] &^ d.bit
	d.mu.Unlock()
	if p[0]&d.bit != 0 {
		d.reset()
	}
}

// DebugExit is QEMU's isa-debug-exit: exit gets value*2+1.
func DebugExit(exit func(status int)) bus.Device { return debugExit(exit) }

type debugExit func(int)

func (debugExit) Read(_ uint64, p []byte) { putLE(p, 0, 0) }

func (exit debugExit) Write(_ uint64, p []byte) {
	exit(int(uint32(mergeLE(0, 0, p))<<1 | 1))
}

// DebugConsole is the port 0xE9 of Bochs, and 0x402 of firmware: bytes go to w, which must not block. Reads give id.
func DebugConsole(w io.Writer, id uint8) bus.Device { return &debugConsole{w: w, id: id} }

type debugConsole struct {
	id uint8

	mu sync.Mutex
	w  io.Writer
}

func (d *debugConsole) Read(_ uint64, p []byte) { putLE(p, 0, uint64(d.id)) }

func (d *debugConsole) Write(_ uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.w.Write(p[:1])
}

// Latch is a register that only remembers: POST codes at port 0x80, written also to wait a microsecond.
func Latch() bus.Device { return &resetPort{reset: func() {}} }
