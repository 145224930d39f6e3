package chipset

import (
	"encoding/gob"
	"sync"

	"vitrine.dev/vitrine/internal/machine/bus"
)

// Bits of the i8042's status and configuration.
const (
	kbdOutFull  = 1 << 0
	kbdSelfTest = 1 << 2
	kbdCommand  = 1 << 3
	kbdUnlocked = 1 << 4

	kbdConfigIRQ     = 1 << 0
	kbdConfigOff     = 1 << 4
	kbdConfigAuxOff  = 1 << 5
	kbdConfigInitial = 0x61 // interrupt 1, translation, no auxiliary port

	kbdQueue = 16
)

// An I8042 is the keyboard controller, there because a kernel that probes for an absent one waits half a second, and because writing
// 0xFE to it is a way to reboot. A keyboard answers all commands at once and sends no keys. There is no auxiliary port:
// its tests fail, so that no driver looks for a mouse.
type I8042 struct {
	irq   bus.Line
	reset func()

	mu sync.Mutex
	s  i8042State
}

type i8042State struct {
	Status, Config, OutPort uint8
	Queue                   []uint8 // what port 0x60 will give
	Command                 uint8   // of the controller, waits for its parameter
	Keyboard                uint8   // the same of the keyboard
}

// NewI8042 makes one; reset is called by command 0xFE and by the output port's reset line.
func NewI8042(irq bus.Line, reset func()) *I8042 {
	return &I8042{irq: irq, reset: reset, s: i8042State{Status: kbdUnlocked | kbdSelfTest, Config: kbdConfigInitial, OutPort: 0xCF}}
}

// Data is port 0x60.
func (k *I8042) Data() bus.Device { return kbdPort{k, true} }

// Control is port 0x64.
func (k *I8042) Control() bus.Device { return kbdPort{k, false} }

type kbdPort struct {
	k    *I8042
	data bool
}

func (d kbdPort) Read(_ uint64, p []byte) {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.status()
	if d.data {
		v = 0
		if len(k.s.Queue) > 0 {
			v, k.s.Queue = k.s.Queue[0], k.s.Queue[1:]
		}
		k.irq.Set(false) // each byte is an edge
		k.update()
	}
	putLE(p, 0, uint64(v))
}

func (k *I8042) status() uint8 {
	v := k.s.Status
	if len(k.s.Queue) > 0 {
		v |= kbdOutFull
	}
	return v
}

func (d kbdPort) Write(_ uint64, p []byte) {
	k := d.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if d.data {
		k.s.Status &^= kbdCommand
		k.write(p[0])
	} else {
		k.s.Status |= kbdCommand
		k.command(p[0])
	}
	k.update()
}

func (k *I8042) update() { k.irq.Set(len(k.s.Queue) > 0 && k.s.Config&kbdConfigIRQ != 0) }

// put queues bytes for port 0x60; those that find no room are lost, as on the wire.
func (k *I8042) put(b ...uint8) {
	k.s.Queue = append(k.s.Queue, b...)
	k.s.Queue = k.s.Queue[:min(len(k.s.Queue), kbdQueue)]
}

// command is a write to port 0x64.
func (k *I8042) command(v uint8) {
	k.s.Command = 0
	switch v {
	case 0x20:
		k.put(k.s.Config)
	case 0xA7:
		k.s.Config |= kbdConfigAuxOff
	case 0xA8: // the auxiliary port stays off
	case 0xA9:
		k.put(0x02) // its clock line is stuck high
	case 0xAA:
		k.s.Queue = nil
		k.s.Status |= kbdSelfTest
		k.put(0x55)
	case 0xAB:
		k.put(0)
	case 0xAD:
		k.s.Config |= kbdConfigOff
	case 0xAE:
		k.s.Config &^= kbdConfigOff
	case 0xC0:
		k.put(0x80) // keyboard not locked
	case 0xD0:
		k.put(k.s.OutPort)
	case 0x60, 0xD1, 0xD2, 0xD3, 0xD4:
		k.s.Command = v
	default:
		if v >= 0xF0 && v&1 == 0 { // pulses output lines; line 0 is reset
			k.reset()
		}
	}
}

// write is a write to port 0x60.
func (k *I8042) write(v uint8) {
	c := k.s.Command
	k.s.Command = 0
	switch c {
	case 0x60:
		k.s.Config = v | kbdConfigAuxOff
	case 0xD1:
		k.s.OutPort = v
		if v&1 == 0 {
			k.reset()
		}
	case 0xD2:
		k.put(v)
	case 0xD3: // the loop test: answered as a keyboard's byte, which says that there is no auxiliary port
		k.put(v)
	case 0xD4:
		k.put(0xFE) // nobody there to send to
	default:
		k.keyboard(v)
	}
}

// keyboard answers as an AT keyboard does.
func (k *I8042) keyboard(v uint8) {
	const ack, resend = 0xFA, 0xFE
	c := k.s.Keyboard
	k.s.Keyboard = 0
	if c != 0 { // the parameter of lights, scan code set, rate
		k.put(ack)
		if c == 0xF0 && v == 0 {
			k.put(2)
		}
		return
	}
	switch v {
	case 0xED, 0xF0, 0xF3:
		k.s.Keyboard = v
		k.put(ack)
	case 0xEE:
		k.put(0xEE)
	case 0xF2:
		k.put(ack, 0xAB, 0x83)
	case 0xF4, 0xF5, 0xF6:
		k.put(ack)
	case 0xFF:
		k.s.Queue = nil
		k.put(ack, 0xAA)
	default:
		k.put(resend)
	}
}

// Save implements bus.Stateful.
func (k *I8042) Save(enc *gob.Encoder) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return enc.Encode(k.s)
}

// Load implements bus.Stateful.
func (k *I8042) Load(dec *gob.Decoder) error {
	var s i8042State
	if err := load(dec, "i8042", &s); err != nil {
		return err
	}
	s.Queue = s.Queue[:min(len(s.Queue), kbdQueue)]
	k.mu.Lock()
	defer k.mu.Unlock()
	k.s = s
	k.update()
	return nil
}
