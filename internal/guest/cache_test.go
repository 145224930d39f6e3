package guest

import (
	"bytes"
	"testing"
)

// flat is an image of its own bytes.
type flatImage []byte

func (m flatImage) view(off, n uint64) []byte {
	if off > uint64(len(m)) {
		return nil
	}
	return m[off:min(uint64(len(m)), off+n)]
}

func (m flatImage) read(off, n uint64) []byte { return bytes.Clone(m.view(off, n)) }

func (m flatImage) size() uint64 { return uint64(len(m)) }

// example is a kernel's image, and what was decoded of it.
func example() (flatImage, *decoded) {
	m := make(flatImage, 4096)
	for i := range m {
		m[i] = byte(i * 7)
	}
	own := NewSymbols([]Symbol{{Addr: 0x100, Type: 'T', Name: "first"}, {Addr: 0x200, Type: 't', Name: "second"}}).own
	return m, &decoded{table: own, index: span{1024, indexSize}, parts: []span{{1024, indexSize}, {2048, 64}}}
}

func TestOnlyTheKernelThatWasSeenIsTaken(t *testing.T) {
	m, d := example()
	dir := t.TempDir()
	if NewCache(dir).keepSymbols(m, d) == "" {
		t.Fatal("nothing was kept")
	}
	if got, _ := NewCache(dir).symbols(m, 0); got == nil || string(got.letters(1)) != "tsecond" {
		t.Fatalf("the second look finds %v", got)
	}
	for _, at := range []int{1024, 2048, 2111} {
		other := bytes.Clone(m)
		other[at]++
		if got, _ := NewCache(dir).symbols(flatImage(other), 0); got != nil {
			t.Errorf("a kernel that differs at %d is taken for the one that was kept", at)
		}
	}
}

func FuzzKeptFile(f *testing.F) {
	m, d := example()
	kept := &keptFile{numbers: []uint64{uint64(d.n), uint64(d.fixed), 0, 0, 2048, 64}, sections: [][]byte{d.addrs, d.ends, d.names, d.byName, m.read(2048, 64)}}
	f.Add(kept.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := decodeKept(b)
		if err != nil {
			return
		}
		if d, ok := file.symbols(m, 0); ok {
			s := Symbols{own: d.table, loaded: true}
			for range s.All() {
			}
			s.Lookup("second")
			s.At(0x150)
		}
	})
}
