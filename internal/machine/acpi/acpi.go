// Package acpi writes the tables by which the board tells a guest what it is (ACPI specification 6.5).
package acpi

import (
	"encoding/binary"
	"fmt"

	"vitrine.dev/vitrine/internal/machine/chipset"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
)

// Write puts the tables of a machine with so many CPUs into RAM and returns where the RSDP is.
func Write(ram *mem.Memory, cpus int) (rsdp mem.Addr, err error) {
	image := Build(cpus, ram.Size())
	if len(image) > layout.ACPISize {
		return 0, fmt.Errorf("acpi: tables of %d bytes, room for %d", len(image), layout.ACPISize)
	}
	return layout.ACPI, ram.WriteAt(image, layout.ACPI)
}

// Build makes the tables for cpus CPUs and ram bytes of memory, as they lie from [layout.ACPI] on, the RSDP first.
func Build(cpus int, ram uint64) []byte {
	im := &image{b: make([]byte, rsdpSize)}
	facs := im.add(facs(), 64)
	dsdt := im.add(table("DSDT", 2, dsdt(cpus, ram)), 16)
	var entries []byte
	for _, t := range [][]byte{
		fadt(facs, dsdt),
		table("APIC", 5, madt(cpus)),
		table("HPET", 1, hpet()),
		table("MCFG", 1, mcfg()),
	} {
		entries = binary.LittleEndian.AppendUint64(entries, im.add(t, 16))
	}
	im.rsdp(im.add(table("XSDT", 1, entries), 16))
	return im.b
}

// An image is tables one after the other.
type image struct{ b []byte }

// add appends t at a multiple of align and returns its guest-physical address.
func (im *image) add(t []byte, align int) uint64 {
	for len(im.b)%align != 0 {
		im.b = append(im.b, 0)
	}
	a := layout.ACPI + uint64(len(im.b))
	im.b = append(im.b, t...)
	return a
}

const (
	rsdpSize = 36
	oemID    = "VITRIN"
)

// rsdp is the root pointer, revision 2 (5.2.5.3).
func (im *image) rsdp(xsdt uint64) {
	b := im.b[:rsdpSize]
	copy(b, "RSD PTR ")
	copy(b[9:], oemID)
	b[15] = 2
	binary.LittleEndian.PutUint32(b[20:], rsdpSize)
	binary.LittleEndian.PutUint64(b[24:], xsdt)
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
}

// checksum is what makes the sum of b zero.
func checksum(b []byte) (c byte) {
	for _, v := range b {
		c -= v
	}
	return c
}

// table puts a header before body (5.2.6).
func table(signature string, revision byte, body []byte) []byte {
	b := append([]byte(signature), 0, 0, 0, 0, revision, 0)
	b = append(b, oemID+"VITRINE "...)
	b = append(b, 1, 0, 0, 0)
	b = append(b, "VTRN"...)
	b = append(b, 1, 0, 0, 0)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	b[9] = checksum(b)
	return b
}

func facs() []byte {
	b := make([]byte, 64)
	copy(b, "FACS")
	b[4] = 64
	b[32] = 2 // version
	return b
}

// A field is a value at an offset of a table.
type field struct {
	at, size int
	v        uint64
}

// fill makes a table body of n bytes, header included in the offsets but not in the result.
func fill(n int, fields []field) []byte {
	b := make([]byte, n)
	for _, f := range fields {
		copy(b[f.at:f.at+f.size], binary.LittleEndian.AppendUint64(nil, f.v))
	}
	return b[36:]
}

// ioBlock is a generic address in port space (5.2.3.2).
func ioBlock(at int, port uint64, bits, access uint64) []field {
	return []field{{at, 1, 1}, {at + 1, 1, bits}, {at + 3, 1, access}, {at + 4, 8, port}}
}

// fadt is the fixed hardware (table 5.9), revision 6.5.
func fadt(facs, dsdt uint64) []byte {
	const (
		bootLegacy, boot8042, bootNoVGA                     = 1 << 0, 1 << 1, 1 << 2
		wbinvd, c1, noSleepButton, noFixedRTC, timer32, rst = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 8, 1 << 10
	)
	fields := []field{
		{36, 4, facs},
		{40, 4, dsdt},
		{45, 1, 1}, // a desktop
		{46, 2, layout.SCI},
		{56, 4, layout.PM1aEvent},
		{64, 4, layout.PM1aControl},
		{76, 4, layout.PMTimer},
		{88, 1, 4}, {89, 1, 2}, {91, 1, 4}, // their lengths
		{96, 2, 0xFFF}, {98, 2, 0xFFF}, // no C2, no C3
		{108, 1, 0x32}, // the RTC's century
		{109, 2, bootLegacy | boot8042 | bootNoVGA},
		{112, 4, wbinvd | c1 | noSleepButton | noFixedRTC | timer32 | rst},
		{128, 1, 6}, // what is written to the reset register
		{131, 1, 5}, // minor revision
		{140, 8, dsdt},
	}
	fields = append(fields, ioBlock(116, layout.Reset, 8, 1)...)
	fields = append(fields, ioBlock(148, layout.PM1aEvent, 32, 2)...)
	fields = append(fields, ioBlock(172, layout.PM1aControl, 16, 2)...)
	fields = append(fields, ioBlock(208, layout.PMTimer, 32, 3)...)
	return table("FACP", 6, fill(276, fields))
}

// madt lists interrupt controllers (5.2.12).
func madt(cpus int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, layout.LAPIC)
	b = binary.LittleEndian.AppendUint32(b, 1) // there is a PIC pair too
	for i := range cpus {
		b = append(b, 0, 8, byte(i), byte(i), 1, 0, 0, 0)
	}
	b = append(b, 1, 12, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, layout.IOAPIC)
	b = append(b, 0, 0, 0, 0)
	b = append(b, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0)                        // ISA 0 is pin 2
	b = append(b, 2, 10, 0, layout.SCI, layout.SCI, 0, 0, 0, 1|3<<2, 0) // level, active high
	return append(b, 4, 6, 0xFF, 0, 0, 1)                               // NMI at every LINT1
}

// hpet is IA-PC HPET 1.0a, 3.2.4.
func hpet() []byte {
	return fill(56, []field{
		{36, 4, chipset.HPETCapabilities},
		{41, 1, 64},
		{44, 8, layout.HPET},
		{53, 2, 1000}, // a periodic timer of 100 us is the fastest
	})
}

// mcfg is PCI Firmware Specification 3.3, 4.1.2.
func mcfg() []byte {
	return fill(60, []field{
		{44, 8, layout.ECAM},
		{55, 1, layout.ECAMBuses - 1},
	})
}
