package mem

import (
	"bytes"
	"errors"
	"testing"
)

func TestFillWritesAllButPagesOfZeros(t *testing.T) {
	for _, c := range []struct {
		at Addr
		n  uint64
	}{{0x10000, 3 << 20}, {0x10123, 1 << 20}, {0x10FFF, 2}, {0x20000, 0}, {0x20008, 5000}, {0x3FF000, fillChunk + 1}} {
		m, err := New(8 << 20)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, c.n)
		for i := range want {
			if i/PageSize%3 != 1 {
				want[i] = byte(i*7 + i>>9)
			}
		}
		var log []Addr
		m.StartLog()
		if err := m.Fill(c.at, c.n, func(p []byte, off int64) error { copy(p, want[off:]); return nil }); err != nil {
			t.Fatal(err)
		}
		if c.n == 3<<20 && m.Huge() == HugeOff {
			if n, _ := m.Resident(); n != 2<<20 {
				t.Errorf("%d bytes are resident, want the two thirds that are not zero", n)
			}
		}
		got := make([]byte, c.n)
		if err := m.ReadAt(got, c.at); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %#x read otherwise (%v)", c.n, c.at, err)
		}
		m.TakeLog(func(a Addr) { log = append(log, a) })
		if pages := int((uint64(c.at)%PageSize + c.n + PageSize - 1) / PageSize); c.n > 0 && len(log) != pages {
			t.Errorf("%d bytes at %#x: %d pages in the log, want %d", c.n, c.at, len(log), pages)
		}
		m.Close()
	}
}

func TestFillSaysWhatWentWrong(t *testing.T) {
	m, err := New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	bad := errors.New("bad")
	if err := m.Fill(0, 10, func([]byte, int64) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("%v, want the reader's error", err)
	}
	if err := m.Fill(1<<20-5, 10, func([]byte, int64) error { return nil }); !errors.Is(err, ErrNotRAM) {
		t.Errorf("%v beyond RAM", err)
	}
}
