package pci

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/machine/bus"
)

// Bits of MSI-X's message control and of an entry's vector control (PCI Local Bus 3.0 section 6.8.2).
const (
	msixEnable     = 1 << 15
	msixFuncMask   = 1 << 14
	msixMasked     = 1
	msixMaxVectors = 2048
)

// MSIX is a function's MSI-X capability: the table, and the vectors that wait to be unmasked.
type MSIX struct {
	n       int
	cap     int // offset of the capability
	msi     bus.MSI
	enabled atomic.Bool

	mu      sync.Mutex // taken after Config.mu
	control uint16
	table   []byte
	pending []byte        // the PBA: a bit a vector, whole 64-bit words
	ready   []bus.Message // what the vectors that were unmasked send, where the machine keeps messages ready; else nil
}

// AddMSIX gives the function n interrupt vectors. The table and, in the second half, the PBA are all of BAR i.
func (c *Config) AddMSIX(i, n int, msi bus.MSI) *MSIX {
	if n < 1 || n > msixMaxVectors {
		panic(fmt.Sprintf("BUG: pci: %d MSI-X vectors", n))
	}
	m := &MSIX{n: n, msi: msi, table: make([]byte, n*msixTableEntry), pending: make([]byte, (n+63)/64*8), ready: make([]bus.Message, n)}
	for v := range n {
		m.table[v*msixTableEntry+12] = msixMasked
	}
	half := uint64(2048)
	for half < uint64(len(m.table)) {
		half *= 2
	}
	var body [10]byte
	le.PutUint16(body[0:], uint16(n-1))
	le.PutUint32(body[2:], uint32(i))
	le.PutUint32(body[6:], uint32(half)|uint32(i))
	m.cap = c.AddCapability(capMSIX, body[:])
	c.mask[m.cap+3] = (msixEnable | msixFuncMask) >> 8
	c.AddBAR(i, 2*half, false, &msixBAR{m, half})
	c.msix = m
	return m
}

// Enabled tells whether the guest chose MSI-X, so that INTx must not be used.
func (m *MSIX) Enabled() bool { return m.enabled.Load() }

// Vectors is how many there are.
func (m *MSIX) Vectors() int { return m.n }

// Signal sends vector v, or keeps it pending while it is masked. It does nothing while MSI-X is off.
func (m *MSIX) Signal(v int) {
	if v < 0 || v >= m.n {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.control&msixEnable == 0 {
		return
	}
	m.pending[v/8] |= 1 << (v % 8)
	m.deliver(v)
}

// deliver sends v if it is pending and nothing masks it. m.mu is held: a vector whose mask was read back does not come any more.
func (m *MSIX) deliver(v int) {
	e := m.table[v*msixTableEntry:]
	if m.pending[v/8]&(1<<(v%8)) == 0 || m.control&(msixEnable|msixFuncMask) != msixEnable || e[12]&msixMasked != 0 {
		return
	}
	m.pending[v/8] &^= 1 << (v % 8)
	if r := m.ready[v]; r != nil {
		r.Send()
		return
	}
	m.msi.SignalMSI(le.Uint64(e), le.Uint32(e[8:]))
}

// prepare has v's message ready, if v can be sent now. m.mu is held.
func (m *MSIX) prepare(v int) {
	e := m.table[v*msixTableEntry:]
	if m.control&msixEnable == 0 || e[12]&msixMasked != 0 {
		return
	}
	if m.ready[v] == nil {
		if k, ok := m.msi.(bus.Messenger); ok {
			m.ready[v] = k.NewMessage()
		}
	}
	if r := m.ready[v]; r != nil && r.Set(le.Uint64(e), le.Uint32(e[8:])) != nil {
		r.Close()
		m.ready[v] = nil
	}
}

// close frees the messages.
func (m *MSIX) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for v, r := range m.ready {
		if r != nil {
			errs = append(errs, r.Close())
			m.ready[v] = nil
		}
	}
	return errors.Join(errs...)
}

func (m *MSIX) setControl(control uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if control == m.control {
		return
	}
	m.control = control
	m.enabled.Store(control&msixEnable != 0)
	for v := range m.n {
		m.prepare(v)
		m.deliver(v)
	}
}

// msixBAR is the memory of the table and the PBA.
type msixBAR struct {
	*MSIX
	pba uint64
}

// Read implements [bus.Device].
func (m *msixBAR) Read(off uint64, p []byte) {
	clear(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case off < uint64(len(m.table)):
		copy(p, m.table[off:])
	case off >= m.pba && off-m.pba < uint64(len(m.pending)):
		copy(p, m.pending[off-m.pba:])
	}
}

// Write implements [bus.Device]. The PBA is read-only.
func (m *msixBAR) Write(off uint64, p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= uint64(len(m.table)) {
		return
	}
	k := copy(m.table[off:], p)
	for v := int(off) / msixTableEntry; v <= (int(off)+k-1)/msixTableEntry; v++ {
		m.table[v*msixTableEntry] &^= 3 // message address bits 0 and 1 are zero
		clear(m.table[v*msixTableEntry+13 : (v+1)*msixTableEntry])
		m.table[v*msixTableEntry+12] &= msixMasked
		m.prepare(v)
		m.deliver(v)
	}
}

// MSIXState is an MSIX to be carried over; the control word is in the configuration space.
type MSIXState struct {
	Table, Pending []byte
}

func (m *MSIX) state() MSIXState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MSIXState{append([]byte(nil), m.table...), append([]byte(nil), m.pending...)}
}

func (m *MSIX) setState(s MSIXState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(s.Table) != len(m.table) || len(s.Pending) != len(m.pending) {
		return fmt.Errorf("pci: MSI-X table of %d bytes, here %d", len(s.Table), len(m.table))
	}
	copy(m.table, s.Table)
	copy(m.pending, s.Pending)
	for v := range m.n {
		m.prepare(v)
	}
	return nil
}
