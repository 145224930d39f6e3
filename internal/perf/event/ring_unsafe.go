package event

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring is the buffer that the kernel writes records to: a page of struct perf_event_mmap_page, and 2^n of data (include/uapi/linux/perf_event.h).
//
// The mapping lives as long as the ring, and is not touched after close; head and tail are words of its first page.
type ring struct {
	fd         int // not the ring's own
	mapping    []byte
	data       []byte
	head, tail *uint64
}

// Places of data_head and data_tail in the page.
const (
	headAt = 0x400
	tailAt = 0x408
)

func newRing(fd, pages int) (*ring, error) {
	page := os.Getpagesize()
	m, err := unix.Mmap(fd, 0, (1+pages)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("a buffer of %d pages: %w", pages, err)
	}
	return &ring{
		fd: fd, mapping: m, data: m[page:],
		head: (*uint64)(unsafe.Pointer(&m[headAt])),
		tail: (*uint64)(unsafe.Pointer(&m[tailAt])),
	}, nil
}

// read gives each record in the ring, and makes room.
func (r *ring) read(scratch *[]byte, do func(raw []byte) error) error {
	head, tail := atomic.LoadUint64(r.head), *r.tail // only this side writes tail
	for tail != head {
		raw := r.at(scratch, tail, 8)
		n := uint64(binary.LittleEndian.Uint16(raw[6:]))
		if n < 8 || n > head-tail {
			atomic.StoreUint64(r.tail, head)
			return fmt.Errorf("perf's buffer is broken: a record of %d bytes, %d are there", n, head-tail)
		}
		if err := do(r.at(scratch, tail, n)); err != nil {
			return err
		}
		tail += n
		atomic.StoreUint64(r.tail, tail)
	}
	return nil
}

// at gives n bytes from a position; those that go round the end are put together in scratch.
func (r *ring) at(scratch *[]byte, pos, n uint64) []byte {
	i := pos & uint64(len(r.data)-1)
	if i+n <= uint64(len(r.data)) {
		return r.data[i : i+n]
	}
	*scratch = append((*scratch)[:0], r.data[i:]...)
	*scratch = append(*scratch, r.data[:n-(uint64(len(r.data))-i)]...)
	return *scratch
}

func (r *ring) close() error { return unix.Munmap(r.mapping) }
