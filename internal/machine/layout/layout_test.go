package layout

import "testing"

func TestE820IsAscendingAndHoldsAllRAM(t *testing.T) {
	for _, ram := range []uint64{1 << 20, 64 << 20, 3 << 30, 3<<30 + 4096, 16 << 30} {
		var end, sum uint64
		for _, e := range E820(ram) {
			if e.Base < end || e.Size == 0 {
				t.Errorf("ram %#x: entry %+v begins before %#x or is empty", ram, e, end)
			}
			end = e.Base + e.Size
			if e.Type == RAM {
				sum += e.Size
			}
		}
		if want := ram - (HighRAM - EBDA); sum != want {
			t.Errorf("ram %#x: usable %#x, want %#x", ram, sum, want)
		}
	}
}

func TestPCI64LiesAboveRAM(t *testing.T) {
	for _, c := range []struct{ ram, base uint64 }{{64 << 20, 32 << 30}, {16 << 30, 32 << 30}, {31<<30 + 1<<20, 64 << 30}} {
		if base, _ := PCI64(c.ram); base != c.base {
			t.Errorf("PCI64(%#x) = %#x, want %#x", c.ram, base, c.base)
		}
	}
}
