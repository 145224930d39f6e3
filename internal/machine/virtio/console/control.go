package console

import (
	"io"

	"vitrine.dev/vitrine/internal/machine/virtio"
)

// Control messages (virtio 1.2 section 5.3.6.2): id, event, value, and for some more bytes.
const (
	eventDeviceReady = 0
	eventDeviceAdd   = 1
	eventPortReady   = 3
	eventConsolePort = 4
	eventResize      = 5
	eventPortOpen    = 6
	eventPortName    = 7
	messageSize      = 8

	// maxPending bounds the messages that wait for buffers: with more, the guest's own are not taken. Each of those makes
	// at most maxPorts new ones.
	maxPending = 4 * maxPorts
)

type message []byte

func newMessage(port int, event, value uint16, more ...byte) message {
	m := le.AppendUint32(nil, uint32(port))
	m = le.AppendUint16(m, event)
	m = le.AppendUint16(m, value)
	return append(m, more...)
}

func (d *Device) resize(port int) message {
	d.mu.Lock()
	defer d.mu.Unlock()
	return newMessage(port, eventResize, 0, byte(d.cols), byte(d.cols>>8), byte(d.rows), byte(d.rows>>8))
}

// send queues messages to the guest. A size that was not delivered yet is replaced by a newer one.
func (d *Device) send(ms ...message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == nil || !d.session.Has(FeatureMultiport) {
		return
	}
next:
	for _, m := range ms {
		if le.Uint16(m[4:]) == eventResize {
			for i, old := range d.pending {
				if le.Uint16(old[4:]) == eventResize && le.Uint32(old) == le.Uint32(m) {
					d.pending[i] = m
					continue next
				}
			}
		}
		d.pending = append(d.pending, m)
	}
	d.session.Queues[controlRx].Wake()
}

// serveControlRx gives the guest what waits for it.
func (d *Device) serveControlRx(q *virtio.Queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.pending) > 0 {
		c := q.Pop()
		if c == nil {
			return
		}
		_, _ = c.Write(d.pending[0]) // cut where the driver's buffer is too small, which Linux's is not
		d.pending = d.pending[1:]
		q.Push(c, c.Filled())
	}
	d.pending = nil
	if d.session != nil {
		d.session.Queues[controlTx].Wake()
	}
}

// serveControlTx takes the guest's messages while there is room for answers.
func (d *Device) serveControlTx(q *virtio.Queue) {
	for d.room() {
		c := q.Pop()
		if c == nil {
			return
		}
		var m [messageSize]byte
		_, err := io.ReadFull(c, m[:])
		q.Push(c, 0)
		if err == nil {
			d.control(le.Uint32(m[:]), le.Uint16(m[4:]), le.Uint16(m[6:]))
		}
	}
}

func (d *Device) room() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.pending) < maxPending
}

// control acts on a message of the guest's.
func (d *Device) control(port uint32, event, value uint16) {
	if event == eventDeviceReady {
		if value == 1 {
			for i := range d.ports {
				d.send(newMessage(i, eventDeviceAdd, 1))
			}
		}
		return
	}
	if port >= uint32(len(d.ports)) {
		return
	}
	p := d.ports[port]
	switch event {
	case eventPortReady:
		p.setReady(value == 1)
	case eventPortOpen:
		p.setGuestOpen(value == 1)
	}
}
