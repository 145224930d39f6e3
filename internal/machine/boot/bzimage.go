package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/printable"
)

// Offsets in a bzImage's first sectors (boot.rst, "The Real-Mode Kernel Header"); the zero page has them at the same places.
const (
	hdrStart       = 0x1F1
	hdrBootFlag    = 0x1FE
	hdrJump        = 0x201 // the second byte of a jump over the header: where the header ends, from 0x202
	hdrMagic       = 0x202
	hdrVersion     = 0x206
	hdrVersionText = 0x20E
	hdrLoader      = 0x210
	hdrLoadFlags   = 0x211
	hdrCode32      = 0x214
	hdrRamdisk     = 0x218
	hdrRamdiskSize = 0x21C
	hdrCmdline     = 0x228
	hdrInitrdMax   = 0x22C
	hdrAlign       = 0x230
	hdrRelocatable = 0x234
	hdrXLoadFlags  = 0x236
	hdrCmdlineSize = 0x238
	hdrSubarch     = 0x23C
	hdrPayload     = 0x248
	hdrPayloadSize = 0x24C
	hdrSetupData   = 0x250
	hdrPreferred   = 0x258
	hdrInitSize    = 0x260
	hdrEnd         = 0x290 // the zero page has other things from here on
)

// Bits of the header's flags.
const (
	loadKASLR = 1 << 1 // loadflags KASLR_FLAG: tells the kernel proper that the loader randomised it

	xlfKernel64 = 1 << 0 // xloadflags XLF_KERNEL_64: there is a 64-bit entry point at +0x200
	xlfAbove4G  = 1 << 1 // XLF_CAN_BE_LOADED_ABOVE_4G
	xlf5Level   = 3 << 5 // XLF_5LEVEL, XLF_5LEVEL_ENABLED (v4.20)
)

// setup is a bzImage's header, checked.
type setup struct {
	raw         []byte // the image's first hdrEnd bytes, zeros after the header's end
	version     string
	protected   int64 // the protected-mode part's offset in the file
	payload     int64 // the payload's offset in the file
	payloadSize int64 // 0: none
	cmdlineMax  int   // bytes, without the terminating zero
	initrdMax   uint64
	align       uint64
	preferred   uint64
	initSize    uint64
	relocatable bool
	above4G     bool
	fiveLevels  bool
}

func isBzImage(head []byte) bool {
	return len(head) >= hdrVersion+2 && string(head[hdrMagic:hdrMagic+4]) == "HdrS"
}

// parseSetup checks the header of an image of size bytes that begins with head.
func parseSetup(head []byte, size int64) (*setup, error) {
	if len(head) < hdrEnd {
		return nil, errTruncated
	}
	le := binary.LittleEndian
	end := min(hdrMagic+int(head[hdrJump]), hdrEnd)
	raw := make([]byte, hdrEnd)
	copy(raw[hdrStart:end], head[hdrStart:end])

	version := le.Uint16(raw[hdrVersion:])
	if version < 0x20C {
		// XLF_KERNEL_64 came with 2.12 (Linux 3.8); what is older has no 64-bit entry that it tells of.
		return nil, fmt.Errorf("boot protocol %d.%02d is too old: 2.12 (Linux 3.8) or later with a 64-bit kernel is needed", version>>8, version&0xFF)
	}
	x := le.Uint16(raw[hdrXLoadFlags:])
	if x&xlfKernel64 == 0 {
		return nil, errors.New("a 32-bit kernel; Vitrine boots 64-bit Linux kernels only")
	}
	sectors := int64(raw[hdrStart])
	if sectors == 0 {
		sectors = 4
	}
	s := &setup{
		raw:         raw,
		version:     versionText(head),
		protected:   (sectors + 1) * 512,
		cmdlineMax:  int(min(le.Uint32(raw[hdrCmdlineSize:]), uint32(seedAddr-cmdlineAddr)-1)),
		initrdMax:   uint64(le.Uint32(raw[hdrInitrdMax:])),
		align:       uint64(le.Uint32(raw[hdrAlign:])),
		preferred:   le.Uint64(raw[hdrPreferred:]),
		initSize:    uint64(le.Uint32(raw[hdrInitSize:])),
		relocatable: raw[hdrRelocatable] != 0,
		above4G:     x&xlfAbove4G != 0,
		fiveLevels:  x&xlf5Level == xlf5Level,
	}
	if s.align < kernelAlign || s.align > 1<<30 || s.align&(s.align-1) != 0 {
		s.align = kernelAlign
	}
	if s.protected >= size {
		return nil, errTruncated
	}
	off, n := int64(le.Uint32(raw[hdrPayload:])), int64(le.Uint32(raw[hdrPayloadSize:]))
	if n > 0 {
		s.payload, s.payloadSize = s.protected+off, n
		if s.payload+n > size {
			return nil, fmt.Errorf("%w: %d bytes of at least %d", errTruncated, size, s.payload+n)
		}
	}
	return s, nil
}

// versionText is the zero-terminated string that the header points to.
func versionText(head []byte) string {
	off := int(binary.LittleEndian.Uint16(head[hdrVersionText:]))
	if off == 0 || off+0x200 >= len(head) {
		return ""
	}
	text := head[off+0x200:]
	text = text[:min(len(text), 256)]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	return printable.Text(string(text))
}
