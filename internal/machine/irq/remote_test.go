package irq

import (
	"bytes"
	"encoding/gob"
	"slices"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
)

// fakeChip is a backend's controllers that note what the wires do.
type fakeChip struct {
	hv.IRQChip
	levels []int // pin, negative for low
	merged bool
	state  []byte
}

func (f *fakeChip) SetLine(pin int, level bool) bool {
	if !level {
		pin = -pin
	}
	f.levels = append(f.levels, pin)
	return !f.merged
}
func (f *fakeChip) ChipState() ([]byte, error)  { return f.state, nil }
func (f *fakeChip) SetChipState(p []byte) error { f.state = p; return nil }

func TestWiresOfRemoteControllersAreSharedAndNumberedAsTheBoards(t *testing.T) {
	f := &fakeChip{}
	r := NewRemote(f)
	timer, a, b := r.ISA(0), r.GSI(17), r.GSI(17)
	timer.Set(true)
	a.Set(true)
	b.Set(true) // high already
	a.Set(false)
	b.Set(false)
	f.merged = true
	if r.ISA(4).(*input).Raise() {
		t.Error("an edge that merged counts as seen")
	}
	if want := []int{2, 17, -17, 4}; !slices.Equal(f.levels, want) {
		t.Errorf("pins %v, want %v", f.levels, want)
	}
}

func TestRemoteControllersAreCarriedOver(t *testing.T) {
	var buf bytes.Buffer
	if err := NewRemote(&fakeChip{state: []byte("state")}).Save(gob.NewEncoder(&buf)); err != nil {
		t.Fatal(err)
	}
	f := &fakeChip{}
	if err := NewRemote(f).Load(gob.NewDecoder(&buf)); err != nil || string(f.state) != "state" {
		t.Errorf("%q, %v", f.state, err)
	}
	if err := NewRemote(f).Load(gob.NewDecoder(bytes.NewReader(nil))); err == nil {
		t.Error("nothing is loaded without an error")
	}
}
