package virtiotest

import (
	"bytes"
	"encoding/gob"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

// Migrate pauses the device, carries it and the guest's RAM over to dev in a machine of its own, and resumes it there.
// The driver goes on with what it had; d must not be used afterwards.
func (d *Driver) Migrate(dev virtio.Device) *Driver {
	d.T.Helper()
	d.Bus.Pause()
	var state bytes.Buffer
	if err := d.Bus.Save(gob.NewEncoder(&state)); err != nil {
		d.T.Fatalf("save: %v", err)
	}
	to := New(d.T, dev)
	to.Bus.Pause()
	ram, err := d.RAM.Slice(0, RAMSize)
	if err != nil {
		d.T.Fatal(err)
	}
	if err := to.RAM.WriteAt(ram, 0); err != nil {
		d.T.Fatal(err)
	}
	if err := to.Bus.Load(gob.NewDecoder(&state)); err != nil {
		d.T.Fatalf("load: %v", err)
	}
	to.Features, to.next = d.Features, d.next
	for _, q := range d.Queues {
		moved := *q
		moved.d = to
		for _, r := range moved.requests {
			r.ram = to.RAM
		}
		to.Queues = append(to.Queues, &moved)
	}
	to.Bus.Resume()
	return to
}
