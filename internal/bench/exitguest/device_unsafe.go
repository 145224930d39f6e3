package main

// The invariant of this file: both registers lie in mappings that are never unmapped.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A device is two registers of a virtio device: the aligned word of its status, and the first queue's notify register.
type device struct {
	state *uint32
	bell  *uint32
}

// status reads the word with the device status: an exit.
func (d *device) status() { atomic.LoadUint32(d.state) }

// notify tells the device to look at its queue. Virtio wants 16 bits; what is written matters to nobody.
func (d *device) notify() { *(*uint16)(unsafe.Pointer(d.bell)) = 0 }

// Offsets in a virtio_pci_cap (virtio 1.2 section 4.1.4), its types, and the status in the common configuration.
const (
	capType, capBAR, capOffset = 3, 4, 8
	commonConfig, notifyConfig = 1, 2
	deviceStatus               = 20
)

// open maps the registers of the device at dir in sysfs.
func open(dir string) (*device, error) {
	c, err := os.ReadFile(filepath.Join(dir, "config"))
	if err != nil || len(c) < 256 {
		return nil, fmt.Errorf("%d bytes of configuration (%v)", len(c), err)
	}
	d := &device{}
	for at, n := int(c[0x34]), 0; at != 0 && at < 240 && n < 48; at, n = int(c[at+1]), n+1 {
		if c[at] != 9 {
			continue
		}
		off := binary.LittleEndian.Uint32(c[at+capOffset:])
		switch c[at+capType] {
		case commonConfig:
			d.state, err = register(dir, c[at+capBAR], off+deviceStatus)
		case notifyConfig:
			d.bell, err = register(dir, c[at+capBAR], off)
		}
		if err != nil {
			return nil, err
		}
	}
	if d.state == nil || d.bell == nil {
		return nil, errors.New("the device has no virtio registers")
	}
	return d, nil
}

// register maps the page of a BAR that has the word at off, a multiple of 4.
func register(dir string, bar uint8, off uint32) (*uint32, error) {
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("resource", bar)), os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	page, err := unix.Mmap(int(f.Fd()), int64(off&^0xFFF), 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("BAR %d: %w", bar, err)
	}
	return (*uint32)(unsafe.Pointer(&page[off&0xFFC])), nil
}
