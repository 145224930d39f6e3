package pci

import (
	"bytes"
	"encoding/gob"
	"errors"
	"maps"
	"slices"
	"testing"

	"vitrine.dev/vitrine/internal/machine/bus"
	"vitrine.dev/vitrine/internal/machine/layout"
	"vitrine.dev/vitrine/internal/mem"
)

// testFunction has a 16 KiB BAR 0, a 64-bit BAR 2, MSI-X in BAR 1 and INTA.
type testFunction struct {
	config *Config
	msix   *MSIX
	ram    [16]byte
}

func (f *testFunction) Config() *Config             { return f.config }
func (f *testFunction) Save(enc *gob.Encoder) error { return enc.Encode(f.config.State()) }
func (f *testFunction) Load(dec *gob.Decoder) error {
	var s ConfigState
	if err := dec.Decode(&s); err != nil {
		return err
	}
	return f.config.SetState(s)
}
func (f *testFunction) Read(off uint64, p []byte) {
	clear(p)
	if off < 16 {
		copy(p, f.ram[off:])
	}
}
func (f *testFunction) Write(off uint64, p []byte) {
	if off < 16 {
		copy(f.ram[off:], p)
	}
}

type msiLog [][2]uint64

func (l *msiLog) SignalMSI(a uint64, d uint32) { *l = append(*l, [2]uint64{a, uint64(d)}) }

type level struct{ now, changes int }

func (l *level) Set(v bool) {
	l.changes++
	l.now = 0
	if v {
		l.now = 1
	}
}

type world struct {
	mmio, ports bus.Bus
	bus         *Bus
	lines       [layout.PCIIRQs]level
	msi         msiLog
}

func newWorld(t testing.TB, functions int) (*world, []*testFunction) {
	t.Helper()
	w := &world{}
	var lines [layout.PCIIRQs]bus.Line
	for i := range lines {
		lines[i] = &w.lines[i]
	}
	w.bus = New(&w.mmio, lines)
	if err := w.bus.MapPorts(&w.ports); err != nil {
		t.Fatal(err)
	}
	if err := w.bus.MapECAM(); err != nil {
		t.Fatal(err)
	}
	var fs []*testFunction
	for range functions {
		f := &testFunction{config: NewConfig(ID{Vendor: 0x1AF4, Device: 0x1044, Class: 0xFF00, Revision: 1})}
		f.config.AddBAR(0, 0x4000, false, f)
		f.msix = f.config.AddMSIX(1, 3, &w.msi)
		f.config.AddBAR(2, 0x1000, true, f)
		f.config.UseINTA()
		if _, err := w.bus.Attach(f); err != nil {
			t.Fatal(err)
		}
		fs = append(fs, f)
	}
	return w, fs
}

func (w *world) ecam(slot int, reg uint64) uint64 {
	return layout.ECAM + uint64(slot)<<15 + reg
}

func (w *world) r32(a uint64) uint32 {
	var p [4]byte
	w.mmio.Read(a, p[:])
	return le.Uint32(p[:])
}

func (w *world) w32(a uint64, v uint32) {
	w.mmio.Write(a, le.AppendUint32(nil, v))
}

func (w *world) w16(a uint64, v uint16) {
	w.mmio.Write(a, le.AppendUint16(nil, v))
}

func TestBothMechanismsReadTheSameSpace(t *testing.T) {
	w, _ := newWorld(t, 1)
	// Linux's probe (arch/x86/pci/direct.c, pci_check_type1) needs the byte write to go elsewhere and the address to read back.
	w.ports.Write(0xCFB, []byte{1})
	for slot, want := range []uint32{0x00081B36, 0x10441AF4, 0xFFFFFFFF} {
		w.ports.Write(0xCF8, le.AppendUint32(nil, 1<<31|uint32(slot)<<11))
		var back, p [4]byte
		w.ports.Read(0xCF8, back[:])
		if got := le.Uint32(back[:]); got != 1<<31|uint32(slot)<<11 {
			t.Errorf("address register = %#x", got)
		}
		w.ports.Read(0xCFC, p[:])
		if got := le.Uint32(p[:]); got != want {
			t.Errorf("slot %d: ports read %#x, want %#x", slot, got, want)
		}
		if got := w.r32(w.ecam(slot, 0)); got != want {
			t.Errorf("slot %d: ECAM reads %#x, want %#x", slot, got, want)
		}
		var half [2]byte
		w.ports.Read(0xCFE, half[:])
		if got := le.Uint16(half[:]); got != uint16(want>>16) {
			t.Errorf("slot %d: 0xCFE reads %#x, want %#x", slot, got, want>>16)
		}
	}
	if got := w.r32(w.ecam(1, 0) + 1<<12); got != 0xFFFFFFFF {
		t.Errorf("function 1 reads %#x", got)
	}
}

