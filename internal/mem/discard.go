package mem

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Discard gives the host back the whole pages inside [a, a+n), which read as zeros from then on, and tells how many bytes that was. Of the pool's huge
// pages none goes back: somebody else could take it before the guest wants it again, and a page that is missing then ends the process.
func (m *Memory) Discard(a Addr, n uint64) (given uint64, err error) {
	o, ok := m.offset(a, n)
	if !ok {
		return 0, fmt.Errorf("%w: [%#x, +%#x)", ErrNotRAM, uint64(a), n)
	}
	first := (o + PageSize - 1) &^ (PageSize - 1)
	end := (o + n) &^ (PageSize - 1)
	if first >= end || m.huge == HugePool {
		return 0, nil
	}
	if err := unix.Fallocate(m.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(first), int64(end-first)); err != nil {
		return 0, fmt.Errorf("mem: giving back [%#x, +%#x): %w", uint64(a), n, err)
	}
	m.Written(a+Addr(first-o), int(end-first))
	return end - first, nil
}

// Resident is how many bytes of the RAM take memory of the host now, in its swap included.
func (m *Memory) Resident() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return 0, fmt.Errorf("mem: %w", err)
	}
	return uint64(st.Blocks) * 512, nil
}
