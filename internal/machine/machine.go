// Package machine is the board: it wires CPUs, interrupt controllers, chipset and PCI together, and runs them.
package machine

import (
	"errors"
	"fmt"
	"io"
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine/acpi"
	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/chipset"
	"vitrine.dev/vitrine/internal/machine/clock"
	"vitrine.dev/vitrine/internal/machine/irq"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/machine/pci"
	"vitrine.dev/vitrine/internal/mem"
)

// MaxCPUs is how many CPUs a machine may have: APIC ids fit 8 bits, 255 is broadcast.
const MaxCPUs = 254

// A Serial is one serial port's other end. Either may be nil.
type Serial struct {
	In  io.Reader // read by a goroutine that ends after In does, or at the byte after Close
	Out io.Writer // written by a goroutine; slow is fine, the guest's transmitter is busy then
}

// A Config says what machine to build.
type Config struct {
	RAM     *mem.Memory // at least 1 MiB; stays the caller's
	CPUs    int
	Backend hv.Backend
	// TSCHz is the frequency of the CPUs' time stamp counters.
	TSCHz uint64
	// TSC reads a CPU's counter, from any goroutine. Nil: the VCPU's method TSC() uint64 where it has one, else the machine's clock.
	TSC    func(cpu int) uint64
	Serial [2]Serial // COM1 and COM2
	// Debug takes the bytes written to ports 0xE9 and 0x402; it must not block. Nil: they are dropped.
	Debug     io.Writer
	DebugExit bool // the isa-debug-exit port is there
	// OwnChips gives the board its own interrupt controllers also where the backend offers some: a saved state goes to another backend only with them.
	OwnChips bool
	Files    map[string][]byte // for fw_cfg
	Wall     func() time.Time  // the RTC's; nil is the host's
	Clock    *clock.Clock      // nil: a real one
}

// A Machine is one guest's hardware. New, Attach, then [Machine.Run]; Close at last.
type Machine struct {
	ram   *mem.Memory
	clk   *clock.Clock
	vm    hv.VM
	cpus  []*cpu
	ports bus.Bus
	mmio  bus.Bus
	chips chips
	own   *irq.Chips // chips, where they are the board's own; else nil
	pci   *pci.Bus
	pm    *chipset.PM
	uarts [2]*chipset.UART
	// tickers may owe ticks to a CPU that has just taken an interrupt.
	tickers []ticker
	serial  [2]Serial
	// devices is all that has state, in the order of Save: interrupt controllers first, then who drives them.
	devices []bus.Stateful
	rsdp    mem.Addr

	run control
}

// New builds a machine that does not run yet. Its ACPI tables are in RAM already.
func New(cfg Config) (*Machine, error) {
	switch {
	case cfg.CPUs < 1 || cfg.CPUs > MaxCPUs:
		return nil, fmt.Errorf("machine: %d CPUs, can have 1 to %d", cfg.CPUs, MaxCPUs)
	case cfg.RAM.Size() < layout.HighRAM:
		return nil, fmt.Errorf("machine: %d KiB of memory, need 1 MiB", cfg.RAM.Size()>>10)
	case cfg.TSCHz == 0:
		return nil, errors.New("machine: the TSC's frequency is not known")
	}
	m := &Machine{ram: cfg.RAM, clk: cfg.Clock}
	m.run.init()
	if m.clk == nil {
		var err error
		if m.clk, err = clock.New(); err != nil {
			return nil, err
		}
	}
	if err := m.build(cfg); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) build(cfg Config) error {
	var err error
	if m.vm, err = cfg.Backend.NewVM(m.ram); err != nil {
		return err
	}
	for i := range cfg.CPUs {
		m.cpus = append(m.cpus, newCPU(m, i))
	}
	if err := m.buildChips(cfg); err != nil {
		return err
	}
	for i, c := range m.cpus {
		var io hv.IO = remoteIO{boardIO{m}}
		if m.own != nil {
			io = &cpuIO{boardIO{m}, m.own.LAPIC[i]}
		}
		if c.vcpu, err = m.vm.NewVCPU(i, io); err != nil {
			return fmt.Errorf("machine: CPU %d: %w", i, err)
		}
	}
	var lines [layout.PCIIRQs]bus.Line
	for i := range lines {
		lines[i] = m.chips.GSI(layout.PCIIRQ + i)
	}
	m.pci = pci.New(&m.mmio, lines)
	if d, ok := m.vm.(hv.Doorbeller); ok {
		m.pci.UseDoorbells(d)
	}
	m.devices = append(m.devices, m.chips)
	if err := m.buildChipset(cfg); err != nil {
		return err
	}
	m.devices = append(m.devices, m.pci)
	if err := errors.Join(m.pci.MapPorts(&m.ports), m.pci.MapECAM()); err != nil {
		return err
	}
	m.rsdp, err = acpi.Write(m.ram, cfg.CPUs)
	return err
}

