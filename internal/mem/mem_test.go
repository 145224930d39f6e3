package mem

import (
	"bytes"
	"errors"
	"sync"
	"testing"
)

func newTest(t testing.TB, size uint64) *Memory {
	t.Helper()
	m, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// watcher records what it is told.
type watcher struct {
	mu      sync.Mutex
	code    []Region
	retrack []Addr
}

func (w *watcher) CodeWritten(a Addr, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.code = append(w.code, Region{Base: a, Size: uint64(n)})
}

func (w *watcher) Retrack(a Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retrack = append(w.retrack, a)
}

func TestRAMSkipsTheHoleBelow4GiB(t *testing.T) {
	m := newTest(t, uint64(HoleStart)+1<<20) // sparse: only what is touched takes memory
	for _, c := range []struct {
		a  Addr
		n  uint64
		in bool
	}{
		{0, 1, true}, {HoleStart - 1, 1, true}, {HoleStart - 1, 2, false}, {HoleStart, 1, false}, {HoleEnd - 1, 2, false},
		{HoleEnd, 1 << 20, true}, {HoleEnd, 1<<20 + 1, false}, {HoleEnd + 1<<20, 1, false}, {^Addr(0), 1, false}, {^Addr(0), 2, false},
		{8, ^uint64(0), false},
	} {
		if got := m.Contains(c.a, c.n); got != c.in {
			t.Errorf("Contains(%#x, %#x) = %v", uint64(c.a), c.n, got)
		}
	}
	if err := m.WriteAt([]byte("high"), HoleEnd+8); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if n, err := m.ReadPhys(p, HoleEnd+8); n != 4 || err != nil || string(p) != "high" {
		t.Errorf("ReadPhys: %q, %d, %v", p, n, err)
	}
	if n, err := m.ReadPhys(p, HoleStart-2); n != 2 || !errors.Is(err, ErrNotRAM) {
		t.Errorf("ReadPhys over the hole: %d, %v", n, err)
	}
	if err := m.WriteAt(p, HoleStart-2); !errors.Is(err, ErrNotRAM) {
		t.Errorf("WriteAt over the hole: %v", err)
	}
}

func TestSizesThatCannotBe(t *testing.T) {
	for _, size := range []uint64{0, 1, PageSize + 1} {
		if m, err := New(size); err == nil {
			m.Close()
			t.Errorf("New(%d) succeeds", size)
		}
	}
}

func TestAtomicAccessesOutsideRAMDoNothing(t *testing.T) {
	m := newTest(t, PageSize)
	m.Store64(PageSize, 1)
	m.Store32(HoleEnd, 1)
	m.Store16(PageSize-1, 1) // not aligned
	if v := m.Load64(PageSize); v != 0 {
		t.Errorf("Load64 outside of RAM = %d", v)
	}
	if m.CompareAndSwap64(PageSize, 0, 1) || m.CompareAndSwap32(2, 0, 1) {
		t.Error("a swap outside of RAM or unaligned succeeds")
	}
}

func TestStore16LeavesItsNeighbourAlone(t *testing.T) {
	m := newTest(t, PageSize)
	m.Store32(0, 0x11112222)
	m.Store16(2, 0xABCD)
	if v := m.Load32(0); v != 0xABCD2222 {
		t.Errorf("word = %#x", v)
	}
	m.Store16(0, 0x9876)
	if v := m.Load32(0); v != 0xABCD9876 || m.Load16(2) != 0xABCD {
		t.Errorf("word = %#x, upper half %#x", v, m.Load16(2))
	}
}

func TestEveryWriterIsSeenOnCodePages(t *testing.T) {
	m := newTest(t, 4*PageSize)
	w := &watcher{}
	m.Watch(w)
	m.MarkCode(PageSize + 5)
	m.MarkCode(PageSize) // once is enough
	if len(w.retrack) != 1 || w.retrack[0] != PageSize {
		t.Fatalf("retracked %v", w.retrack)
	}
	if !m.Tracked(PageSize+100) || m.Tracked(0) {
		t.Error("Tracked is wrong")
	}
	m.WriteAt(make([]byte, 2*PageSize), 10) // covers the page's neighbours too
	m.Store64(PageSize+8, 1)
	m.Store32(PageSize+8, 1)
	m.Store16(PageSize+8, 1)
	m.CompareAndSwap64(PageSize+8, 1, 2)
	m.Zero(PageSize, 4)
	m.WriteFunc(PageSize, 2, func([]byte) error { return nil })
	m.Store64(0, 1) // not code
	want := []Region{
		{Base: PageSize, Size: PageSize}, {Base: PageSize + 8, Size: 8}, {Base: PageSize + 8, Size: 4}, {Base: PageSize + 8, Size: 2},
		{Base: PageSize + 8, Size: 8}, {Base: PageSize, Size: 4}, {Base: PageSize, Size: 2},
	}
	if len(w.code) != len(want) {
		t.Fatalf("seen %v, want %v", w.code, want)
	}
	for i := range want {
		if w.code[i] != want[i] {
			t.Errorf("write %d: seen %v, want %v", i, w.code[i], want[i])
		}
	}
	m.ClearCode(PageSize)
	m.Store64(PageSize, 1)
	if len(w.code) != len(want) {
		t.Error("a write is reported after ClearCode")
	}
}

func TestLogFindsEveryWrittenPageOnce(t *testing.T) {
	m := newTest(t, uint64(HoleStart)+4*PageSize)
	m.Store64(0, 1) // before the log
	m.StartLog()
	m.Store64(2*PageSize, 1)
	m.WriteAt(make([]byte, 2), 5*PageSize-1)
	m.Store32(HoleEnd+PageSize, 1)
	take := func() (got []Addr) {
		m.TakeLog(func(a Addr) { got = append(got, a) })
		return got
	}
	want := []Addr{2 * PageSize, 4 * PageSize, 5 * PageSize, HoleEnd + PageSize}
	got := take()
	if len(got) != len(want) {
		t.Fatalf("log has %#x, want %#x", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("page %d: %#x, want %#x", i, uint64(got[i]), uint64(want[i]))
		}
	}
	if got := take(); len(got) != 0 {
		t.Errorf("a second look finds %#x", got)
	}
	m.Store64(2*PageSize, 2)
	if got := take(); len(got) != 1 {
		t.Errorf("a page written again: %#x", got)
	}
}

func FuzzAccessors(f *testing.F) {
	f.Add(uint64(0), uint16(8))
	f.Add(uint64(HoleEnd)-1, uint16(65535))
	f.Fuzz(func(t *testing.T, at uint64, n uint16) {
		m := newTest(t, 16*PageSize)
		p := bytes.Repeat([]byte{0xA5}, int(n))
		a := Addr(at)
		ok := m.Contains(a, uint64(n))
		if err := m.WriteAt(p, a); (err == nil) != ok {
			t.Fatalf("WriteAt: %v, Contains %v", err, ok)
		}
		q := make([]byte, n)
		if k, err := m.ReadPhys(q, a); ok && (k != int(n) || err != nil || !bytes.Equal(p, q)) {
			t.Fatalf("ReadPhys: %d, %v", k, err)
		}
		m.Load64(a)
		m.Store16(a, 1)
		m.Page(a)
		m.Written(a, int(n))
	})
}
