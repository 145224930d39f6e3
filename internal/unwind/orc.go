// Package unwind follows call chains through a guest's kernel, by the tables that the kernel carries for itself.
package unwind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"vitrine.dev/vitrine/internal/guest"
)

var le = binary.LittleEndian

// ErrNoORC is returned for a kernel without ORC tables (CONFIG_UNWINDER_ORC), or whose structures are not known.
var ErrNoORC = errors.New("unwind: the kernel has no ORC tables")

// Bounds of a table's entries and of a call chain.
const (
	maxEntries = 1 << 22
	maxFrames  = 256
)

// An entry of ORC says how to find the caller's frame (arch/x86/include/asm/orc_types.h): 6 bytes.
type entry struct {
	sp, bp       int16
	spReg, bpReg register
	kind         kind
	signal       bool // the address is the next instruction's, not a return address
}

const entrySize = 6

type register uint8

// Registers that an entry refers to.
const (
	undefined register = iota
	previousSP
	regDX
	regDI
	regBP
	regSP
	regR10
	regR13
	indirectBP
	indirectSP
	regAX
)

// Numbers of the registers: until v7.0, and since.
var (
	oldRegisters = [16]register{undefined, previousSP, regDX, regDI, regBP, regSP, regR10, regR13, indirectBP, indirectSP}
	newRegisters = [16]register{undefined, regAX, regDX, regSP, regBP, regDI, regR10, regR13, previousSP, indirectSP, indirectBP}
)

type kind uint8

const (
	unknown kind = iota
	end
	call
	registers // struct pt_regs
	interrupt // the part of it that the processor saves
)

// Kinds by number: 2 bits up to v6.3, with undefined and the end told otherwise; then 3 (ffb1b4a41016).
var (
	oldKinds = [8]kind{call, registers, interrupt}
	newKinds = [8]kind{unknown, end, call, registers, interrupt}
)

// A format is how a kernel encodes entries.
type format struct {
	registers *[16]register
	kinds     *[8]kind
	kindBits  uint8
	endBit    int // -1: there is none
	signalBit int
}

// A table is sorted by address.
type table struct {
	at  uint64 // of ips: they are relative to their own place
	ips []byte
	raw []byte
	*format
}

func (t *table) ip(i int) uint64 {
	return t.at + uint64(i)*4 + uint64(int64(int32(le.Uint32(t.ips[i*4:]))))
}

// find gives the entry for an address.
func (t *table) find(ip uint64) (entry, bool) {
	n := len(t.ips) / 4
	i := sort.Search(n, func(i int) bool { return t.ip(i) > ip }) - 1
	if i < 0 {
		return entry{}, false
	}
	return t.decode(t.raw[i*entrySize:]), true
}

func (f *format) decode(b []byte) entry {
	v := le.Uint16(b[4:])
	e := entry{sp: int16(le.Uint16(b)), bp: int16(le.Uint16(b[2:])), spReg: f.registers[v&15], bpReg: f.registers[v>>4&15]}
	e.kind = f.kinds[v>>8&(1<<f.kindBits-1)]
	e.signal = f.signalBit >= 0 && v>>f.signalBit&1 != 0
	if f.endBit >= 0 && e.spReg == undefined {
		e.kind = unknown
		if v>>f.endBit&1 != 0 {
			e.kind = end
		}
	}
	return e
}

// formatOf tells a kernel's format: bits by the BTF of struct orc_entry, numbers of registers by which is the commonest, for that is
// the stack pointer.
func formatOf(b *guest.BTF, raw []byte) (*format, error) {
	kindField, err := b.Field("orc_entry", "type")
	if err != nil {
		return nil, ErrNoORC
	}
	f := &format{registers: &oldRegisters, kinds: &newKinds, kindBits: kindField.Bits, endBit: -1, signalBit: -1}
	if kindField.Bits == 2 {
		f.kinds = &oldKinds
	} else if kindField.Bits != 3 {
		return nil, fmt.Errorf("unwind: kinds of ORC entries have %d bits", kindField.Bits)
	}
	bit := func(name string) int {
		x, err := b.Field("orc_entry", name)
		if err != nil || x.Bits == 0 {
			return -1
		}
		return int(x.Off*8) + int(x.Bit) - 4*8
	}
	f.endBit, f.signalBit = bit("end"), bit("signal")
	if f.endBit > 15 || f.signalBit > 15 {
		return nil, errors.New("unwind: the kernel's ORC entries are not believed")
	}
	var count [16]int
	for i := 0; i+entrySize <= len(raw); i += entrySize {
		count[raw[i+4]&15]++
	}
	const oldSP, newSP = 5, 3
	if count[newSP] > count[oldSP] {
		f.registers = &newRegisters
	}
	return f, nil
}

// read takes a table of n entries.
func read(k *guest.Kernel, ips, raw uint64, n uint64) (*table, error) {
	if n == 0 || n > maxEntries {
		return nil, fmt.Errorf("unwind: a table of %d entries is not believed", n)
	}
	t := &table{at: ips, ips: make([]byte, n*4), raw: make([]byte, n*entrySize)}
	if err := k.ReadAt(t.ips, ips); err != nil {
		return nil, err
	}
	return t, k.ReadAt(t.raw, raw)
}
