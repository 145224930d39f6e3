package guest

import (
	"slices"
	"testing"
)

// mapleNode writes a node: pivots, then slots behind the room for all pivots.
func (f *fake) mapleNode(kind, slots int, pivots, entries []uint64) uint64 {
	f.next = (f.next + 255) &^ 255
	at := f.alloc(mapleNodeSize)
	for i, p := range pivots {
		put(f.m, at-direct+8+8*uint64(i), p)
	}
	for i, e := range entries {
		put(f.m, at-direct+8*uint64(slots)+8*uint64(i), e)
	}
	return at | uint64(kind)<<3
}

func TestMapleTreeIsWalkedInOrder(t *testing.T) {
	f := newFake(1 << 20)
	vma := func(i uint64) uint64 { return direct + 0x80000 + i<<8 }
	full := make([]uint64, rangeSlots)
	for i := range full {
		full[i] = vma(uint64(i) + 3)
	}
	pivots := make([]uint64, rangeSlots-1)
	for i := range pivots {
		pivots[i] = 0x3000 + uint64(i)<<12
	}
	left := f.mapleNode(mapleLeaf64, rangeSlots, []uint64{0xFFF, 0x1FFF, 0x2FFF}, []uint64{0, vma(1), vma(2), 0xBAD0 /* behind the last pivot */})
	right := f.mapleNode(mapleLeaf64, rangeSlots, pivots, full)
	root := f.mapleNode(mapleArange64, arangeSlots, []uint64{0x2FFF}, []uint64{left, right})
	all, err := f.maple(root|2, 100)
	var want []uint64
	for i := range uint64(18) {
		want = append(want, vma(i+1))
	}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%#x, %v, want %#x", all, err, want)
	}
	if _, err := f.maple(root|2, 5); err == nil {
		t.Error("the bound of 5 is not kept")
	}
	// A node below itself.
	put(f.m, root&^0xFF-direct+8*arangeSlots+8, root)
	if all, err := f.maple(root|2, 100); err == nil {
		t.Errorf("a loop: %d entries", len(all))
	}
}

func TestMapleTreeOfOneEntryOrNone(t *testing.T) {
	f := newFake(1 << 16)
	if all, err := f.maple(0, 10); err != nil || len(all) != 0 {
		t.Errorf("empty: %v, %v", all, err)
	}
	if all, err := f.maple(direct+0x4000, 10); err != nil || len(all) != 1 {
		t.Errorf("one: %v, %v", all, err)
	}
}

// FuzzMaple walks a tree whose nodes hold what the fuzzer puts there.
func FuzzMaple(f *testing.F) {
	k := newFake(1 << 16)
	leaf := k.mapleNode(mapleLeaf64, rangeSlots, []uint64{0xFFF}, []uint64{direct + 0x8000, direct + 0x8100})
	root := k.mapleNode(mapleArange64, arangeSlots, []uint64{0x2FFF}, []uint64{leaf})
	f.Add(k.m.ram[0x3000:k.next], root-direct|2)
	f.Fuzz(func(t *testing.T, data []byte, root uint64) {
		const limit = 1000
		k := newFake(1 << 16)
		copy(k.m.ram[0x3000:], data)
		k.pointers(0x3000)
		all, err := k.maple(direct+root%(1<<16), limit)
		if len(all) > limit {
			t.Errorf("%d entries, %v; the bound is %d", len(all), err, limit)
		}
		for _, a := range all {
			if a < kernelHalf || a&3 != 0 {
				t.Errorf("%#x is taken for an address", a)
			}
		}
	})
}