func TestBARIsSizedAndMoved(t *testing.T) {
	w, fs := newWorld(t, 1)
	reg := w.ecam(1, regBAR)
	at := w.r32(reg)
	if uint64(at) < layout.PCIMMIO || at%0x4000 != 0 {
		t.Fatalf("BAR 0 = %#x", at)
	}
	w.w32(uint64(at)+4, 0x12345678)
	if le.Uint32(fs[0].ram[4:]) != 0x12345678 {
		t.Error("a write to BAR 0 did not arrive")
	}
	w.w32(reg, 0xFFFFFFFF)
	if got := w.r32(reg); got != 0xFFFFC000 {
		t.Errorf("size probe reads %#x, want 0xFFFFC000", got)
	}
	w.w32(reg, 0xD0000000)
	if got := w.r32(0xD0000004); got != 0x12345678 {
		t.Errorf("moved BAR reads %#x", got)
	}
	if got := w.r32(uint64(at) + 4); got != 0xFFFFFFFF {
		t.Errorf("the old place reads %#x", got)
	}
	w.w16(w.ecam(1, regCommand), 0)
	if got := w.r32(0xD0000004); got != 0xFFFFFFFF {
		t.Errorf("disabled BAR reads %#x", got)
	}
	// 64 bits wide, above 4 GiB.
	w.w32(w.ecam(1, regBAR+8), 0)
	w.w32(w.ecam(1, regBAR+12), 0x8)
	w.w16(w.ecam(1, regCommand), cmdMemory)
	if got := w.r32(0x8_00000004); got != 0x12345678 {
		t.Errorf("64-bit BAR reads %#x", got)
	}
}

func TestOverlappingBARsWaitUntilTheOtherLeaves(t *testing.T) {
	w, fs := newWorld(t, 2)
	fs[0].ram[0], fs[1].ram[0] = 1, 2
	w.w32(w.ecam(1, regBAR), 0xD0000000)
	w.w32(w.ecam(2, regBAR), 0xD0000000)
	if got := w.r32(0xD0000000); got != 1 || w.bus.Conflicts() == 0 {
		t.Errorf("reads %d with %d conflicts, want the first function and a count", got, w.bus.Conflicts())
	}
	w.w32(w.ecam(1, regBAR), 0xD1000000)
	if a, b := w.r32(0xD0000000), w.r32(0xD1000000); a != 2 || b != 1 {
		t.Errorf("after the first moved: %d at the old place, %d at the new", a, b)
	}
	w.w32(w.ecam(2, regBAR), layout.ECAM) // over configuration space: refused
	if got := w.r32(w.ecam(0, 0)); got != 0x00081B36 {
		t.Errorf("ECAM hidden by a BAR: reads %#x", got)
	}
}

func findCap(w *world, slot int, id uint8) uint64 {
	for p := w.r32(w.ecam(slot, regCapPointer)) & 0xFF; p != 0; {
		v := w.r32(w.ecam(slot, uint64(p)))
		if uint8(v) == id {
			return w.ecam(slot, uint64(p))
		}
		p = v >> 8 & 0xFF
	}
	return 0
}

func TestMSIXMasksAndPends(t *testing.T) {
	w, fs := newWorld(t, 1)
	c := findCap(w, 1, capMSIX)
	if c == 0 {
		t.Fatal("no MSI-X capability")
	}
	if n := w.r32(c) >> 16 & 0x7FF; n != 2 {
		t.Errorf("table size field %d, want 2", n)
	}
	table := uint64(w.r32(w.ecam(1, regBAR+4)))
	pba := table + uint64(w.r32(c+8)&^7)
	for v := range uint64(3) {
		w.w32(table+16*v, 0xFEE01003)
		w.w32(table+16*v+8, uint32(0x40+v))
		w.w32(table+16*v+12, 0)
	}
	fs[0].msix.Signal(1)
	if len(w.msi) != 0 {
		t.Error("a vector came while MSI-X is off")
	}
	w.w16(c+2, msixEnable|msixFuncMask)
	fs[0].msix.Signal(1)
	if len(w.msi) != 0 || w.r32(pba) != 2 {
		t.Errorf("function masked: %d messages, PBA %#x, want 0 and 2", len(w.msi), w.r32(pba))
	}
	w.w16(c+2, msixEnable)
	if len(w.msi) != 1 || w.msi[0] != [2]uint64{0xFEE01000, 0x41} || w.r32(pba) != 0 {
		t.Errorf("unmasked: %#x, PBA %#x", w.msi, w.r32(pba))
	}
	w.w32(table+12, 1)
	fs[0].msix.Signal(0)
	fs[0].msix.Signal(0)
	fs[0].msix.Signal(99)
	if len(w.msi) != 1 || w.r32(pba) != 1 {
		t.Errorf("vector masked: %d messages, PBA %#x", len(w.msi), w.r32(pba))
	}
	w.w32(table+12, 0)
	if len(w.msi) != 2 || w.msi[1][1] != 0x40 {
		t.Errorf("vector unmasked: %#x", w.msi)
	}
}

