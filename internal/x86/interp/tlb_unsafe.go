package interp

// The invariant of this file: e.page points to a page of guest RAM that is mapped for the life of the VM, and off came from a hit,
// so [off, off+size) is inside of it.

import "unsafe"

func (e *tlbEntry) at8(off uint64) *uint8   { return (*uint8)(unsafe.Add(e.page, uintptr(off))) }
func (e *tlbEntry) at16(off uint64) *uint16 { return (*uint16)(unsafe.Add(e.page, uintptr(off))) }
func (e *tlbEntry) at32(off uint64) *uint32 { return (*uint32)(unsafe.Add(e.page, uintptr(off))) }
func (e *tlbEntry) at64(off uint64) *uint64 { return (*uint64)(unsafe.Add(e.page, uintptr(off))) }

// bytes is n bytes at off.
func (e *tlbEntry) bytes(off, n uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(e.page, uintptr(off))), n)
}
