package virtiotest

import (
	"testing"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/mem"
)

// Garbage is a driver without sense: in is a program of register writes, descriptors, requests and resets, for fuzz targets.
// Nothing is expected but that the device survives, can be paused, and can be driven afterwards.
func Garbage(t testing.TB, dev virtio.Device, in []byte) {
	d := New(t, dev)
	p := program{in}
	d.Start(uint64(p.u16())<<20|uint64(p.u16()), int(p.u8()))
	for op := 0; op < 128 && len(p.in) > 0; op++ {
		if len(d.Queues) == 0 {
			d.Start(^uint64(0), 0)
		}
		q := d.Queues[int(p.u8())%len(d.Queues)]
		switch p.u8() % 8 {
		case 0: // a write to BAR 0
			off, n := uint64(p.u16())&0x3FFF, 1<<(p.u8()&3)
			d.Write(d.Common+off, n, p.u32())
			d.Read(d.Common+off, n)
		case 1: // a descriptor
			q.SetDesc(q.Desc, int(p.u8())%q.Size, mem.Addr(p.address()), uint32(p.u16()), p.u16()&7, p.u16())
		case 2: // an index
			d.RAM.Store16(q.Avail+2, p.u16())
			q.Notify()
		case 3: // a chain of anything
			q.Publish(p.u16())
			q.Notify()
		case 4, 5, 6: // a well-formed request with any bytes in it
			q.PollHostile()
			body := p.bytes(int(p.u8()))
			if q.Room(3) {
				q.Add([][]byte{body}, int(p.u8()), int(p.u16())+1)
				q.Notify()
			}
		case 7:
			switch p.u8() % 8 {
			case 0:
				d.Start(uint64(p.u16())<<20|uint64(p.u16()), int(p.u8()))
			case 1:
				d.Bus.Pause()
				d.Bus.Resume()
			default:
				d.Write(d.Config+uint64(p.u8()), 4, p.u32())
			}
		}
	}
	d.Bus.Pause()
	d.Bus.Resume()
	d.Start(^uint64(0), 0)
	if st := d.Status(); st&virtio.StatusNeedsReset != 0 {
		t.Errorf("status %#x after a fresh start", st)
	}
}

// PollHostile is Poll by a driver that trusts nobody: what it does not know it ignores.
func (q *Queue) PollHostile() {
	for n := 0; n < q.Size && q.d.RAM.Load16(q.Used+2) != q.used; n++ {
		id := uint16(q.d.RAM.Load32(q.Used + 4 + 8*mem.Addr(int(q.used)%q.Size)))
		q.used++
		if r := q.requests[id]; r != nil {
			delete(q.requests, id)
			q.free = append(q.free, r.descs...)
		}
	}
}

type program struct{ in []byte }

func (p *program) bytes(n int) []byte {
	n = min(n, len(p.in))
	b := p.in[:n]
	p.in = p.in[n:]
	return b
}

func (p *program) num(n int) (v uint64) {
	for i, b := range p.bytes(n) {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func (p *program) u8() uint8   { return uint8(p.num(1)) }
func (p *program) u16() uint16 { return uint16(p.num(2)) }
func (p *program) u32() uint64 { return p.num(4) }

// address is mostly inside RAM, sometimes around its end, rarely far away.
func (p *program) address() uint64 {
	v := p.u32()
	switch v & 7 {
	case 0:
		return RAMSize - v>>24
	case 1:
		return v << 16
	}
	return v % RAMSize
}
