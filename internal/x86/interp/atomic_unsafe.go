package interp

// The invariant of this file: p points to size bytes of guest RAM inside one page. Host atomics serve at any alignment: amd64's LOCK does.

import (
	"sync/atomic"
	"unsafe"
)

// atomicUpdate replaces the size bytes at p by f of them, in one step for all other processors. f may be called more than once.
func atomicUpdate(p unsafe.Pointer, size uint64, f func(uint64) uint64) {
	switch size {
	case 8:
		q := (*uint64)(p)
		for {
			old := atomic.LoadUint64(q)
			if atomic.CompareAndSwapUint64(q, old, f(old)) {
				return
			}
		}
	case 4:
		q := (*uint32)(p)
		for {
			old := atomic.LoadUint32(q)
			if atomic.CompareAndSwapUint32(q, old, uint32(f(uint64(old)))) {
				return
			}
		}
	default:
		// One and two bytes are changed as part of a 32-bit word inside the same page: aligned, or for a word that would cross it, one byte earlier.
		at := uintptr(p) & 3
		if at == 3 && size == 2 {
			at = 1
		}
		q := (*uint32)(unsafe.Add(p, -int(at)))
		sh := at * 8
		mask := uint32(sizeMask(int(size))) << sh
		for {
			old := atomic.LoadUint32(q)
			v := uint32(f(uint64(old&mask>>sh))) << sh
			if atomic.CompareAndSwapUint32(q, old, old&^mask|v&mask) {
				return
			}
		}
	}
}

// get and put are plain accesses of size bytes at off of e's page.
func (e *tlbEntry) get(off, size uint64) uint64 {
	switch size {
	case 1:
		return uint64(*e.at8(off))
	case 2:
		return uint64(*e.at16(off))
	case 4:
		return uint64(*e.at32(off))
	}
	return *e.at64(off)
}

func (e *tlbEntry) set(off, size, v uint64) {
	switch size {
	case 1:
		*e.at8(off) = uint8(v)
	case 2:
		*e.at16(off) = uint16(v)
	case 4:
		*e.at32(off) = uint32(v)
	default:
		*e.at64(off) = v
	}
}
