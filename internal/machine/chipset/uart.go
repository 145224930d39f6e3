package chipset

import (
	"encoding/gob"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"vitrine.dev/vitrine/internal/machine/bus"
)

// Bits of the 16550A's registers, by the names of its data sheet.
const (
	ierRX, ierTX, ierLine, ierModem = 1, 2, 4, 8

	iirNone    = 1
	iirTX      = 2
	iirRX      = 4
	iirLine    = 6
	iirTimeout = 0xC
	iirFIFO    = 0xC0

	lcrDLAB = 0x80

	mcrLoop = 0x10

	lsrData    = 1
	lsrOverrun = 2
	lsrTHRE    = 0x20
	lsrEmpty   = 0x40

	msrCarrier = 0xB0 // DCD, DSR, CTS

	uartFIFO = 16
	// uartOut is how much output may wait for its writer before the guest sees a transmitter that is busy.
	uartOut = 64 << 10
)

// A UART is a 16550A. Output goes to a writer by a goroutine of its own, so that a slow reader never stops a CPU: the transmitter
// is busy instead. Input is taken from Reader as the guest makes room. Interrupts do not need MCR's OUT2, as with QEMU.
type UART struct {
	irq     bus.Line
	dropped atomic.Uint64

	mu     sync.Mutex
	room   *sync.Cond // the receive FIFO has room, or closed
	work   *sync.Cond // out is not empty, or closed; drained when it is empty and idle
	s      uartState
	out    []byte
	idle   bool // the writer's goroutine has nothing in its hands
	closed bool
	done   chan struct{}
}

type uartState struct {
	IER, LCR, MCR, SCR, FCR, DLL, DLM uint8
	Delta                             uint8 // of MSR
	RX                                []uint8
	Overrun                           bool
	THRE                              bool // the transmitter's interrupt is pending
	Out                               []byte
}

// NewUART makes one that drives irq and writes to w, which may be nil. Close ends it.
func NewUART(irq bus.Line, w io.Writer) *UART {
	u := &UART{irq: irq, idle: true, done: make(chan struct{}), s: uartState{DLL: 12}}
	u.room, u.work = sync.NewCond(&u.mu), sync.NewCond(&u.mu)
	if w == nil {
		w = io.Discard
	}
	go u.write(w)
	return u
}

// Dropped counts output bytes that were lost because the guest wrote to a busy transmitter, or because the writer failed.
func (u *UART) Dropped() uint64 { return u.dropped.Load() }

// write carries output to w until Close.
func (u *UART) write(w io.Writer) {
	defer close(u.done)
	var chunk []byte
	u.mu.Lock()
	for {
		for len(u.out) == 0 && !u.closed {
			u.work.Wait()
		}
		if len(u.out) == 0 {
			u.mu.Unlock()
			return
		}
		full := !u.ready()
		chunk, u.out = u.out, chunk[:0]
		u.idle = false
		if full && !u.s.THRE { // there is room again
			u.s.THRE = true
			u.update()
		}
		u.mu.Unlock()
		if n, err := w.Write(chunk); err != nil {
			u.dropped.Add(uint64(len(chunk) - n))
		}
		u.mu.Lock()
		u.idle = true
		u.work.Broadcast()
	}
}

// Flush waits until all output is with the writer.
func (u *UART) Flush() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for (len(u.out) > 0 || !u.idle) && !u.closed {
		u.work.Wait()
	}
}

// Close writes what output there is and ends the goroutine; one that its writer does not let go within a second is left behind.
// Feed returns at its next byte.
func (u *UART) Close() {
	u.mu.Lock()
	u.closed = true
	u.work.Broadcast()
	u.room.Broadcast()
	u.mu.Unlock()
	select {
	case <-u.done:
	case <-time.After(time.Second):
	}
}

