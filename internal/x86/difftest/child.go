package difftest

import "encoding/binary"

// stubOffset is where the child's code is in its file: behind the headers.
const stubOffset = 64 + 56

// childELF is the smallest program: one page with SYSCALL, INT3.
func childELF() []byte {
	code := []byte{0x0F, 0x05, 0xCC}
	le := binary.LittleEndian
	b := []byte{0x7F, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, stubVA+stubOffset) // entry
	b = le.AppendUint64(b, 64)                // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read, execute
	size := uint64(stubOffset + len(code))
	for _, v := range []uint64{0, stubVA, stubVA, size, size, pageSize} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}
