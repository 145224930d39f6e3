package irq

import (
	"encoding/gob"
	"fmt"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine/bus"
)

// Remote is interrupt controllers that the backend has: the board's wires and messages end there. It is a [bus.MSI].
type Remote struct {
	hv.IRQChip
	wires
}

// NewRemote wires a board to the backend's controllers, which are made already.
func NewRemote(chip hv.IRQChip) *Remote {
	r := &Remote{IRQChip: chip}
	for gsi := range r.wires {
		r.wires[gsi].drive = func(level bool) bool { return chip.SetLine(gsi, level) }
	}
	return r
}

// NewMessage implements [bus.Messenger].
func (r *Remote) NewMessage() bus.Message {
	if m, ok := r.IRQChip.(hv.Messenger); ok {
		if message, err := m.NewMessage(); err == nil {
			return message
		}
	}
	return nil
}

// Save implements [bus.Stateful].
func (r *Remote) Save(enc *gob.Encoder) error {
	p, err := r.ChipState()
	if err != nil {
		return err
	}
	return enc.Encode(p)
}

// Load implements [bus.Stateful]. The levels of the wires come from the devices that drive them.
func (r *Remote) Load(dec *gob.Decoder) error {
	var p []byte
	if err := dec.Decode(&p); err != nil {
		return fmt.Errorf("interrupt controllers: %w", err)
	}
	return r.SetChipState(p)
}
