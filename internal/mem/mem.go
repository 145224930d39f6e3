// Package mem is a guest's physical memory: one memfd that the processes of its owner can share.
//
// Writers are seen. Code that a CPU has decoded and pages whose writes are logged are known here, so a device,
// a loader and a CPU all write through this package (or, as a CPU does for speed, ask [Memory.Tracked] when they cache a host
// address for writing, and drop what they cached when [Watcher.Retrack] says so).
package mem

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// Addr is a guest-physical address in bytes.
type Addr uint64

// PageSize is the granule of tracking, and x86's smallest page.
const PageSize = 4096

// HoleStart and HoleEnd bound the range below 4 GiB where devices live; RAM that does not fit below goes above it.
const (
	HoleStart Addr = 0xC0000000
	HoleEnd   Addr = 0x1_00000000
)

// ErrNotRAM is returned for a range that is not wholly inside one region of RAM.
var ErrNotRAM = errors.New("mem: address is not RAM")

// A Reader reads guest-physical memory: a live guest, another VMM's guest and a crash dump alike.
// ReadPhys returns how many bytes were read before the first that could not be.
type Reader interface {
	ReadPhys(p []byte, a Addr) (int, error)
}

// A Region is one run of RAM: guest-physical [Base, Base+Size) is the file's [Offset, Offset+Size).
type Region struct {
	Base   Addr   `json:"base"`
	Size   uint64 `json:"size"`
	Offset int64  `json:"offset"`
}

// A Watcher learns of writes to tracked pages. It is called on the writer's goroutine, after the bytes are written,
// with no lock of this package held.
type Watcher interface {
	// CodeWritten says that bytes [a, a+n) of a page marked with MarkCode changed. n never crosses a page.
	CodeWritten(a Addr, n int)
	// Retrack says that the page at a became tracked: cached write permission for it must go before Retrack returns.
	Retrack(a Addr)
}

// Memory is the RAM of one guest. All methods may be called from any goroutine.
type Memory struct {
	fd      int
	host    []byte // the whole file, mapped
	regions []Region
	low     uint64 // bytes below the hole; the rest starts at HoleEnd
	huge    Huge

	code     []atomic.Uint64 // a bit a page of the file: a CPU holds decoded code of it
	dirty    []atomic.Uint64 // a bit a page of the file: written since the last log
	logging  atomic.Bool
	watchers atomic.Pointer[[]Watcher]
}

// Layout gives the regions of a guest with size bytes of RAM.
func Layout(size uint64) []Region {
	if size <= uint64(HoleStart) {
		return []Region{{0, size, 0}}
	}
	return []Region{
		{0, uint64(HoleStart), 0},
		{HoleEnd, size - uint64(HoleStart), int64(HoleStart)},
	}
}

// New makes size bytes of zeroed RAM, a multiple of PageSize. Pages take host memory when first touched, huge ones where the host has shared memory
// use them.
func New(size uint64) (*Memory, error) {
	if size == 0 || size%PageSize != 0 {
		return nil, fmt.Errorf("mem: size %d is not a positive multiple of %d", size, PageSize)
	}
	return newMemory(size, shmemHuge())
}

// NewPooled is New with huge pages of the host's pool (hugetlbfs), all of them taken at once. size is a multiple of HugeSize.
func NewPooled(size uint64) (*Memory, error) {
	if size == 0 || size%HugeSize != 0 {
		return nil, fmt.Errorf("mem: size %d is not a positive multiple of %d", size, HugeSize)
	}
	return newMemory(size, HugePool)
}

func newMemory(size uint64, huge Huge) (*Memory, error) {
	fd, host, err := mapMemfd("vitrine-ram", size, huge)
	if err != nil {
		return nil, fmt.Errorf("mem: %d MiB of guest memory: %w", size>>20, err)
	}
	return memory(fd, host, huge), nil
}

// Open maps the RAM that another process made, by its memfd, which the Memory takes over. Writes are seen by the watchers of the Memory that they
// go through: who writes here tells the other process, which calls Written.
func Open(fd int) (*Memory, error) {
	host, err := mapShared(fd)
	if err != nil {
		return nil, fmt.Errorf("mem: another process's guest memory: %w", err)
	}
	return memory(fd, host, shmemHuge()), nil
}

func memory(fd int, host []byte, huge Huge) *Memory {
	size := uint64(len(host))
	words := (size/PageSize + 63) / 64
	return &Memory{
		fd: fd, host: host, regions: Layout(size), low: min(size, uint64(HoleStart)), huge: huge,
		code: make([]atomic.Uint64, words), dirty: make([]atomic.Uint64, words),
	}
}

// Close unmaps the RAM. No accessor may be running or be called afterwards.
func (m *Memory) Close() error { return unmap(m.fd, m.host) }

// FD is the memfd; it stays owned by m.
func (m *Memory) FD() int { return m.fd }

// Size is the RAM in bytes, both regions together.
func (m *Memory) Size() uint64 { return uint64(len(m.host)) }

// Regions lists the RAM in ascending order; the caller must not change it.
func (m *Memory) Regions() []Region { return m.regions }

