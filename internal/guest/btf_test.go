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
	before         uint32 // bytes of the strings of the kernel, of a module's
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
	return w.before + uint32(off)
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
	b, err := ParseBTF(testBTF(), nil)
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

// testSplitBTF is that of a module on top of testBTF: its types and strings go on behind the kernel's.
func testSplitBTF() []byte {
	kernel, _ := ParseBTF(testBTF(), nil)
	w := btfWriter{next: uint32(kernel.Len() - 1), before: uint32(len(kernel.strings))}
	inner, _ := kernel.find("inner")
	w.add("of_module", kindStruct, 2, 16, w.str("own"), uint32(inner), 0, w.str("more"), uint32(inner), 64)
	return w.bytes()
}

func TestBTFOfAModuleGoesOnBehindTheKernels(t *testing.T) {
	kernel, err := ParseBTF(testBTF(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseBTF(testSplitBTF(), kernel)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		want       uint64
	}{{"of_module", "more.b", 12}, {"outer", "hidden.b", 12}} {
		if got, err := m.Offset(c.name, c.path); err != nil || got != c.want {
			t.Errorf("%s.%s is at %d, %v, want %d", c.name, c.path, got, err, c.want)
		}
	}
	if _, err := kernel.Offset("of_module", "own"); err == nil {
		t.Error("the kernel knows a module's struct")
	}
}

func FuzzBTF(f *testing.F) {
	f.Add(testBTF(), testSplitBTF())
	f.Fuzz(func(t *testing.T, blob, module []byte) {
		b, err := ParseBTF(blob, nil)
		if err != nil {
			return
		}
		every(b)
		if m, err := ParseBTF(module, b); err == nil {
			every(m)
		}
	})
}

// every asks for something of every type.
func every(b *BTF) {
	for id := range b.Len() {
		name := string(b.nameOf(id))
		b.Sizeof(name)
		b.Offset(name, "hidden.a")
		b.Offset(name, "mem[0].b")
	}
}
