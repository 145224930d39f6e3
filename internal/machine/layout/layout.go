// Package layout is the guest-physical map of the board: where RAM, tables and devices are, and the interrupt wires between them.
package layout

import "vitrine.dev/vitrine/internal/mem"

// The first megabyte. RAM lies there from end to end; what the guest may use of it is [E820]'s to say.
const (
	// EBDA begins what a PC's firmware keeps of conventional memory; a kernel uses the RAM below.
	EBDA = 0x9FC00
	// VGA begins the window of a display adapter, absent here.
	VGA = 0xA0000
	// ACPI begins the ACPI tables; the RSDP is their first.
	ACPI = 0xE0000
	// ACPISize is the room for ACPI tables.
	ACPISize = 0x20000
	// HighRAM begins the RAM above the first megabyte.
	HighRAM = 0x100000
)

// The hole below 4 GiB.
const (
	// PCIMMIO begins the window for BARs of PCI devices.
	PCIMMIO = uint64(mem.HoleStart)
	// PCIMMIOSize is the window's size.
	PCIMMIOSize = 0x2000_0000
	// ECAM begins PCI's memory-mapped configuration space, 1 MiB a bus.
	ECAM = 0xE000_0000
	// ECAMBuses is how many buses it covers. With one, Linux does not look for peer bridges on the other 255
	// (pcibios_fixup_peer_bridges scans up to the MCFG's last bus).
	ECAMBuses = 1
	// ECAMSize is its size in bytes.
	ECAMSize = ECAMBuses << 20
	// IOAPIC is the I/O APIC's page.
	IOAPIC = 0xFEC0_0000
	// HPET is the high precision event timer's page.
	HPET = 0xFED0_0000
	// LAPIC is the local APICs' page at reset; each CPU sees its own there.
	LAPIC = 0xFEE0_0000
)

// PCI64 gives the window for 64-bit BARs of a guest with ram bytes: above all RAM, 32 GiB aligned, 32 GiB large.
func PCI64(ram uint64) (base, size uint64) {
	const window = 32 << 30
	end := uint64(mem.HoleEnd)
	if ram > uint64(mem.HoleStart) {
		end += ram - uint64(mem.HoleStart)
	}
	return (end + window - 1) / window * window, window
}

// Ports.
const (
	// PCIIO begins the window for I/O BARs.
	PCIIO = 0xC000
	// PCIIOSize is its size.
	PCIIOSize = 0x4000
	// PM1aEvent is the ACPI PM1a event block, 4 bytes.
	PM1aEvent = 0x600
	// PM1aControl is the ACPI PM1a control block, 2 bytes.
	PM1aControl = 0x604
	// PMTimer is the ACPI PM timer, 4 bytes.
	PMTimer = 0x608
	// Reset is the reset register: 6 written there resets the machine.
	Reset = 0xCF9
	// COM1 and COM2 are the serial ports.
	COM1 = 0x3F8
	COM2 = 0x2F8
	// FWCfg is fw_cfg's selector; data and DMA follow it.
	FWCfg = 0x510
	// DebugExit is the isa-debug-exit port.
	DebugExit = 0xF4
)

// Interrupt wires: ISA numbers below 16, I/O APIC pins from PCIIRQ on.
const (
	// SCI is the ACPI interrupt, level, active high on this board's IOAPIC.
	SCI = 9
	// PCIIRQ is the first I/O APIC pin of PCI's INTx.
	PCIIRQ = 16
	// PCIIRQs is how many there are.
	PCIIRQs = 8
)

// PCIPin is the I/O APIC pin of INTx pin (1 is INTA) of the device in slot.
func PCIPin(slot, pin int) int { return PCIIRQ + (slot+pin-1)%PCIIRQs }

// Types of an [Entry], as the E820 call numbers them (ACPI 6.5 table 15.8).
const (
	RAM      = 1
	Reserved = 2
	ACPIData = 3
	ACPINVS  = 4
)

// An Entry is one range of the memory map that the guest's kernel is given.
type Entry struct {
	Base, Size uint64
	Type       uint32
}

// E820 is the memory map of a guest with ram bytes of RAM, at least 1 MiB, ascending and without overlaps.
func E820(ram uint64) []Entry {
	m := []Entry{
		{0, EBDA, RAM},
		{EBDA, VGA - EBDA, Reserved},
		{ACPI, ACPISize, Reserved},
	}
	for _, r := range mem.Layout(ram) {
		base, end := uint64(r.Base), uint64(r.Base)+r.Size
		if base == 0 {
			base = HighRAM
		}
		if base == uint64(mem.HoleEnd) {
			m = append(m, Entry{ECAM, ECAMSize, Reserved})
		}
		if end > base {
			m = append(m, Entry{base, end - base, RAM})
		}
	}
	if ram <= uint64(mem.HoleStart) {
		m = append(m, Entry{ECAM, ECAMSize, Reserved})
	}
	return m
}
