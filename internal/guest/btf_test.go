package guest

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// btfWriter makes a BTF blob.
type btfWriter struct {
	types, strings bytes.Buffer
	next           uint32
}

func (w *btfWriter) str(s string) uint32 {
	if w.strings.Len() == 0 {
		w.strings.WriteByte(0)
	}
	if s == "" {
		return 0
	}
	off := w.strings.Len()
	w.strings.WriteString(s + "\x00")
	return uint32(off)
}

func (w *btfWriter) add(name string, kind, vlen int, size uint32, rest ...uint32) uint32 {
	for _, v := range append([]uint32{w.str(name), uint32(kind)<<24 | uint32(vlen), size}, rest...) {
		binary.Write(&w.types, binary.LittleEndian, v)
	}
	w.next++
	return w.next
}

func (w *btfWriter) bytes() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0x0001EB9F)
	for _, v := range []uint32{24, 0, uint32(w.types.Len()), uint32(w.types.Len()), uint32(w.strings.Len())} {
		b = le.AppendUint32(b, v)
	}
	return append(append(b, w.types.Bytes()...), w.strings.Bytes()...)
}

func testBTF() []byte {
	var w btfWriter
	integer := w.add("int", kindInt, 0, 4, 32)
	inner := w.add("inner", kindStruct, 2, 8, w.str("a"), integer, 0, w.str("b"), integer, 32)
	alias := w.add("inner_t", kindTypedef, 0, inner)
	anonymous := w.add("", kindUnion, 1, 8, w.str("hidden"), alias, 0)
	array := w.add("", kindArray, 0, 0, inner, integer, 4)
	w.add("outer", kindStruct, 3, 64, w.str("x"), integer, 0, w.str(""), anonymous, 64, w.str("mem"), array, 128)
	w.add("inner", kindStruct, 0, 0) // a smaller one of the same name loses
	return w.bytes()
}

func TestOffsetsThroughAnonymousNestedAndArrayMembers(t *testing.T) {
	b, err := ParseBTF(testBTF())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		want       uint64
	}{{"outer", "x", 0}, {"outer", "hidden", 8}, {"outer", "hidden.b", 12}, {"outer", "mem[0].b", 20}, {"inner", "b", 4}} {
		if got, err := b.Offset(c.name, c.path); err != nil || got != c.want {
			t.Errorf("%s.%s is at %d, %v, want %d", c.name, c.path, got, err, c.want)
		}
	}
	for _, path := range []string{"y", "x.z", "x[0]", "hidden.c"} {
		if off, err := b.Offset("outer", path); err == nil {
			t.Errorf("outer.%s is at %d", path, off)
		}
	}
	if n, err := b.Sizeof("inner"); err != nil || n != 8 {
		t.Errorf("sizeof inner = %d, %v", n, err)
	}
}

func FuzzBTF(f *testing.F) {
	f.Add(testBTF())
	f.Fuzz(func(t *testing.T, blob []byte) {
		b, err := ParseBTF(blob)
		if err != nil {
			return
		}
		for name := range b.structs {
			b.Sizeof(name)
			b.Offset(name, "hidden.a")
			b.Offset(name, "mem[0].b")
		}
	})
}