// A ticker is a periodic timer.
type ticker interface{ CatchUp() }

// chips is interrupt controllers.
type chips interface {
	bus.Stateful
	bus.MSI
	ISA(n int) bus.Line
	GSI(n int) bus.Line
}

// buildChips makes the interrupt controllers: the backend's where it has some.
func (m *Machine) buildChips(cfg Config) error {
	if chip, ok := m.vm.(hv.IRQChip); ok && !cfg.OwnChips {
		if err := chip.CreateIRQChip(); err != nil {
			return fmt.Errorf("machine: interrupt controllers: %w", err)
		}
		for _, c := range m.cpus {
			c.waiting = false // the backend knows
		}
		m.chips = irq.NewRemote(chip)
		return nil
	}
	irqs := irq.Config{Clock: m.clk, TSCHz: cfg.TSCHz, TSC: m.tsc(cfg)}
	for _, c := range m.cpus {
		irqs.CPUs = append(irqs.CPUs, c)
	}
	m.own = irq.New(irqs)
	m.chips = m.own
	return nil
}

// tsc is how a CPU's time stamp counter is read for its deadline timer.
func (m *Machine) tsc(cfg Config) func(cpu int) uint64 {
	if cfg.TSC != nil {
		return cfg.TSC
	}
	return func(cpu int) uint64 {
		if v, ok := m.cpus[cpu].vcpu.(interface{ TSC() uint64 }); ok {
			return v.TSC()
		}
		return uint64(float64(m.clk.Now()) * (float64(cfg.TSCHz) / 1e9))
	}
}

// PCI is the PCI bus, to look at; devices come by Attach.
func (m *Machine) PCI() *pci.Bus { return m.pci }

// MSI is where PCI devices send their message-signalled interrupts.
func (m *Machine) MSI() bus.MSI { return m.chips }

// RAM is the guest's memory.
func (m *Machine) RAM() *mem.Memory { return m.ram }

// RSDP is where the ACPI tables' root pointer is.
func (m *Machine) RSDP() mem.Addr { return m.rsdp }

// Clock is the machine's time.
func (m *Machine) Clock() *clock.Clock { return m.clk }

// NumCPU is the number of CPUs.
func (m *Machine) NumCPU() int { return len(m.cpus) }

// Attach puts a PCI function into the next free slot, before Run. The machine closes it.
func (m *Machine) Attach(f pci.Function) error {
	_, err := m.pci.Attach(f)
	return err
}

// PressPowerButton asks the guest to shut down.
func (m *Machine) PressPowerButton() { m.pm.PressPowerButton() }

// Close ends all devices and frees what the machine holds, but not the RAM. Run has returned, or was not called.
// Serial output that was written by the guest is with its writer afterwards, unless that is stuck.
func (m *Machine) Close() error {
	var errs []error
	if m.pci != nil {
		errs = append(errs, m.pci.Close())
	}
	for _, u := range m.uarts {
		if u != nil {
			u.Close()
		}
	}
	m.clk.Close()
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	return errors.Join(errs...)
}
