package acpi

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// What follows writes the ACPI Machine Language (ACPI 6.5 chapter 20): each function gives the bytes of one term.

// name is a NameString of up to 255 segments: `\_SB_.PCI0` from "\\_SB.PCI0".
func name(s string) []byte {
	var b []byte
	if strings.HasPrefix(s, `\`) {
		b, s = append(b, '\\'), s[1:]
	}
	segs := strings.Split(s, ".")
	switch len(segs) {
	case 1:
	case 2:
		b = append(b, 0x2E)
	default:
		b = append(b, 0x2F, byte(len(segs)))
	}
	for _, g := range segs {
		if len(g) == 0 || len(g) > 4 {
			panic("BUG: ACPI name segment " + g)
		}
		b = append(b, (g + "____")[:4]...)
	}
	return b
}

// pack puts op before body with its length between.
func pack(op []byte, body ...[]byte) []byte {
	n := 0
	for _, p := range body {
		n += len(p)
	}
	b := append([]byte{}, op...)
	switch { // PkgLength counts itself (20.2.4)
	case n+1 < 1<<6:
		b = append(b, byte(n+1))
	case n+2 < 1<<12:
		n += 2
		b = append(b, 1<<6|byte(n&15), byte(n>>4))
	case n+3 < 1<<20:
		n += 3
		b = append(b, 2<<6|byte(n&15), byte(n>>4), byte(n>>12))
	default:
		panic(fmt.Sprintf("BUG: AML package of %d bytes", n))
	}
	for _, p := range body {
		b = append(b, p...)
	}
	return b
}

func scope(path string, body ...[]byte) []byte {
	return pack([]byte{0x10}, append([][]byte{name(path)}, body...)...)
}

func device(path string, body ...[]byte) []byte {
	return pack([]byte{0x5B, 0x82}, append([][]byte{name(path)}, body...)...)
}

// def is Name(path, value).
func def(path string, value []byte) []byte {
	return append(append([]byte{0x08}, name(path)...), value...)
}

func integer(v uint64) []byte {
	switch {
	case v <= 1:
		return []byte{byte(v)}
	case v < 1<<8:
		return []byte{0x0A, byte(v)}
	case v < 1<<16:
		return binary.LittleEndian.AppendUint16([]byte{0x0B}, uint16(v))
	case v < 1<<32:
		return binary.LittleEndian.AppendUint32([]byte{0x0C}, uint32(v))
	}
	return binary.LittleEndian.AppendUint64([]byte{0x0E}, v)
}

func str(s string) []byte { return append(append([]byte{0x0D}, s...), 0) }

func list(items ...[]byte) []byte {
	return pack([]byte{0x12}, append([][]byte{{byte(len(items))}}, items...)...)
}

func buffer(p []byte) []byte { return pack([]byte{0x11}, integer(uint64(len(p))), p) }

// eisaID is a compressed device id such as "PNP0A08" (ACPI 6.5 19.3.4).
func eisaID(id string) []byte {
	var hex uint32
	if _, err := fmt.Sscanf(id[3:], "%04X", &hex); err != nil {
		panic("BUG: EISA id " + id)
	}
	v := uint32(id[0]-0x40)<<26 | uint32(id[1]-0x40)<<21 | uint32(id[2]-0x40)<<16 | hex
	return binary.BigEndian.AppendUint32([]byte{0x0C}, v)
}

// resources is the buffer of a _CRS: descriptors and the end tag.
func resources(descriptors ...[]byte) []byte {
	var b []byte
	for _, d := range descriptors {
		b = append(b, d...)
	}
	return buffer(append(b, 0x79, 0))
}

// ioPorts is n ports at base, all 16 bits decoded (6.4.2.5).
func ioPorts(base uint16, n uint8) []byte {
	b := []byte{0x47, 1}
	b = binary.LittleEndian.AppendUint16(b, base)
	b = binary.LittleEndian.AppendUint16(b, base)
	return append(b, 1, n)
}

// irqEdge is an ISA interrupt, edge-triggered, active high (6.4.2.1).
func irqEdge(n int) []byte { return binary.LittleEndian.AppendUint16([]byte{0x22}, 1<<n) }

// fixedMemory is a 32-bit range of memory (6.4.3.4).
func fixedMemory(base, size uint32) []byte {
	b := []byte{0x86, 9, 0, 1}
	b = binary.LittleEndian.AppendUint32(b, base)
	return binary.LittleEndian.AppendUint32(b, size)
}

// Kinds of an address window (6.4.3.5), with their type-specific flags.
var (
	memoryWindow = [2]byte{0, 1} // read and write, not cacheable
	ioWindow     = [2]byte{1, 3} // the entire range
	busWindow    = [2]byte{2, 0}
)

// window is a range that a bridge forwards, of width 16, 32 or 64 bits.
func window(kind [2]byte, width int, base, size uint64) []byte {
	tag := map[int]byte{16: 0x88, 32: 0x87, 64: 0x8A}[width]
	b := binary.LittleEndian.AppendUint16([]byte{tag}, uint16(3+5*width/8))
	b = append(b, kind[0], 0x0C, kind[1]) // a producer, both ends fixed
	for _, v := range []uint64{0, base, base + size - 1, 0, size} {
		b = append(b, binary.LittleEndian.AppendUint64(nil, v)[:width/8]...)
	}
	return b
}
