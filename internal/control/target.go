package control

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A Target is a live guest to look at: guest.Target over a Client.
type Target struct {
	client  *Client
	regions []mem.Region
	cpus    int
	host    []byte // the memfd, mapped for reading
	fd      int    // the memfd
}

// Target maps the guest's memory. The guest may go on and end: what was mapped stays.
func (c *Client) Target() (*Target, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.callLocked(Request{Verb: VerbMemory})
	fd := c.takeFD()
	keep := false
	defer func() {
		if fd >= 0 && !keep {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return nil, err
	}
	if fd < 0 || a.Memory == nil {
		return nil, orMissing(nil)
	}
	t := &Target{client: c, regions: a.Memory.Regions, cpus: a.Memory.CPUs, fd: fd}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("control: guest memory: %w", err)
	}
	for _, r := range t.regions {
		if r.Offset < 0 || r.Size > uint64(st.Size) || uint64(r.Offset) > uint64(st.Size)-r.Size || uint64(r.Base)+r.Size < r.Size {
			return nil, errors.New("control: guest memory: a region lies outside of its file")
		}
	}
	if t.host, err = unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("control: guest memory: %w", err)
	}
	keep = true
	return t, nil
}

// Close unmaps the memory; no other method may be running or be called afterwards. The Client stays open.
func (t *Target) Close() error { return errors.Join(unix.Munmap(t.host), unix.Close(t.fd)) }

// NextData gives the next run of memory at or behind a that the guest has touched. What it has not is zeros, and reading it here would
// take memory for it on the guest's account.
func (t *Target) NextData(a mem.Addr) (start mem.Addr, size uint64, ok bool) {
	for _, r := range t.regions {
		end := r.Base + mem.Addr(r.Size)
		if a >= end {
			continue
		}
		a = max(a, r.Base)
		from, err := unix.Seek(t.fd, r.Offset+int64(a-r.Base), unix.SEEK_DATA)
		if err == unix.ENXIO {
			return 0, 0, false
		}
		if err != nil { // not known: it may all be
			return a, uint64(end - a), true
		}
		if uint64(from-r.Offset) >= r.Size {
			continue
		}
		to, err := unix.Seek(t.fd, from, unix.SEEK_HOLE)
		if err != nil {
			to = r.Offset + int64(r.Size)
		}
		return r.Base + mem.Addr(from-r.Offset), min(uint64(to), uint64(r.Offset)+r.Size) - uint64(from), true
	}
	return 0, 0, false
}

// Regions lists the guest's RAM.
func (t *Target) Regions() []mem.Region { return t.regions }

// NumCPU is how many CPUs the guest has.
func (t *Target) NumCPU() int { return t.cpus }

// CPU fills r with the registers of CPU i, as they are now.
func (t *Target) CPU(i int, r *x86.Regs) error { return t.client.Registers(i, r) }

// View shows memory in place, as far as it is in one region; nil where there is none.
func (t *Target) View(a mem.Addr, n uint64) []byte {
	for _, r := range t.regions {
		if a >= r.Base && uint64(a-r.Base) < r.Size {
			o := uint64(a - r.Base)
			return t.host[uint64(r.Offset)+o:][:min(n, r.Size-o)]
		}
	}
	return nil
}

// ReadPhys implements mem.Reader.
func (t *Target) ReadPhys(p []byte, a mem.Addr) (int, error) {
	n := 0
next:
	for n < len(p) {
		for _, r := range t.regions {
			if a >= r.Base && uint64(a-r.Base) < r.Size {
				o := uint64(a - r.Base)
				k := copy(p[n:], t.host[uint64(r.Offset)+o:uint64(r.Offset)+r.Size])
				n, a = n+k, a+mem.Addr(k)
				continue next
			}
		}
		return n, fmt.Errorf("%w: %#x", mem.ErrNotRAM, uint64(a))
	}
	return n, nil
}
