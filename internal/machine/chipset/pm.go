package chipset

import (
	"encoding/gob"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/clock"
)

// PMTimerHz is the ACPI PM timer's frequency.
const PMTimerHz = 3579545

// SleepS5 is the value of SLP_TYP for soft-off, which the DSDT's \_S5 names.
const SleepS5 = 5

// Bits of the PM1 registers (ACPI 6.5 tables 4.11 to 4.13).
const (
	pm1PowerButton = 1 << 8
	pm1Enables     = 1<<0 | 1<<5 | 1<<8 | 1<<9 | 1<<10 | 1<<14
	pm1SCIEnable   = 1 << 0
	pm1SleepEnable = 1 << 13
)

// PM is ACPI's fixed hardware: PM timer, PM1a event and control blocks. There is no SMI command: ACPI mode is always on.
// The timer's carry does not set TMR_STS.
type PM struct {
	clk      *clock.Clock
	sci      bus.Line
	powerOff func()

	mu sync.Mutex
	s  pmState
}

type pmState struct{ Status, Enable, Control uint16 }

// NewPM makes it; powerOff is called when the guest enters S5.
func NewPM(clk *clock.Clock, sci bus.Line, powerOff func()) *PM {
	return &PM{clk: clk, sci: sci, powerOff: powerOff, s: pmState{Control: pm1SCIEnable}}
}

// PressPowerButton asks the guest to shut down.
func (m *PM) PressPowerButton() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s.Status |= pm1PowerButton
	m.update()
}

func (m *PM) update() { m.sci.Set(m.s.Status&m.s.Enable != 0) }

// Event is the PM1a event block: status, enable.
func (m *PM) Event() bus.Device { return pmEvent{m} }

// Control is the PM1a control block.
func (m *PM) Control() bus.Device { return pmControl{m} }

// Timer is the PM timer, 32 bits.
func (m *PM) Timer() bus.Device { return pmTimer{m} }

type pmEvent struct{ m *PM }

func (d pmEvent) Read(off uint64, p []byte) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	putLE(p, off, uint64(d.m.s.Enable)<<16|uint64(d.m.s.Status))
}

func (d pmEvent) Write(off uint64, p []byte) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	clear := mergeLE(0, off, p)
	d.m.s.Status &^= uint16(clear)
	d.m.s.Enable = uint16(mergeLE(uint64(d.m.s.Enable)<<16, off, p)>>16) & pm1Enables
	d.m.update()
}

type pmControl struct{ m *PM }

func (d pmControl) Read(off uint64, p []byte) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	putLE(p, off, uint64(d.m.s.Control))
}

func (d pmControl) Write(off uint64, p []byte) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	v := uint16(mergeLE(uint64(d.m.s.Control), off, p))
	d.m.s.Control = v&^pm1SleepEnable | pm1SCIEnable
	if v&pm1SleepEnable != 0 && v>>10&7 == SleepS5 {
		d.m.powerOff()
	}
}

type pmTimer struct{ m *PM }

func (d pmTimer) Read(off uint64, p []byte) {
	putLE(p, off, uint64(uint32(scale(d.m.clk.Now(), PMTimerHz, 1e9))))
}

func (d pmTimer) Write(uint64, []byte) {}

// Save implements bus.Stateful.
func (m *PM) Save(enc *gob.Encoder) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return enc.Encode(m.s)
}

// Load implements bus.Stateful.
func (m *PM) Load(dec *gob.Decoder) error {
	var s pmState
	if err := load(dec, "PM", &s); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s = s
	m.update()
	return nil
}