// keeper is an MSI that keeps messages ready.
type keeper struct {
	msiLog
	ready []*kept
}

type kept struct {
	k      *keeper
	to     [2]uint64
	sets   int
	closed bool
}

func (k *keeper) NewMessage() bus.Message {
	k.ready = append(k.ready, &kept{k: k})
	return k.ready[len(k.ready)-1]
}

func (m *kept) Set(a uint64, d uint32) error {
	m.sets++
	m.to = [2]uint64{a, uint64(d)}
	if d == 0xBAD {
		return errors.New("not to be had")
	}
	return nil
}
func (m *kept) Send()        { m.k.SignalMSI(m.to[0], uint32(m.to[1])) }
func (m *kept) Close() error { m.closed = true; return nil }

func TestMSIXKeepsMessagesReady(t *testing.T) {
	w, k := &world{}, &keeper{}
	w.bus = New(&w.mmio, [layout.PCIIRQs]bus.Line{})
	f := &testFunction{config: NewConfig(ID{Vendor: 0x1AF4, Device: 0x1044})}
	f.msix = f.config.AddMSIX(1, 3, k)
	if err := w.bus.MapECAM(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.bus.Attach(f); err != nil {
		t.Fatal(err)
	}
	c, table := findCap(w, 1, capMSIX), uint64(w.r32(w.ecam(1, regBAR+4)))
	w.w32(table+16, 0xFEE01000)
	w.w32(table+24, 0x41)
	w.w32(table+28, 0)
	if len(k.ready) != 0 {
		t.Error("a message is ready while MSI-X is off")
	}
	w.w16(c+2, msixEnable)
	if len(k.ready) != 1 || k.ready[0].to != [2]uint64{0xFEE01000, 0x41} {
		t.Fatalf("%d messages are ready, want the one that is not masked", len(k.ready))
	}
	f.msix.Signal(1)
	if len(k.msiLog) != 1 || k.msiLog[0] != [2]uint64{0xFEE01000, 0x41} {
		t.Errorf("sent %#x", k.msiLog)
	}
	w.w32(table+28, 1)
	w.w32(table+16, 0xFEE02000) // the driver moves it to another CPU
	if k.ready[0].to[0] != 0xFEE01000 {
		t.Error("a masked vector was made ready")
	}
	f.msix.Signal(1)
	w.w32(table+28, 0)
	if len(k.msiLog) != 2 || k.msiLog[1] != [2]uint64{0xFEE02000, 0x41} {
		t.Errorf("sent %#x after it was unmasked", k.msiLog)
	}
	w.w32(table+24, 0xBAD)
	f.msix.Signal(1)
	if !k.ready[0].closed || len(k.msiLog) != 3 || k.msiLog[2] != [2]uint64{0xFEE02000, 0xBAD} {
		t.Errorf("what cannot be kept ready is not sent either: %#x", k.msiLog)
	}
	w.w32(table+24, 0x42)
	if err := w.bus.Close(); err != nil {
		t.Fatal(err)
	}
	for i, m := range k.ready {
		if !m.closed {
			t.Errorf("message %d is left", i)
		}
	}
}

// doorbells is where they hang.
type doorbells map[mem.Addr]int

func (d doorbells) AddDoorbell(a mem.Addr, fd int) error { d[a] = fd; return nil }
func (d doorbells) RemoveDoorbell(a mem.Addr, fd int) error {
	delete(d, a)
	return nil
}

// ringer is a function with a doorbell at 8 of its BAR 0.
type ringer struct{ testFunction }

func (r *ringer) UseDoorbells() error { r.config.AddDoorbell(0, 8, 77); return nil }

func TestDoorbellsFollowTheirBAR(t *testing.T) {
	w, d := &world{}, doorbells{}
	w.bus = New(&w.mmio, [layout.PCIIRQs]bus.Line{})
	w.bus.UseDoorbells(d)
	r := &ringer{testFunction{config: NewConfig(ID{Vendor: 0x1AF4, Device: 0x1044})}}
	r.config.AddBAR(0, 0x4000, false, r)
	if err := w.bus.MapECAM(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.bus.Attach(r); err != nil {
		t.Fatal(err)
	}
	hangs := func(want ...mem.Addr) {
		t.Helper()
		if got := slices.Collect(maps.Keys(d)); !slices.Equal(got, want) {
			t.Errorf("doorbells at %#x, want %#x", got, want)
		}
	}
	at := mem.Addr(w.r32(w.ecam(1, regBAR)))
	hangs(at + 8)
	w.w32(w.ecam(1, regBAR), uint32(at)+0x100000)
	hangs(at + 0x100008)
	w.w16(w.ecam(1, regCommand), 0) // memory decoding off
	hangs()
	w.w16(w.ecam(1, regCommand), cmdMemory)
	hangs(at + 0x100008)
	if err := w.bus.Close(); err != nil {
		t.Fatal(err)
	}
	hangs()
}

func TestINTxIsSharedAndCanBeDisabled(t *testing.T) {
	w, fs := newWorld(t, 9) // slots 1 and 9 share a pin
	l := &w.lines[layout.PCIPin(1, 1)-layout.PCIIRQ]
	fs[0].config.SetINTx(true)
	fs[8].config.SetINTx(true)
	fs[0].config.SetINTx(false)
	if l.now != 1 {
		t.Error("the line fell while slot 9 asserts it")
	}
	w.w16(w.ecam(9, regCommand), cmdMemory|cmdIntDisable)
	if st := w.r32(w.ecam(9, regCommand)) >> 16; l.now != 0 || st&statusInt == 0 {
		t.Errorf("disabled: line %d, status %#x; want 0 and the status bit", l.now, st)
	}
	w.w16(w.ecam(9, regCommand), cmdMemory)
	if l.now != 1 {
		t.Error("enabled again: the line stays low")
	}
	if got := w.r32(w.ecam(9, regIntLine)) & 0xFFFF; got != uint32(intA<<8|layout.PCIPin(9, 1)) {
		t.Errorf("interrupt line and pin = %#x", got)
	}
}

func TestSaveLoadKeepsBARsAndVectors(t *testing.T) {
	w, fs := newWorld(t, 2)
	w.w32(w.ecam(1, regBAR), 0xD0000000)
	c := findCap(w, 2, capMSIX)
	w.w16(c+2, msixEnable)
	fs[1].msix.Signal(2) // masked since reset: pends
	fs[0].config.SetINTx(true)
	var buf bytes.Buffer
	if err := w.bus.Save(gob.NewEncoder(&buf)); err != nil {
		t.Fatal(err)
	}
	first := bytes.Clone(buf.Bytes())
	w2, fs2 := newWorld(t, 2)
	if err := w2.bus.Load(gob.NewDecoder(&buf)); err != nil {
		t.Fatal(err)
	}
	fs2[0].ram[0] = 7
	if got := w2.r32(0xD0000000); got != 7 {
		t.Errorf("the moved BAR reads %d after Load", got)
	}
	if !fs2[1].msix.Enabled() || w2.lines[layout.PCIPin(1, 1)-layout.PCIIRQ].now != 1 {
		t.Error("MSI-X or the INTx line is off after Load")
	}
	var again bytes.Buffer
	if err := w2.bus.Save(gob.NewEncoder(&again)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, again.Bytes()) {
		t.Error("a second Save differs")
	}
	w3, _ := newWorld(t, 1)
	if err := w3.bus.Load(gob.NewDecoder(bytes.NewReader(first))); err == nil {
		t.Error("a state of other slots loaded")
	}
}

// FuzzAccess writes garbage to configuration space and BARs: each 7 bytes are a place, an offset and a value.
func FuzzAccess(f *testing.F) {
	f.Add([]byte{0, 4, 0, 0xFF, 0xFF, 0, 0, 1, 0x10, 0, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, in []byte) {
		w, fs := newWorld(t, 2)
		for i := 0; len(in) >= 7 && i < 64; i, in = i+1, in[7:] {
			off, v := uint64(le.Uint16(in[1:])), in[3:7]
			var p [8]byte
			n := 1 << (in[0] >> 6)
			copy(p[:], v)
			switch in[0] % 4 {
			case 0:
				w.mmio.Write(layout.ECAM+off, p[:n])
				w.mmio.Read(layout.ECAM+off, p[:n])
			case 1:
				w.ports.Write(0xCF8+off%8, p[:n])
				w.ports.Read(0xCF8+off%8, p[:n])
			case 2:
				w.mmio.Write(layout.PCIMMIO+off, p[:n])
				w.mmio.Read(layout.PCIMMIO+off, p[:n])
			case 3:
				fs[in[1]&1].msix.Signal(int(in[2]))
				fs[in[1]&1].config.SetINTx(in[2]&1 != 0)
			}
		}
		var buf bytes.Buffer
		if err := w.bus.Save(gob.NewEncoder(&buf)); err != nil {
			t.Fatal(err)
		}
		w2, _ := newWorld(t, 2)
		if err := w2.bus.Load(gob.NewDecoder(&buf)); err != nil {
			t.Fatalf("a state that was reached does not load: %v", err)
		}
	})
}
