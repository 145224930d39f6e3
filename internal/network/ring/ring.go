// Package ring carries Ethernet frames between a guest's card and a network in another process, through shared memory.
//
// There are two byte rings, one a direction, each with one writer and one reader, and an eventfd a side that wakes it. A side sleeps only after it
// has said so and looked once more, so who writes makes a system call only for a reader that sleeps. Each side takes what the other
// wrote for hostile: it keeps its own place in memory of its own, copies a frame's header before it looks at it, and checks all lengths.
package ring

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/network"
)

// The shared memory: a page of control words, then the ring from the guest, then the one to it.
const (
	controlSize = 4096
	ringSize    = 1 << 20 // a power of two, of several frames; small, so that it stays in the processor's cache
	totalSize   = controlSize + 2*ringSize

	upAt   = 0   // of the ring's words from the guest
	downAt = 256 // and to it
	linkAt = 512 // whether the guest's driver is ready and what it takes
)

// A ring's words, each on a cache line of its own: up to where the writer has written and the reader has read, in bytes since the beginning,
// and whether the one waits for frames or the other for room.
const (
	offHead = 0
	offTail = 64
	offIdle = 128
	offFull = 192
)

// A frame in a ring is a header, its bytes, and nothing up to the next multiple of recordAlign. It may begin at the ring's end and go on
// at its beginning, but no header does.
const (
	recordAlign  = 32
	recordHeader = 32

	recSize    = 0 // 4 bytes
	recFlags   = 4
	recSegment = 5
	recSegSize = 6
	recHdrSize = 8
	recSumAt   = 10
	recSumOff  = 12

	flagSum = 1
	flagECN = 2
)

// linkUp marks the link word of a driver that is ready. Below it are the abilities, above it a count, which makes each Up another one.
const (
	linkUp    = 1 << 8
	linkCount = 1 << 9
)

// ErrBroken says that the other side wrote what no side of ours does.
var ErrBroken = errors.New("network: the shared ring is broken")

// A half is one direction as one of its ends sees it.
type half struct {
	words []byte // of the control page
	data  []byte
	at    uint64 // up to where this end has written or read
}

func (h *half) word(off int) *word { return wordAt(h.words, off) }

// room tells whether a frame of size bytes can be written. If not, the reader will wake us when it has read something.
func (h *half) room(size int) bool {
	need := uint64(record(size))
	free := func() bool {
		used := h.at - h.word(offTail).Load()
		return used <= ringSize && ringSize-used >= need // a tail that cannot be leaves no room
	}
	if free() {
		return true
	}
	h.word(offFull).Store(1)
	return free()
}

func record(size int) int { return (recordHeader + size + recordAlign - 1) &^ (recordAlign - 1) }

// put writes a frame for which there is room, and tells whether its reader must be woken.
func (h *half) put(parts [][]byte, size int, o *network.Offload) (wake bool) {
	var b [recordHeader]byte
	encode(b[:], size, o)
	h.copyIn(h.at, b[:])
	at, left := h.at+recordHeader, size
	for _, p := range parts {
		p = p[:min(len(p), left)]
		h.copyIn(at, p)
		at += uint64(len(p))
		left -= len(p)
	}
	h.at += uint64(record(size))
	h.word(offHead).Store(h.at)
	return h.word(offIdle).Load() != 0 && h.word(offIdle).Swap(0) != 0
}

func (h *half) copyIn(at uint64, p []byte) {
	n := copy(h.data[at%ringSize:], p)
	copy(h.data, p[n:])
}

