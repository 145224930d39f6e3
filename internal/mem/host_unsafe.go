package mem

// The invariant of this file: a host address made here lies inside m.host, and m.host is mapped until Close.

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mapMemfd(name string, size uint64, huge Huge) (int, []byte, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	if huge == HugePool {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate(name, flags)
	if err != nil {
		return -1, nil, err
	}
	host, err := mapSealed(fd, size, huge)
	if err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, host, nil
}

func mapSealed(fd int, size uint64, huge Huge) ([]byte, error) {
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	// A tool that is handed the descriptor must not be able to shrink the file under the mapping.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, err
	}
	flags := unix.MAP_SHARED
	if huge != HugePool { // whose pages must be there: where one is missing at its first touch, the process is ended
		flags |= unix.MAP_NORESERVE
	}
	host, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err == nil && huge == HugeAsked {
		unix.Madvise(host, unix.MADV_HUGEPAGE) // a wish
	}
	return host, err
}

// mapFile maps a memfd whose pages come when they are first touched.
func mapFile(fd int, size uint64) ([]byte, error) {
	return unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
}

// mapShared maps all of a memfd that mapSealed made.
func mapShared(fd int) ([]byte, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if seals&unix.F_SEAL_SHRINK == 0 || st.Size <= 0 || st.Size%PageSize != 0 {
		return nil, unix.EINVAL // it could be shrunk under the mapping
	}
	return mapFile(fd, uint64(st.Size))
}

func unmap(fd int, host []byte) error {
	err := unix.Munmap(host)
	if e := unix.Close(fd); err == nil {
		err = e
	}
	return err
}

// Page is the host address of the 4 KiB page that holds a, or nil where there is no RAM.
// Who writes through it asks [Memory.Tracked] first.
func (m *Memory) Page(a Addr) unsafe.Pointer {
	o, ok := m.offset(a&^(PageSize-1), PageSize)
	if !ok {
		return nil
	}
	return unsafe.Pointer(&m.host[o])
}

// Load64 reads 8 bytes at a, a multiple of 8, in one access. It returns 0 where there is no RAM.
func (m *Memory) Load64(a Addr) uint64 {
	o, ok := m.offset(a, 8)
	if !ok || a%8 != 0 {
		return 0
	}
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&m.host[o])))
}

// Load32 reads 4 bytes at a, a multiple of 4, in one access. It returns 0 where there is no RAM.
func (m *Memory) Load32(a Addr) uint32 {
	o, ok := m.offset(a, 4)
	if !ok || a%4 != 0 {
		return 0
	}
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&m.host[o])))
}

// Load16 reads 2 bytes at a, a multiple of 2, in one access (amd64 makes aligned 16-bit loads whole).
// It returns 0 where there is no RAM.
func (m *Memory) Load16(a Addr) uint16 {
	o, ok := m.offset(a, 2)
	if !ok || a%2 != 0 {
		return 0
	}
	w := atomic.LoadUint32((*uint32)(unsafe.Pointer(&m.host[o&^3])))
	return uint16(w >> (o & 2 * 8))
}

// Store64 writes 8 bytes at a, a multiple of 8, in one access. It does nothing where there is no RAM.
func (m *Memory) Store64(a Addr, v uint64) {
	if o, ok := m.offset(a, 8); ok && a%8 == 0 {
		atomic.StoreUint64((*uint64)(unsafe.Pointer(&m.host[o])), v)
		m.Written(a, 8)
	}
}

// Store32 writes 4 bytes at a, a multiple of 4, in one access. It does nothing where there is no RAM.
func (m *Memory) Store32(a Addr, v uint32) {
	if o, ok := m.offset(a, 4); ok && a%4 == 0 {
		atomic.StoreUint32((*uint32)(unsafe.Pointer(&m.host[o])), v)
		m.Written(a, 4)
	}
}

// Store16 writes 2 bytes at a, a multiple of 2, with the other half of its aligned 32-bit word untouched.
// It does nothing where there is no RAM.
func (m *Memory) Store16(a Addr, v uint16) {
	o, ok := m.offset(a, 2)
	if !ok || a%2 != 0 {
		return
	}
	p := (*uint32)(unsafe.Pointer(&m.host[o&^3]))
	sh := o & 2 * 8
	for {
		old := atomic.LoadUint32(p)
		if atomic.CompareAndSwapUint32(p, old, old&^(0xFFFF<<sh)|uint32(v)<<sh) {
			break
		}
	}
	m.Written(a, 2)
}

// CompareAndSwap64 replaces old by new at a, a multiple of 8, if it is there. It returns false where there is no RAM.
func (m *Memory) CompareAndSwap64(a Addr, old, new uint64) bool {
	o, ok := m.offset(a, 8)
	if !ok || a%8 != 0 || !atomic.CompareAndSwapUint64((*uint64)(unsafe.Pointer(&m.host[o])), old, new) {
		return false
	}
	m.Written(a, 8)
	return true
}

// CompareAndSwap32 replaces old by new at a, a multiple of 4, if it is there. It returns false where there is no RAM.
func (m *Memory) CompareAndSwap32(a Addr, old, new uint32) bool {
	o, ok := m.offset(a, 4)
	if !ok || a%4 != 0 || !atomic.CompareAndSwapUint32((*uint32)(unsafe.Pointer(&m.host[o])), old, new) {
		return false
	}
	m.Written(a, 4)
	return true
}
