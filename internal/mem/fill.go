package mem

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// fillChunk is how much of a file is in hand at once: it stays in a processor's cache.
const fillChunk = 256 << 10

var zeros [PageSize]byte

// Fill puts n bytes at a, RAM that reads as zeros now, as read gives them: len(p) bytes from off on. Pages of zeros are left untouched, so they take no
// memory of the host; the other ones are written by the file, which is half the work of touching them.
func (m *Memory) Fill(a Addr, n uint64, read func(p []byte, off int64) error) error {
	if m.huge == HugePool { // whose files take no write(2)
		return m.WriteFunc(a, n, func(p []byte) error { return read(p, 0) })
	}
	o, ok := m.offset(a, n)
	if !ok {
		return fmt.Errorf("%w: [%#x, +%#x)", ErrNotRAM, uint64(a), n)
	}
	buf := make([]byte, min(n, fillChunk))
	for done := uint64(0); done < n; {
		at := o + done
		k := min(n-done, fillChunk-at%PageSize) // chunks end where pages do
		p := buf[:min(k, uint64(len(buf)))]
		if err := read(p, int64(done)); err != nil {
			return err
		}
		if err := m.writePages(p, at); err != nil {
			return err
		}
		done += uint64(len(p))
	}
	m.Written(a, int(n))
	return nil
}

// writePages writes p to the file at off, but for its pages of zeros.
func (m *Memory) writePages(p []byte, off uint64) error {
	run := 0 // p[run:i] is to be written
	flush := func(end int) error {
		for run < end {
			n, err := unix.Pwrite(m.fd, p[run:end], int64(off)+int64(run))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fmt.Errorf("mem: filling: %w", err)
			}
			run += n
		}
		return nil
	}
	for i := 0; i < len(p); {
		k := min(len(p)-i, int(PageSize-(off+uint64(i))%PageSize))
		if bytes.Equal(p[i:i+k], zeros[:k]) {
			if err := flush(i); err != nil {
				return err
			}
			run = i + k
		}
		i += k
	}
	return flush(len(p))
}
