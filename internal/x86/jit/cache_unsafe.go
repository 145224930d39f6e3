package jit

// The invariant of this file: code lies between region.lo and region.hi, mapped to be executed; each byte of it is also mapped to be written, elsewhere.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reserved is the range of addresses for all caches of the process: within reach of a 32-bit displacement.
const (
	reserved = 1 << 30
	slotSize = 1 << 20
)

// process is what all caches share.
var process struct {
	sync.Mutex
	err    error
	layout *Layout
	slots  [reserved / slotSize]bool // in use
}

// stubs are the entry and the exits, in a page below region.lo.
var stubs struct{ enter, enterVec, exit, load uintptr }

// A Cache holds translated code.
type Cache struct {
	rw   []byte
	rx   uintptr
	used int
	slot int // the first
}

// ErrFull says that a cache has no room for more.
var ErrFull = errors.New("jit: the code cache is full")

// ErrRefused is a host that gives no memory that can be executed.
var ErrRefused = errors.New("jit: this host refuses memory that can be executed (SELinux execmem, a seccomp filter or a noexec policy)")

// Init makes the process ready to run translated code for states of layout l: the same one at each call. preempted is a bit of the poll word for the
// Go runtime's requests.
func Init(l *Layout, preempted uint32) error {
	process.Lock()
	defer process.Unlock()
	if process.layout == nil && process.err == nil {
		process.layout = l
		process.err = start(l, preempted)
	}
	if process.err == nil && *process.layout != *l {
		panic("BUG: jit: two layouts")
	}
	return process.err
}

func start(l *Layout, preempted uint32) error {
	p, err := unix.MmapPtr(-1, 0, nil, reserved+slotSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("jit: room for code: %w", err)
	}
	base := uintptr(p)
	rw, err := mapTwice(base, pageSize)
	if err != nil {
		return err
	}
	a := &asm{base: base}
	avx := host().avx
	load, known := a.vecStubs(l, avx)
	stubs.load = load
	stubs.enter = base + uintptr(a.pos())
	a.enter(l, false, avx, known)
	stubs.enterVec = base + uintptr(a.pos())
	a.enter(l, true, avx, known)
	stubs.exit = base + uintptr(a.pos())
	a.exit(l, avx, load)
	fault := base + uintptr(a.pos())
	a.toAddr(a.jmp(), stubs.exit)
	copy(rw, a.buf)
	region.lo, region.hi = base+slotSize, base+slotSize+reserved
	region.frame, region.poll = uintptr(l.Frame), uintptr(l.Poll)
	region.fault, region.preempted = fault, preempted
	return hookSignals()
}

// mapTwice maps n bytes of fresh memory at rx to execute, and elsewhere to write.
func mapTwice(rx uintptr, n int) ([]byte, error) {
	// Hosts with vm.memfd_noexec refuse a memfd that does not say it is to be executed; kernels before 6.3 do not know the flag.
	const mfdExec = 0x10
	fd, err := unix.MemfdCreate("vitrine-code", unix.MFD_CLOEXEC|mfdExec)
	if err != nil {
		fd, err = unix.MemfdCreate("vitrine-code", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("jit: memfd for code: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		return nil, fmt.Errorf("jit: memfd for code: %w", err)
	}
	rw, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("jit: code, to write: %w", err)
	}
	if _, err := unix.MmapPtr(fd, 0, ptr(rx), uintptr(n), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED|unix.MAP_FIXED|unix.MAP_NORESERVE); err != nil {
		_ = unix.Munmap(rw)
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return rw, nil
}

// ptr is address a, which is not Go's, as a pointer.
func ptr(a uintptr) unsafe.Pointer { return unsafe.Add(unsafe.Pointer(nil), a) }

// NewCache makes a cache of size bytes, rounded up to whole slots. Init was called before. The cache is freed with its last reference.
func NewCache(size int) (*Cache, error) {
	process.Lock()
	defer process.Unlock()
	n := (size + slotSize - 1) / slotSize
	first, ok := findSlots(n + 1) // one stays unmapped behind it
	if !ok {
		return nil, fmt.Errorf("jit: no room for a code cache of %d MiB beside those of other guests", n)
	}
	c := &Cache{rx: region.lo + uintptr(first)*slotSize, slot: first}
	var err error
	if c.rw, err = mapTwice(c.rx, n*slotSize); err != nil {
		return nil, err
	}
	for i := range n + 1 {
		process.slots[first+i] = true
	}
	type mapping struct {
		rw    []byte
		rx    uintptr
		first int
	}
	runtime.AddCleanup(c, func(m mapping) {
		_ = unix.Munmap(m.rw)
		process.Lock()
		defer process.Unlock()
		_, _ = unix.MmapPtr(-1, 0, ptr(m.rx), uintptr(len(m.rw)), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE|unix.MAP_FIXED)
		for i := range len(m.rw)/slotSize + 1 {
			process.slots[m.first+i] = false
		}
	}, mapping{c.rw, c.rx, first})
	return c, nil
}

// findSlots finds n free slots in a row.
func findSlots(n int) (first int, ok bool) {
	run := 0
	for i, used := range process.slots {
		if run++; used {
			run = 0
		}
		if run == n {
			return i - n + 1, true
		}
	}
	return 0, false
}

// Next is the address that the next Add puts code at.
func (c *Cache) Next() uintptr { return c.rx + uintptr(c.used) }

// Add puts code in. It returns its address.
func (c *Cache) Add(code []byte) (uintptr, error) {
	if len(code) > len(c.rw)-c.used {
		return 0, ErrFull
	}
	a := c.Next()
	copy(c.rw[c.used:], code)
	c.used = min((c.used+len(code)+15)&^15, len(c.rw))
	return a, nil
}

// Used is how many bytes of code there are.
func (c *Cache) Used() int { return c.used }

// Reset forgets all code. None may be running.
func (c *Cache) Reset() { c.used = 0 }

// Link makes the 32-bit displacement at address site lead to address to.
func (c *Cache) Link(site, to uintptr) {
	binary.LittleEndian.PutUint32(c.rw[site-c.rx:], uint32(to-(site+4)))
}

// Divert makes the code at address from begin with a jump to address to. There are at least 5 bytes of it.
func (c *Cache) Divert(from, to uintptr) {
	c.rw[from-c.rx] = 0xE9
	c.Link(from+1, to)
}

// enter runs code by the entry stub.
//
//go:noescape
func enter(stub, state, code uintptr)

// Enter runs the code at address code until it is left: the frame says why. state is of the layout given to Init, with 128 free bytes below it.
func Enter(state unsafe.Pointer, code uintptr) { enter(stubs.enter, uintptr(state), code) }

// EnterVec is Enter for code that takes the vector registers for loaded: behind the beginning of a block with [Code].Vec.
func EnterVec(state unsafe.Pointer, code uintptr) { enter(stubs.enterVec, uintptr(state), code) }

// SetJumps says which jump table translated code uses; its caller keeps it alive.
func (f *Frame) SetJumps(t unsafe.Pointer) {
	f.jumps, f.vec, f.mxcsr = uintptr(t), stubs.load, 0x1F80
}
