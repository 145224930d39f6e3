package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// kernelMap is where a Linux kernel's image is mapped (__START_KERNEL_map), and kernelWindow the room it has there (KERNEL_IMAGE_SIZE
// with CONFIG_RANDOMIZE_BASE).
const (
	kernelMap    = 0xFFFF_FFFF_8000_0000
	kernelWindow = 1 << 30
)

// A relocTable lists the places of a kernel's image that hold addresses of it. Each word is the low half of a place's
// virtual address (arch/x86/tools/relocs.c, emit_relocs).
type relocTable struct {
	abs64   []uint32 // 8 bytes, add the offset
	inverse []uint32 // 4 bytes, subtract it: per-CPU data relative to code; gone with 6.15
	abs32   []uint32 // 4 bytes, add it
}

// errNoRelocs says that the kernel was built without CONFIG_RANDOMIZE_BASE.
var errNoRelocs = errors.New("the kernel has no relocation table")

// parseRelocs reads the table that follows the ELF file in a payload: for each list a zero, then its words. The lists are those
// for 8 bytes, in older kernels the inverse ones, and those for 4 bytes; which it is, the number of zeros tells.
func parseRelocs(p []byte) (*relocTable, error) {
	if len(p) < 8 {
		return nil, errNoRelocs
	}
	if len(p)%4 != 0 {
		return nil, fmt.Errorf("relocation table of %d bytes", len(p))
	}
	words := make([]uint32, len(p)/4)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(p[4*i:])
	}
	if words[0] != 0 {
		return nil, errors.New("relocation table does not begin with a zero")
	}
	var lists [][]uint32
	begin := 1
	for i := 1; i <= len(words); i++ {
		if i == len(words) || words[i] == 0 {
			lists = append(lists, words[begin:i])
			begin = i + 1
		}
		if len(lists) > 3 {
			return nil, errors.New("relocation table of more than three lists")
		}
	}
	switch len(lists) {
	case 2:
		return &relocTable{abs64: lists[0], abs32: lists[1]}, nil
	case 3:
		return &relocTable{abs64: lists[0], inverse: lists[1], abs32: lists[2]}, nil
	}
	return nil, errors.New("relocation table of one list")
}

// apply moves the kernel in image, whose first byte is linked at kernelMap+base, by delta in its own address space
// (arch/x86/boot/compressed/misc.c handle_relocations).
func (t *relocTable) apply(image []byte, base, delta uint64) error {
	le := binary.LittleEndian
	for _, list := range []struct {
		words []uint32
		size  uint64
		fix   func(p []byte)
	}{
		{t.abs64, 8, func(p []byte) { le.PutUint64(p, le.Uint64(p)+delta) }},
		{t.inverse, 4, func(p []byte) { le.PutUint32(p, le.Uint32(p)-uint32(delta)) }},
		{t.abs32, 4, func(p []byte) { le.PutUint32(p, le.Uint32(p)+uint32(delta)) }},
	} {
		for _, w := range list.words {
			off, ok := place(w, base, list.size, uint64(len(image)))
			if !ok {
				return fmt.Errorf("relocation at %#x is outside the kernel", uint64(int64(int32(w))))
			}
			list.fix(image[off : off+list.size])
		}
	}
	return nil
}

// check tells whether the table belongs to the image: every place lies in it, and of the 8-byte places nine in ten hold addresses
// of the kernel. Others hold addresses without kernelMap (page table entries) and sums of an address and something else.
func (t *relocTable) check(image []byte, base uint64) error {
	n := uint64(len(image))
	odd := 0
	for _, w := range t.abs64 {
		off, ok := place(w, base, 8, n)
		if !ok {
			return fmt.Errorf("relocation at %#x is outside the kernel", uint64(int64(int32(w))))
		}
		if v := binary.LittleEndian.Uint64(image[off:]); v-kernelMap >= kernelWindow {
			odd++
		}
	}
	if odd > len(t.abs64)/10 {
		return fmt.Errorf("of %d relocations %d are no kernel addresses", len(t.abs64), odd)
	}
	for _, list := range [][]uint32{t.inverse, t.abs32} {
		for _, w := range list {
			if _, ok := place(w, base, 4, n); !ok {
				return fmt.Errorf("relocation at %#x is outside the kernel", uint64(int64(int32(w))))
			}
		}
	}
	return nil
}

// place turns a table's word into an offset in the image.
func place(w uint32, base, size, n uint64) (uint64, bool) {
	off := uint64(int64(int32(w))) - kernelMap - base
	return off, off < n && size <= n-off
}
