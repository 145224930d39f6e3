package bus

import "encoding/gob"

// A Line is an interrupt wire. Set may be called from any goroutine, with the device's own lock held: it never calls back into a device.
type Line interface {
	Set(level bool)
}

// MSI delivers message-signalled interrupts: a write of data to addr (SDM vol. 3A 11.11).
type MSI interface {
	SignalMSI(addr uint64, data uint32)
}

// Stateful is a device that can be carried over to another process. Save and Load run while no CPU runs and no request is under way.
// Each encodes one struct of exported fields, so that fields can be added later.
type Stateful interface {
	Save(enc *gob.Encoder) error
	Load(dec *gob.Decoder) error
}
