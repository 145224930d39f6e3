package ring

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

var le = binary.LittleEndian

// A word is one of the shared memory, read and written whole.
type word = atomic.Uint64

// wordAt is the word at an offset that is a multiple of 8 and within b, which begins at such a one of a page.
func wordAt(b []byte, off int) *word { return (*word)(unsafe.Pointer(&b[off : off+8][0])) }