// get gives the next frame, with parts that lie in the ring until done, or tells that there is none: then the writer wakes us for the next.
func (h *half) get(f *network.Frame) (ok bool, err error) {
	have := h.word(offHead).Load() - h.at
	if have == 0 {
		h.word(offIdle).Store(1)
		if have = h.word(offHead).Load() - h.at; have == 0 {
			return false, nil
		}
		h.word(offIdle).Store(0)
	}
	if have > ringSize || have%recordAlign != 0 {
		return false, fmt.Errorf("%w: %d bytes in it", ErrBroken, have)
	}
	var b [recordHeader]byte
	copy(b[:], h.data[h.at%ringSize:])
	f.Size = decode(b[:], &f.Offload)
	if f.Size < 0 || f.Size > network.MaxFrame || uint64(record(f.Size)) > have {
		return false, fmt.Errorf("%w: a frame of %d bytes", ErrBroken, f.Size)
	}
	from := (h.at + recordHeader) % ringSize
	first := min(f.Size, int(ringSize-from))
	f.Parts = append(f.Parts[:0], h.data[from:from+uint64(first)])
	if first < f.Size {
		f.Parts = append(f.Parts, h.data[:f.Size-first])
	}
	return true, nil
}

// done takes the frame of size bytes that get gave away, and tells whether the writer must be woken.
func (h *half) done(size int) (wake bool) {
	h.at += uint64(record(size))
	h.word(offTail).Store(h.at)
	// Whoever waits for room gets some at once: half a ring, so that it is not woken for each frame.
	full := h.word(offFull)
	return full.Load() != 0 && h.word(offHead).Load()-h.at <= ringSize/2 && full.Swap(0) != 0
}

func encode(b []byte, size int, o *network.Offload) {
	le.PutUint32(b[recSize:], uint32(size))
	if o.PartialSum {
		b[recFlags] |= flagSum
	}
	if o.ECN {
		b[recFlags] |= flagECN
	}
	b[recSegment] = byte(o.Segment)
	le.PutUint16(b[recSegSize:], o.SegmentSize)
	le.PutUint16(b[recHdrSize:], o.HeaderSize)
	le.PutUint16(b[recSumAt:], o.SumStart)
	le.PutUint16(b[recSumOff:], o.SumOffset)
}

// decode reads a frame's header. It gives -1 where no side of ours writes such a one.
func decode(b []byte, o *network.Offload) (size int) {
	size = int(le.Uint32(b[recSize:]))
	*o = network.Offload{
		PartialSum: b[recFlags]&flagSum != 0, ECN: b[recFlags]&flagECN != 0, Segment: network.Segment(b[recSegment]),
		SegmentSize: le.Uint16(b[recSegSize:]), HeaderSize: le.Uint16(b[recHdrSize:]), SumStart: le.Uint16(b[recSumAt:]), SumOffset: le.Uint16(b[recSumOff:]),
	}
	if o.Segment > network.TCP6 || o.Segment != network.Whole && o.SegmentSize == 0 || o.PartialSum && int(o.SumStart)+int(o.SumOffset)+2 > size {
		return -1
	}
	return size
}

// memory maps the shared memory of a file, whose size cannot change any more.
func memory(f *os.File) ([]byte, error) {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("network: ring: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("network: ring: %w", err)
	}
	if seals&sealed != sealed || st.Size != totalSize {
		return nil, fmt.Errorf("network: ring: a file of %d bytes with seals %#x", st.Size, seals)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, totalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("network: ring: %w", err)
	}
	return b, nil
}

const sealed = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// newMemory makes the file of the shared memory.
func newMemory() (*os.File, error) {
	fd, err := unix.MemfdCreate("vitrine-network", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("network: ring: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ring")
	if err := f.Truncate(totalSize); err != nil {
		f.Close()
		return nil, fmt.Errorf("network: ring: %w", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, sealed); err != nil {
		f.Close()
		return nil, fmt.Errorf("network: ring: %w", err)
	}
	return f, nil
}

// newBell makes an eventfd, once for each side.
func newBell() (here, there *os.File, err error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("network: ring: %w", err)
	}
	other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("network: ring: %w", err)
	}
	return os.NewFile(uintptr(fd), "bell"), os.NewFile(uintptr(other), "bell"), nil
}

// ring wakes who waits for a bell.
func ring(bell *os.File) { bell.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// halves are both directions of a mapping.
func halves(b []byte) (up, down half) {
	data := b[controlSize:]
	return half{words: b[upAt:], data: data[:ringSize]}, half{words: b[downAt:], data: data[ringSize:]}
}