// offset turns [a, a+n) into a file offset, or says that it is not wholly in one region.
func (m *Memory) offset(a Addr, n uint64) (uint64, bool) {
	if uint64(a) < m.low {
		return uint64(a), n <= m.low-uint64(a)
	}
	high := uint64(len(m.host)) - m.low
	if a >= HoleEnd && uint64(a-HoleEnd) < high {
		o := uint64(a - HoleEnd)
		return m.low + o, n <= high-o
	}
	return 0, false
}

// Contains tells whether [a, a+n) is wholly inside one region of RAM.
func (m *Memory) Contains(a Addr, n uint64) bool {
	_, ok := m.offset(a, n)
	return ok
}

// Slice gives the host's view of [a, a+n), for reading: what is written through it is not seen.
// The guest may change the bytes at any time.
func (m *Memory) Slice(a Addr, n uint64) ([]byte, error) {
	o, ok := m.offset(a, n)
	if !ok {
		return nil, fmt.Errorf("%w: [%#x, +%#x)", ErrNotRAM, uint64(a), n)
	}
	return m.host[o : o+n : o+n], nil
}

// ReadAt fills p from a.
func (m *Memory) ReadAt(p []byte, a Addr) error {
	s, err := m.Slice(a, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(p, s)
	return nil
}

// WriteAt writes p at a.
func (m *Memory) WriteAt(p []byte, a Addr) error {
	s, err := m.Slice(a, uint64(len(p)))
	if err != nil {
		return err
	}
	copy(s, p)
	m.Written(a, len(p))
	return nil
}

// Zero clears [a, a+n).
func (m *Memory) Zero(a Addr, n uint64) error {
	s, err := m.Slice(a, n)
	if err != nil {
		return err
	}
	clear(s)
	m.Written(a, int(n))
	return nil
}

// WriteFunc lets fn fill the host's view of [a, a+n) in place (a read(2) into guest memory, say) and then reports the write.
func (m *Memory) WriteFunc(a Addr, n uint64, fn func([]byte) error) error {
	s, err := m.Slice(a, n)
	if err != nil {
		return err
	}
	err = fn(s)
	m.Written(a, int(n))
	return err
}

// ReadPhys implements [Reader].
func (m *Memory) ReadPhys(p []byte, a Addr) (int, error) {
	n := 0
	for n < len(p) {
		o, ok := m.offset(a, 1)
		if !ok {
			return n, fmt.Errorf("%w: %#x", ErrNotRAM, uint64(a))
		}
		end := uint64(len(m.host))
		if o < m.low {
			end = m.low
		}
		k := copy(p[n:], m.host[o:end])
		n, a = n+k, a+Addr(k)
	}
	return n, nil
}

// Written reports that [a, a+n), inside one region, was written by other means than this package's own writers.
func (m *Memory) Written(a Addr, n int) {
	o, ok := m.offset(a, uint64(n))
	if !ok || n <= 0 {
		return
	}
	logging := m.logging.Load()
	for pg := o / PageSize; pg <= (o+uint64(n)-1)/PageSize; pg++ {
		bit := uint64(1) << (pg % 64)
		if logging {
			m.dirty[pg/64].Or(bit)
		}
		if m.code[pg/64].Load()&bit != 0 {
			lo, hi := max(o, pg*PageSize), min(o+uint64(n), (pg+1)*PageSize)
			m.eachWatcher(func(w Watcher) { w.CodeWritten(a+Addr(lo-o), int(hi-lo)) })
		}
	}
}

// Tracked tells whether writes to the page at a must be reported with [Memory.Written].
func (m *Memory) Tracked(a Addr) bool {
	o, ok := m.offset(a, 1)
	if !ok {
		return false
	}
	pg := o / PageSize
	bit := uint64(1) << (pg % 64)
	return m.code[pg/64].Load()&bit != 0 || m.logging.Load() && m.dirty[pg/64].Load()&bit == 0
}

// MarkCode starts tracking the page at a: a CPU is about to decode code from it. It returns when no CPU can write there unseen.
func (m *Memory) MarkCode(a Addr) {
	o, ok := m.offset(a, 1)
	if !ok {
		return
	}
	pg := o / PageSize
	bit := uint64(1) << (pg % 64)
	if m.code[pg/64].Load()&bit != 0 {
		return
	}
	if m.code[pg/64].Or(bit)&bit == 0 {
		m.eachWatcher(func(w Watcher) { w.Retrack(a &^ (PageSize - 1)) })
	}
}

// ClearCode ends the tracking that MarkCode began.
func (m *Memory) ClearCode(a Addr) {
	if o, ok := m.offset(a, 1); ok {
		pg := o / PageSize
		m.code[pg/64].And(^(uint64(1) << (pg % 64)))
	}
}

// Watch adds a watcher. Call it before the first CPU runs.
func (m *Memory) Watch(w Watcher) {
	var all []Watcher
	if old := m.watchers.Load(); old != nil {
		all = append(all, *old...)
	}
	all = append(all, w)
	m.watchers.Store(&all)
}

func (m *Memory) eachWatcher(fn func(Watcher)) {
	if all := m.watchers.Load(); all != nil {
		for _, w := range *all {
			fn(w)
		}
	}
}
