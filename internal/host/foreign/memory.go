package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/host/vmm"
	"vitrine.dev/vitrine/internal/mem"
)

// A segment is a run of a guest's RAM and where its VMM has it.
type segment struct {
	base mem.Addr // guest-physical
	size uint64
	host uint64 // in the VMM's address space
	file *os.File
	off  int64 // in file, where there is one: it is shared, so that reading it is reading RAM
}

// Bits of pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pageSize     = mem.PageSize
	entryPresent = 1 << 63
	entrySwapped = 1 << 62
	sparseFrom   = 64 << 10 // reads of so many bytes ask first what is there
)

// memory reads a guest's RAM where its VMM has it. The guest goes on meanwhile. Its files belong to one address space: another process that comes to
// have the VMM's number is never read.
type memory struct {
	pid     int
	space   *os.File // /proc/PID/mem; nil: not to be had
	pagemap *os.File // nil: not to be had
	files   []*os.File
}

func openMemory(proc vmm.Proc, pid int) *memory {
	m := &memory{pid: pid}
	m.space, _ = os.Open(proc.Path(pid, "mem"))
	m.pagemap, _ = os.Open(proc.Path(pid, "pagemap"))
	return m
}

func (m *memory) close() {
	for _, f := range append(m.files, m.space, m.pagemap) {
		f.Close() // a nil one is an error only
	}
}

// read fills p from s on, at offset o of it.
func (m *memory) read(p []byte, s *segment, o uint64) (int, error) {
	if s.file != nil {
		n, err := s.file.ReadAt(p, s.off+int64(o))
		if err != nil {
			return n, fmt.Errorf("foreign: %s: %w", s.file.Name(), err)
		}
		return n, nil
	}
	if len(p) < sparseFrom {
		return m.copy(p, s.host+o)
	}
	// What the VMM never touched is zeros; reading it would make page tables for it.
	for n := 0; n < len(p); {
		start, size, ok := m.present(s.host+o+uint64(n), s.host+o+uint64(len(p)))
		if !ok {
			clear(p[n:])
			return len(p), nil
		}
		zeros := int(start - (s.host + o + uint64(n)))
		clear(p[n : n+zeros])
		n += zeros
		got, err := m.copy(p[n:n+int(size)], start)
		n += got
		if err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// copy fills p from the VMM's address space.
func (m *memory) copy(p []byte, at uint64) (int, error) {
	if m.space == nil {
		return 0, errClosed
	}
	n, err := m.space.ReadAt(p, int64(at))
	if err == io.EOF {
		err = ErrGone
	}
	if err != nil {
		return n, fmt.Errorf("foreign: memory of process %d at %#x: %w", m.pid, at, err)
	}
	return n, nil
}

// ErrGone is returned where the VMM's process has ended.
var ErrGone = errors.New("it has ended")

var errClosed = errors.New("foreign: its memory may not be read")

// present gives the first run of touched pages in [from, to), cut to it.
func (m *memory) present(from, to uint64) (start, size uint64, ok bool) {
	if m.pagemap == nil {
		return from, to - from, from < to
	}
	var buf [8 * 1024]byte
	for at := from &^ (pageSize - 1); at < to; {
		want := min((to-at+pageSize-1)/pageSize*8, uint64(len(buf)))
		n, _ := m.pagemap.ReadAt(buf[:want], int64(at/pageSize*8))
		if n < 8 { // not known: it may all be
			if !ok {
				start = max(at, from)
			}
			return start, to - start, true
		}
		for i := 0; i+8 <= n; i += 8 {
			here := binary.LittleEndian.Uint64(buf[i:])&(entryPresent|entrySwapped) != 0
			switch {
			case here && !ok:
				start, ok = max(at, from), true
			case !here && ok:
				return start, at - start, true
			}
			at += pageSize
		}
	}
	return start, to - start, ok
}

// next gives the first run at or behind offset o of s that may not be zeros, as an offset.
func (m *memory) next(s *segment, o uint64) (start, size uint64, ok bool) {
	if s.file == nil {
		start, size, ok = m.present(s.host+o, s.host+s.size)
		return start - s.host, size, ok
	}
	from, err := s.file.Seek(s.off+int64(o), unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && from >= s.off+int64(s.size) {
		return 0, 0, false
	}
	if err != nil {
		return o, s.size - o, true
	}
	end := s.off + int64(s.size)
	if to, err := s.file.Seek(from, unix.SEEK_HOLE); err == nil {
		end = min(end, to)
	}
	return uint64(from - s.off), uint64(end - from), true
}

// share opens the file behind a mapping that is shared, so that it can be read without the VMM: by what is mapped, or by the VMM's own descriptor of it.
// It is nil where there is none, or it may not be opened.
func (m *memory) share(proc vmm.Proc, r *vmm.Mapping) *os.File {
	if r.Inode == 0 || r.Perms[3] != 's' {
		return nil
	}
	f := open(proc.Path(m.pid, fmt.Sprintf("map_files/%x-%x", r.Start, r.End)))
	if f == nil {
		f = m.descriptor(proc, r)
	}
	if f != nil {
		m.files = append(m.files, f)
	}
	return f
}

// descriptor opens the file that the VMM has open under the inode of a mapping.
func (m *memory) descriptor(proc vmm.Proc, r *vmm.Mapping) *os.File {
	dir := proc.Path(m.pid, "fd")
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, n := range names {
		path := dir + "/" + n.Name()
		if link, err := os.Readlink(path); err != nil || link != r.Path {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == r.Inode {
			if f := open(path); f != nil {
				return f
			}
		}
	}
	return nil
}

// open opens a regular file for reading; what is none might wait.
func open(path string) *os.File {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), path)
}

// layouts gives the ways in which RAM that a VMM has in these mappings may lie in the guest's address space, the likeliest first: holes are where RAM below
// 4 GiB may end.
func layouts(ram []segment, holes []uint64) [][]segment {
	total := uint64(0)
	for _, s := range ram {
		total += s.size
	}
	var all [][]segment
	add := func(l []segment) {
		if !slices.ContainsFunc(all, func(o []segment) bool { return slices.Equal(o, l) }) {
			all = append(all, l)
		}
	}
	for _, h := range holes {
		add(place(ram, min(h, total)))
	}
	if len(ram) == 1 { // two mappings that the kernel joined, the later one below
		for _, h := range holes {
			if h < total {
				high := total - h
				add(place([]segment{part(ram[0], high, h), part(ram[0], 0, high)}, h))
			}
		}
	}
	if total <= 1<<32-minHole {
		add(place(ram, total))
	}
	return all
}

// minHole is what no machine has RAM in: the I/O APIC, the LAPICs and the firmware below 4 GiB.
const minHole = 32 << 20

func part(s segment, off, size uint64) segment {
	s.host += off
	s.off += int64(off)
	s.size = size
	return s
}

// place puts RAM from address 0 on, what is beyond the hole's begin above 4 GiB.
func place(ram []segment, hole uint64) []segment {
	var l []segment
	at := uint64(0)
	for _, s := range ram {
		if at < hole && at+s.size > hole {
			low := part(s, 0, hole-at)
			low.base = mem.Addr(at)
			l = append(l, low)
			s, at = part(s, low.size, s.size-low.size), 1<<32
		}
		if at == hole {
			at = 1 << 32
		}
		s.base = mem.Addr(at)
		l = append(l, s)
		at += s.size
	}
	return l
}
