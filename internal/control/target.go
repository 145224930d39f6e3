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
}

// Target maps the guest's memory. The guest may go on and end: what was mapped stays.
func (c *Client) Target() (*Target, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.callLocked(Request{Verb: VerbMemory})
	fd := c.takeFD()
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err != nil {
		return nil, err
	}
	if fd < 0 || a.Memory == nil {
		return nil, orMissing(nil)
	}
	t := &Target{client: c, regions: a.Memory.Regions, cpus: a.Memory.CPUs}
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
	return t, nil
}

// Close unmaps the memory; no other method may be running or be called afterwards. The Client stays open.
func (t *Target) Close() error { return unix.Munmap(t.host) }

// Regions lists the guest's RAM.
func (t *Target) Regions() []mem.Region { return t.regions }

// NumCPU is how many CPUs the guest has.
func (t *Target) NumCPU() int { return t.cpus }

// CPU fills r with the registers of CPU i, as they are now.
func (t *Target) CPU(i int, r *x86.Regs) error { return t.client.Registers(i, r) }

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
