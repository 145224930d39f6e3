package initramfs

import (
	"encoding/binary"
	"errors"
	"math"
)

var errNotELF = errors.New("initramfs: not an x86-64 ELF executable")

// StripELF gives an x86-64 executable without what is not loaded to run it: section headers, symbols, debugging information.
// Only what lies behind the last loaded byte goes, so all that stays is where it was. The result is a copy.
func StripELF(exe []byte) ([]byte, error) {
	const machineX86_64, load, headerSize, phentSize = 62, 1, 64, 56
	le := binary.LittleEndian
	if len(exe) < headerSize || string(exe[:6]) != "\x7fELF\x02\x01" || le.Uint16(exe[18:]) != machineX86_64 {
		return nil, errNotELF
	}
	phoff, phnum := le.Uint64(exe[32:]), uint64(le.Uint16(exe[56:]))
	n := uint64(len(exe))
	if le.Uint16(exe[54:]) != phentSize || phoff > n || phnum*phentSize > n-phoff {
		return nil, errNotELF
	}
	end := max(headerSize, phoff+phnum*phentSize)
	for i := range phnum {
		p := exe[phoff+i*phentSize:]
		off, size := le.Uint64(p[8:]), le.Uint64(p[32:])
		if le.Uint32(p) != load {
			continue
		}
		if off > math.MaxUint64-size || off+size > n {
			return nil, errors.New("initramfs: the executable is truncated")
		}
		end = max(end, off+size)
	}
	out := append([]byte(nil), exe[:end]...)
	clear(out[40:48]) // e_shoff
	clear(out[58:64]) // e_shentsize, e_shnum, e_shstrndx
	return out, nil
}
