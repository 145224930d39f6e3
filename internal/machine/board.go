package machine

import (
	"io"
	"time"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/chipset"
	"vitrine.dev/vitrine/internal/machine/irq"
	"vitrine.dev/vitrine/internal/machine/layout"
)

// buildChipset makes the chipset and says where each of its devices answers.
func (m *Machine) buildChipset(cfg Config) error {
	powerOff := func() { m.run.end(Exit{Reason: PowerOff}) }
	reset := func() { m.run.end(Exit{Reason: Reset}) }
	wall := cfg.Wall
	if wall == nil {
		wall = time.Now
	}
	debug := cfg.Debug
	if debug == nil {
		debug = io.Discard
	}
	isa := m.chips.ISA

	hpet := chipset.NewHPET(m.clk, m.chips.GSI, isa(0), isa(8))
	pit := chipset.NewPIT(m.clk, hpet.Gate(isa(0)))
	rtc := chipset.NewRTC(m.clk, wall, hpet.Gate(isa(8)), m.ram.Size(), cfg.CPUs)
	kbd := chipset.NewI8042(isa(1), reset)
	fw, err := chipset.NewFWCfg(m.ram, cfg.CPUs, cfg.Files)
	if err != nil {
		return err
	}
	m.pm = chipset.NewPM(m.clk, isa(layout.SCI), powerOff)
	m.uarts = [2]*chipset.UART{
		chipset.NewUART(isa(4), cfg.Serial[0].Out),
		chipset.NewUART(isa(3), cfg.Serial[1].Out),
	}
	m.tickers = []ticker{hpet, pit}
	m.devices = append(m.devices, hpet, pit, rtc, kbd, fw, m.pm, m.uarts[0], m.uarts[1])

	type place struct {
		on         *bus.Bus
		base, size uint64
		dev        bus.Device
	}
	board := []place{
		{&m.ports, 0x40, 4, pit},
		{&m.ports, 0x60, 1, kbd.Data()},
		{&m.ports, 0x61, 1, pit.Port61()},
		{&m.ports, 0x64, 1, kbd.Control()},
		{&m.ports, 0x70, 2, rtc},
		{&m.ports, 0x80, 1, chipset.Latch()},
		{&m.ports, 0x92, 1, chipset.Port92(reset)},
		{&m.ports, 0xE9, 1, chipset.DebugConsole(debug, 0xE9)},
		{&m.ports, 0x402, 1, chipset.DebugConsole(debug, 0xE9)},
		{&m.ports, layout.COM2, 8, m.uarts[1]},
		{&m.ports, layout.COM1, 8, m.uarts[0]},
		{&m.ports, layout.FWCfg, 2, fw.Ports()},
		{&m.ports, layout.FWCfg + 4, 8, fw.DMA()},
		{&m.ports, layout.PM1aEvent, 4, m.pm.Event()},
		{&m.ports, layout.PM1aControl, 2, m.pm.Control()},
		{&m.ports, layout.PMTimer, 4, m.pm.Timer()},
		{&m.ports, layout.Reset, 1, chipset.ResetRegister(reset)},
		{&m.mmio, layout.HPET, chipset.HPETSize, hpet},
	}
	if c := m.own; c != nil {
		board = append(board,
			place{&m.ports, irq.PICMaster, 2, c.PIC.Ports(0)},
			place{&m.ports, irq.PICSlave, 2, c.PIC.Ports(1)},
			place{&m.ports, irq.PICELCR, 2, c.PIC.Ports(2)},
			place{&m.mmio, layout.IOAPIC, 0x1000, c.IOAPIC})
	}
	for _, d := range board {
		if err := d.on.Map(d.base, d.size, d.dev); err != nil {
			return err
		}
	}
	if cfg.DebugExit {
		exit := func(status int) { m.run.end(Exit{Reason: DebugExit, Status: status}) }
		if err := m.ports.Map(layout.DebugExit, 4, chipset.DebugExit(exit)); err != nil {
			return err
		}
	}
	m.serial = cfg.Serial
	return nil
}

// feed starts to take the serial ports' input.
func (m *Machine) feed() {
	for i, s := range m.serial {
		if s.In != nil {
			go m.uarts[i].Feed(s.In)
		}
	}
}
