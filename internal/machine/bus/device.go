package bus

import (
	"encoding/gob"

	"vitrine.dev/vitrine/internal/mem"
)

// A Line is an interrupt wire. Set may be called from any goroutine, with the device's own lock held: it never calls back into a device.
type Line interface {
	Set(level bool)
}

// MSI delivers message-signalled interrupts: a write of data to addr (SDM vol. 3A 11.11).
type MSI interface {
	SignalMSI(addr uint64, data uint32)
}

// A Message is a message-signalled interrupt that is kept ready to be sent (see [hv.Message]).
type Message interface {
	Set(addr uint64, data uint32) error
	Send()
	Close() error
}

// Messenger is an MSI that keeps messages ready. It gives nil where it turns out to have none.
type Messenger interface {
	NewMessage() Message
}

// Doorbeller takes notifications to event counters without the device (see [hv.Doorbeller]).
type Doorbeller interface {
	AddDoorbell(a mem.Addr, fd int) error
	RemoveDoorbell(a mem.Addr, fd int) error
}

// Stateful is a device that can be carried over to another process. Save and Load run while no CPU runs and no request is under way.
// Each encodes one struct of exported fields, so that fields can be added later.
type Stateful interface {
	Save(enc *gob.Encoder) error
	Load(dec *gob.Decoder) error
}