// Feed copies r to the guest until r ends or the UART is closed. It waits for the guest to take what it has.
func (u *UART) Feed(r io.Reader) error {
	buf := make([]byte, 256)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:max(n, 0)] {
			if !u.receive(b) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// receive waits for room and puts b into the receive FIFO.
func (u *UART) receive(b byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for !u.closed && (len(u.s.RX) >= u.depth() || u.s.MCR&mcrLoop != 0) {
		u.room.Wait()
	}
	if u.closed {
		return false
	}
	u.s.RX = append(u.s.RX, b)
	u.update()
	return true
}

func (u *UART) depth() int {
	if u.s.FCR&1 != 0 {
		return uartFIFO
	}
	return 1
}

// cause is IIR's low four bits: the pending interrupt with the highest priority.
func (u *UART) cause() uint8 {
	s := &u.s
	switch {
	case s.IER&ierLine != 0 && s.Overrun:
		return iirLine
	case s.IER&ierRX != 0 && len(s.RX) >= u.trigger():
		return iirRX
	case s.IER&ierRX != 0 && len(s.RX) > 0:
		return iirTimeout // at once: no character follows for sure
	case s.IER&ierTX != 0 && s.THRE:
		return iirTX
	case s.IER&ierModem != 0 && s.Delta != 0:
		return 0
	}
	return iirNone
}

func (u *UART) trigger() int {
	if u.s.FCR&1 == 0 {
		return 1
	}
	return [4]int{1, 4, 8, 14}[u.s.FCR>>6]
}

func (u *UART) update() { u.irq.Set(u.cause() != iirNone) }

// ready tells whether the transmitter takes a byte.
func (u *UART) ready() bool { return len(u.out) < uartOut }

// Read implements bus.Device for the eight ports.
func (u *UART) Read(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range p {
		p[i] = u.read(off + uint64(i))
	}
}

func (u *UART) read(off uint64) uint8 {
	s := &u.s
	switch off {
	case 0:
		if s.LCR&lcrDLAB != 0 {
			return s.DLL
		}
		if len(s.RX) == 0 {
			return 0
		}
		b := s.RX[0]
		s.RX = append(s.RX[:0], s.RX[1:]...)
		u.update()
		u.room.Signal()
		return b
	case 1:
		if s.LCR&lcrDLAB != 0 {
			return s.DLM
		}
		return s.IER
	case 2:
		c := u.cause()
		if c == iirTX { // reading it is its acknowledgement
			s.THRE = false
			u.update()
		}
		if s.FCR&1 != 0 {
			c |= iirFIFO
		}
		return c
	case 3:
		return s.LCR
	case 4:
		return s.MCR
	case 5:
		return u.lineStatus()
	case 6:
		v := u.modemStatus() | s.Delta
		s.Delta = 0
		u.update()
		return v
	case 7:
		return s.SCR
	}
	return 0xFF
}

func (u *UART) lineStatus() uint8 {
	var v uint8
	if len(u.s.RX) > 0 {
		v |= lsrData
	}
	if u.s.Overrun {
		v |= lsrOverrun
		u.s.Overrun = false
		u.update()
	}
	if u.ready() {
		v |= lsrTHRE | lsrEmpty
	}
	return v
}

// modemStatus is the upper half of MSR; in loopback the outputs of MCR come back there.
func (u *UART) modemStatus() uint8 {
	if u.s.MCR&mcrLoop == 0 {
		return msrCarrier
	}
	m := u.s.MCR
	return m&1<<5 | m&2<<3 | m&4<<4 | m&8<<4
}

// Write implements bus.Device for the eight ports.
func (u *UART) Write(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, v := range p {
		u.set(off+uint64(i), v)
	}
	u.update()
}

func (u *UART) set(off uint64, v uint8) {
	s := &u.s
	switch off {
	case 0:
		if s.LCR&lcrDLAB != 0 {
			s.DLL = v
			return
		}
		u.transmit(v)
	case 1:
		if s.LCR&lcrDLAB != 0 {
			s.DLM = v
			return
		}
		// Enabling the transmitter's interrupt while it is empty raises it.
		if v&ierTX != 0 && s.IER&ierTX == 0 && u.ready() {
			s.THRE = true
		}
		s.IER = v & 0xF
	case 2:
		if v&1 != s.FCR&1 || v&2 != 0 {
			s.RX, s.Overrun = s.RX[:0], false
			u.room.Signal()
		}
		s.FCR = v & 0xC9
	case 3:
		s.LCR = v
	case 4:
		was := u.modemStatus()
		s.MCR = v & 0x1F
		if now := u.modemStatus(); now != was {
			change := was ^ now
			s.Delta |= change >> 4 & 0xB
			if was&0x40 != 0 && now&0x40 == 0 {
				s.Delta |= 4 // trailing edge of RI
			}
		}
		u.room.Signal()
	case 7:
		s.SCR = v
	}
}

func (u *UART) transmit(b uint8) {
	s := &u.s
	s.THRE = false
	switch {
	case s.MCR&mcrLoop != 0:
		if len(s.RX) < u.depth() {
			s.RX = append(s.RX, b)
		} else {
			s.Overrun = true
		}
	case u.ready() && !u.closed:
		u.out = append(u.out, b)
		if len(u.out) == 1 {
			u.work.Broadcast()
		}
	default:
		u.dropped.Add(1)
	}
	if u.ready() {
		s.THRE = true
	}
}

// Save implements bus.Stateful.
func (u *UART) Save(enc *gob.Encoder) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.s.Out = u.out
	defer func() { u.s.Out = nil }()
	return enc.Encode(u.s)
}

// Load implements bus.Stateful.
func (u *UART) Load(dec *gob.Decoder) error {
	var s uartState
	if err := load(dec, "UART", &s); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.out = s.Out[:min(len(s.Out), uartOut)]
	s.Out, s.RX = nil, s.RX[:min(len(s.RX), uartFIFO)]
	u.s = s
	u.work.Broadcast()
	u.room.Broadcast()
	u.update()
	return nil
}
