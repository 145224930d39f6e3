package blk

import (
	"errors"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

// Request types and statuses (virtio 1.2 section 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2

	headerSize = 16
	rangeSize  = 16
	flagUnmap  = 1
)

// handle serves one request and returns how many bytes of the chain count as written.
func (d *Device) handle(c *virtio.Chain) uint64 {
	n := c.WritableLen()
	if n == 0 {
		return 0 // not even room for a status
	}
	// The status is the last writable byte, wherever the driver's buffers end.
	last := c.Writable[len(c.Writable)-1]
	status := &last[len(last)-1]
	if last = last[:len(last)-1]; len(last) == 0 {
		c.Writable = c.Writable[:len(c.Writable)-1]
	} else {
		c.Writable[len(c.Writable)-1] = last
	}
	switch err := d.do(c); {
	case err == nil:
		*status = statusOK
	case errors.Is(err, ErrUnsupported):
		*status = statusUnsupp
	default:
		*status = statusIOErr
	}
	return n
}

func (d *Device) do(c *virtio.Chain) error {
	var h [headerSize]byte
	if err := readFull(c, h[:]); err != nil {
		return err
	}
	kind, sector := le.Uint32(h[:]), le.Uint64(h[8:])
	if d.disk.ReadOnly() && (kind == typeOut || kind == typeDiscard || kind == typeWriteZeroes) {
		return errBadRequest
	}
	switch kind {
	case typeIn:
		off, err := d.place(sector, c.WritableLen())
		if err != nil || len(c.Writable) == 0 {
			return err
		}
		return d.disk.ReadAt(c.Writable, off)
	case typeOut:
		off, err := d.place(sector, c.ReadableLen())
		if err != nil || len(c.Readable) == 0 {
			return err
		}
		return d.lasting(d.disk.WriteAt(c.Readable, off))
	case typeFlush:
		return d.disk.Flush()
	case typeGetID:
		// The id is cut or not ended where there is less or exactly room for it (virtio 1.2 section 5.2.6.1).
		_, _ = c.Write(d.serial[:min(idSize, c.WritableLen())])
		return nil
	case typeDiscard, typeWriteZeroes:
		return d.ranges(c, kind)
	}
	return ErrUnsupported
}

// lasting ends a write: in write-through it is flushed before the guest hears of it.
func (d *Device) lasting(err error) error {
	if err != nil || d.writeback.Load() {
		return err
	}
	return d.disk.Flush()
}

// place is where on the disk n bytes from sector are, if all of them are.
func (d *Device) place(sector, n uint64) (int64, error) {
	size := uint64(d.disk.Size())
	if n%SectorSize != 0 || sector > size/SectorSize || n > size-sector*SectorSize {
		return 0, errBadRequest
	}
	return int64(sector * SectorSize), nil
}

// ranges serves discard and write-zeroes. All ranges are checked before the first is acted on.
func (d *Device) ranges(c *virtio.Chain, kind uint32) error {
	n := c.ReadableLen()
	if n == 0 || n%rangeSize != 0 || n > rangeSize*maxRanges {
		return errBadRequest
	}
	var buf [rangeSize * maxRanges]byte
	if err := readFull(c, buf[:n]); err != nil {
		return err
	}
	for _, apply := range []bool{false, true} {
		for b := buf[:n]; len(b) > 0; b = b[rangeSize:] {
			sector, count, flags := le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
			off, err := d.place(sector, uint64(count)*SectorSize)
			if err != nil || count > maxRange {
				return errBadRequest
			}
			if flags&^flagUnmap != 0 || kind == typeDiscard && flags != 0 {
				return ErrUnsupported // virtio 1.2 section 5.2.6.2 asks for this answer
			}
			if !apply || count == 0 {
				continue
			}
			if kind == typeDiscard {
				err = d.disk.Discard(off, int64(count)*SectorSize)
			} else {
				err = d.disk.Zero(off, int64(count)*SectorSize, flags&flagUnmap != 0)
			}
			if err != nil {
				return err
			}
		}
	}
	return d.lasting(nil)
}
