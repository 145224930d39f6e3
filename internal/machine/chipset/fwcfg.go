package chipset

import (
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"sort"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/mem"
)

// Keys and limits of fw_cfg (QEMU docs/specs/fw_cfg.rst).
const (
	fwSignature = 0x00
	fwID        = 0x01
	fwCPUs      = 0x05
	fwDirectory = 0x19
	fwFirstFile = 0x20

	fwMaxFiles = 0x100
	fwMaxName  = 55

	fwDMAError  = 1 << 0
	fwDMARead   = 1 << 1
	fwDMASkip   = 1 << 2
	fwDMASelect = 1 << 3
	fwDMAWrite  = 1 << 4
)

// A FWCfg gives the guest named files of the host, by QEMU's fw_cfg with DMA.
type FWCfg struct {
	ram   *mem.Memory
	items map[uint16][]byte

	mu sync.Mutex
	s  fwState
}

type fwState struct {
	Key     uint16
	Offset  uint64
	DMAHigh uint32
}

// NewFWCfg makes one with files by name ("opt/org.example/x").
func NewFWCfg(ram *mem.Memory, cpus int, files map[string][]byte) (*FWCfg, error) {
	if len(files) > fwMaxFiles {
		return nil, fmt.Errorf("fw_cfg: %d files, at most %d", len(files), fwMaxFiles)
	}
	f := &FWCfg{ram: ram, items: map[uint16][]byte{
		fwSignature: []byte("QEMU"),
		fwID:        {3, 0, 0, 0}, // the ports, and DMA
		fwCPUs:      {byte(cpus), byte(cpus >> 8)},
	}}
	names := make([]string, 0, len(files))
	for name := range files {
		if name == "" || len(name) > fwMaxName {
			return nil, fmt.Errorf("fw_cfg: name %q is empty or longer than %d bytes", name, fwMaxName)
		}
		names = append(names, name)
	}
	sort.Strings(names)
	dir := binary.BigEndian.AppendUint32(nil, uint32(len(names)))
	for i, name := range names {
		key := fwFirstFile + uint16(i)
		f.items[key] = files[name]
		dir = binary.BigEndian.AppendUint32(dir, uint32(len(files[name])))
		dir = binary.BigEndian.AppendUint16(dir, key)
		dir = append(dir, 0, 0)
		dir = append(dir, name...)
		dir = append(dir, make([]byte, fwMaxName+1-len(name))...)
	}
	f.items[fwDirectory] = dir
	return f, nil
}

// rest is what follows the offset in the selected item.
func (f *FWCfg) rest() []byte {
	d := f.items[f.s.Key]
	return d[min(f.s.Offset, uint64(len(d))):]
}

// Ports is 0x510 and 0x511: selector and data.
func (f *FWCfg) Ports() bus.Device { return fwPorts{f} }

// DMA is 0x514 to 0x51B.
func (f *FWCfg) DMA() bus.Device { return fwDMA{f} }

type fwPorts struct{ f *FWCfg }

func (d fwPorts) Read(off uint64, p []byte) {
	f := d.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range p {
		p[i] = 0
		if off+uint64(i) != 1 {
			continue
		}
		if r := f.rest(); len(r) > 0 {
			p[i] = r[0]
		}
		f.s.Offset++
	}
}

func (d fwPorts) Write(off uint64, p []byte) {
	if off == 0 && len(p) == 2 {
		d.f.mu.Lock()
		defer d.f.mu.Unlock()
		d.f.s.Key, d.f.s.Offset = binary.LittleEndian.Uint16(p), 0
	}
}

type fwDMA struct{ f *FWCfg }

func (fwDMA) Read(off uint64, p []byte) {
	sig := []byte("QEMU CFG")
	for i := range p {
		p[i] = 0
		if o := off + uint64(i); o < 8 {
			p[i] = sig[o]
		}
	}
}

func (d fwDMA) Write(off uint64, p []byte) {
	f := d.f
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case off == 0 && len(p) == 4:
		f.s.DMAHigh = binary.BigEndian.Uint32(p)
	case off == 4 && len(p) == 4:
		f.transfer(mem.Addr(f.s.DMAHigh)<<32 | mem.Addr(binary.BigEndian.Uint32(p)))
	case off == 0 && len(p) == 8:
		f.transfer(mem.Addr(binary.BigEndian.Uint64(p)))
	}
}

// transfer does the request at a: control, length and address, all big-endian. Control is written back: 0, or the error bit.
func (f *FWCfg) transfer(a mem.Addr) {
	f.s.DMAHigh = 0
	var req [16]byte
	if f.ram.ReadAt(req[:], a) != nil {
		return
	}
	control, n := binary.BigEndian.Uint32(req[:]), uint64(binary.BigEndian.Uint32(req[4:]))
	addr := mem.Addr(binary.BigEndian.Uint64(req[8:]))
	if control&fwDMASelect != 0 {
		f.s.Key, f.s.Offset = uint16(control>>16), 0
	}
	var result uint32
	switch {
	case control&fwDMARead != 0:
		if err := f.ram.WriteFunc(addr, n, func(p []byte) error { clear(p[copy(p, f.rest()):]); return nil }); err != nil {
			result = fwDMAError
		}
		f.s.Offset += n
	case control&fwDMAWrite != 0:
		result = fwDMAError // all items are read-only
	case control&fwDMASkip != 0:
		f.s.Offset += n
	}
	f.ram.WriteAt(binary.BigEndian.AppendUint32(req[:0], result), a)
}

// Save implements bus.Stateful. The files are not state: who restores gives the same.
func (f *FWCfg) Save(enc *gob.Encoder) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return enc.Encode(f.s)
}

// Load implements bus.Stateful.
func (f *FWCfg) Load(dec *gob.Decoder) error {
	var s fwState
	if err := load(dec, "fw_cfg", &s); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.s = s
	return nil
}
