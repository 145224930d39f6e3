package acpi

import (
	"fmt"

	"vitrine.dev/vitrine/internal/machine/chipset"
	"vitrine.dev/vitrine/internal/machine/layout"
)

// dsdt says which devices there are. It has no methods: nothing changes.
func dsdt(cpus int, ram uint64) []byte {
	sb := [][]byte{pciRoot(ram), motherboard()}
	sb = append(sb, legacy()...)
	for i := range cpus {
		sb = append(sb, device(fmt.Sprintf("C%03X", i), def("_HID", str("ACPI0007")), def("_UID", integer(uint64(i)))))
	}
	s5 := list(integer(chipset.SleepS5), integer(chipset.SleepS5), integer(0), integer(0))
	return append(def(`\_S5`, s5), scope(`\_SB`, sb...)...)
}

func pciRoot(ram uint64) []byte {
	high, highSize := layout.PCI64(ram)
	// Each slot's four pins, all functions (6.2.13). No source: the last number is the I/O APIC's pin.
	var routes [][]byte
	for slot := range 32 {
		for pin := range 4 {
			routes = append(routes, list(integer(uint64(slot)<<16|0xFFFF), integer(uint64(pin)), integer(0),
				integer(uint64(layout.PCIPin(slot, pin+1)))))
		}
	}
	return device("PCI0",
		def("_HID", eisaID("PNP0A08")),
		def("_CID", eisaID("PNP0A03")),
		def("_UID", integer(0)),
		def("_SEG", integer(0)),
		def("_BBN", integer(0)),
		def("_CRS", resources(
			window(busWindow, 16, 0, layout.ECAMBuses),
			ioPorts(0xCF8, 8),
			window(ioWindow, 16, layout.PCIIO, layout.PCIIOSize),
			window(memoryWindow, 32, layout.PCIMMIO, layout.PCIMMIOSize),
			window(memoryWindow, 64, high, highSize),
		)),
		def("_PRT", list(routes...)),
	)
}

// motherboard reserves what belongs to no device: Linux uses the ECAM only where it finds it here or in the E820 map.
func motherboard() []byte {
	return device("MBRD",
		def("_HID", eisaID("PNP0C02")),
		def("_UID", integer(0)),
		def("_CRS", resources(
			fixedMemory(layout.ECAM, layout.ECAMSize),
			ioPorts(layout.PM1aEvent, 0x10),
			ioPorts(0x4D0, 2),
			ioPorts(0x80, 1),
			ioPorts(0x92, 1),
		)),
	)
}

// legacy is the ISA devices.
func legacy() [][]byte {
	com := func(path string, uid, port, irq int) []byte {
		return device(path, def("_HID", eisaID("PNP0501")), def("_UID", integer(uint64(uid))),
			def("_CRS", resources(ioPorts(uint16(port), 8), irqEdge(irq))))
	}
	return [][]byte{
		device("RTC", def("_HID", eisaID("PNP0B00")), def("_CRS", resources(ioPorts(0x70, 2), irqEdge(8)))),
		device("KBD", def("_HID", eisaID("PNP0303")), def("_CRS", resources(ioPorts(0x60, 1), ioPorts(0x64, 1), irqEdge(1)))),
		com("COM1", 1, layout.COM1, 4),
		com("COM2", 2, layout.COM2, 3),
		device("HPET", def("_HID", eisaID("PNP0103")), def("_UID", integer(0)),
			def("_CRS", resources(fixedMemory(layout.HPET, chipset.HPETSize)))),
		device("FWCF", def("_HID", str("QEMU0002")), def("_STA", integer(0x0B)), def("_CRS", resources(ioPorts(layout.FWCfg, 12)))),
	}
}
