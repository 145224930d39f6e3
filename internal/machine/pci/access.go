package pci

import (
	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/layout"
)

// The ports of configuration mechanism #1 (PCI Local Bus 3.0 section 3.2.2.3.2).
const (
	addressPort   = 0xCF8
	dataPort      = 0xCFC
	addressEnable = 1 << 31
	addressMask   = 0x80FFFFFC
)

// MapPorts puts the two configuration registers on the port bus: all of 0xCFC-0xCFF, and 0xCF8 alone, because the
// bytes after it are other devices' (0xCF9 resets the machine) and only a 32-bit access at 0xCF8 means the address register.
func (b *Bus) MapPorts(ports *bus.Bus) error {
	if err := ports.Map(addressPort, 1, (*addressRegister)(b)); err != nil {
		return err
	}
	return ports.Map(dataPort, 4, (*dataRegister)(b))
}

// MapECAM puts the memory-mapped configuration space at [layout.ECAM].
func (b *Bus) MapECAM() error { return b.mmio.Map(layout.ECAM, layout.ECAMSize, (*ecam)(b)) }

type addressRegister Bus

func (r *addressRegister) Read(_ uint64, p []byte) {
	fill(p)
	if len(p) == 4 {
		r.mu.Lock()
		le.PutUint32(p, r.address)
		r.mu.Unlock()
	}
}

func (r *addressRegister) Write(_ uint64, p []byte) {
	if len(p) == 4 {
		r.mu.Lock()
		r.address = le.Uint32(p) & addressMask
		r.mu.Unlock()
	}
}

type dataRegister Bus

func (r *dataRegister) Read(off uint64, p []byte) {
	fill(p)
	if c, reg := r.selected(off, len(p)); c != nil {
		c.Read(reg, p)
	}
}

func (r *dataRegister) Write(off uint64, p []byte) {
	if c, reg := r.selected(off, len(p)); c != nil {
		c.Write(reg, p)
	}
}

// selected is the register that the address register and the low port bits name.
func (r *dataRegister) selected(off uint64, n int) (*Config, int) {
	b := (*Bus)(r)
	b.mu.Lock()
	a := b.address
	b.mu.Unlock()
	if a&addressEnable == 0 || off+uint64(n) > 4 {
		return nil, 0
	}
	return b.config(a >> 8 & 0xFFFF), int(a&0xFC) + int(off)
}

type ecam Bus

// Offsets in ECAM: bus, device and function above bit 12 (PCI Express 5.0 section 7.2.2).
func (e *ecam) Read(off uint64, p []byte) {
	fill(p)
	if c := (*Bus)(e).config(uint32(off >> 12)); c != nil {
		c.Read(int(off&0xFFF), p)
	}
}

func (e *ecam) Write(off uint64, p []byte) {
	if c := (*Bus)(e).config(uint32(off >> 12)); c != nil {
		c.Write(int(off&0xFFF), p)
	}
}

// config is the configuration space of bus, device and function number bdf, or nil: only functions 0 of bus 0 exist.
func (b *Bus) config(bdf uint32) *Config {
	if bdf&7 != 0 || bdf>>3 >= Slots {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if f := b.slots[bdf>>3]; f != nil {
		return f.Config()
	}
	return nil
}

func fill(p []byte) {
	for i := range p {
		p[i] = 0xFF
	}
}
