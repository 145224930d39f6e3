package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// makeModule is a relocatable ELF file that has a .modinfo section only.
func makeModule(info ...string) []byte {
	le := binary.LittleEndian
	modinfo := strings.Join(info, "\x00") + "\x00"
	const names = "\x00.modinfo\x00.shstrtab\x00"
	p := make([]byte, 64)
	copy(p, "\x7fELF\x02\x01\x01")
	le.PutUint16(p[16:], 1)
	le.PutUint16(p[18:], 62)
	p = append(append(p, modinfo...), names...)
	le.PutUint64(p[40:], uint64(len(p)))
	le.PutUint16(p[58:], 64)
	le.PutUint16(p[60:], 3)
	le.PutUint16(p[62:], 2)
	for _, s := range []struct{ name, off, size int }{{}, {1, 64, len(modinfo)}, {10, 64 + len(modinfo), len(names)}} {
		h := make([]byte, 64)
		le.PutUint32(h, uint32(s.name))
		le.PutUint64(h[24:], uint64(s.off))
		le.PutUint64(h[32:], uint64(s.size))
		p = append(p, h...)
	}
	return p
}

func write(t testing.TB, dir, name string, p []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, p, 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree is a modules tree: a needs b and c-d, b needs e, c-d has a softdep on f before and g after it, h needs what is absent.
func tree(t testing.TB) string {
	dir := t.TempDir()
	zw, _ := zstd.NewWriter(nil)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(makeModule("name=e", "depends="))
	w.Close()
	write(t, dir, "modules.builtin", []byte("kernel/drivers/virtio/built-in-one.ko\n"))
	write(t, dir, "modules.order", []byte("kernel/a.ko\nkernel/x/b.ko\nkernel/c-d.ko\nkernel/e.ko\nkernel/f.ko\nkernel/gone.ko\n"))
	write(t, dir, "kernel/a.ko", makeModule("license=GPL", "depends=b,c-d,built_in_one", "name=a"))
	write(t, dir, "kernel/x/b.ko.zst", zw.EncodeAll(makeModule("depends=e"), nil))
	write(t, dir, "kernel/c-d.ko", makeModule("softdep=pre: f nothing post: g", "depends="))
	write(t, dir, "kernel/e.ko.gz", gz.Bytes())
	write(t, dir, "kernel/f.ko", makeModule("depends=a")) // a loop
	write(t, dir, "extra/g.ko", makeModule("depends="))   // in no list
	write(t, dir, "kernel/h.ko", makeModule("depends=absent"))
	return dir
}

func TestClosureIsInLoadOrder(t *testing.T) {
	for _, c := range []struct {
		names         []string
		load, missing string
	}{
		{[]string{"a"}, "e b f c_d g a", ""},
		{[]string{"e", "b"}, "e b", ""},
		{[]string{"c_d"}, "", ""},
		{[]string{"built_in_one", "built-in-one"}, "", ""},
		{[]string{"h"}, "h", "absent (for h)"},
		{[]string{"no-such", "gone", "e"}, "e", "no_such gone"},
	} {
		m, err := OpenModules(tree(t), "")
		if err != nil {
			t.Fatal(err)
		}
		load, missing, err := m.Closure(c.names)
		var names []string
		for _, l := range load {
			names = append(names, l.Name)
			if !bytes.HasPrefix(l.Data, []byte("\x7fELF")) {
				t.Errorf("%s is not decompressed", l.Name)
			}
		}
		if c.names[0] == "c_d" { // the loop c_d, f, a, c_d ends, whatever the order
			slices.Sort(names)
			c.load = "a b c_d e f g"
		}
		if err != nil || strings.Join(names, " ") != c.load || strings.Join(missing, " ") != c.missing {
			t.Errorf("%v: load %v, missing %v, %v; want %q, %q", c.names, names, missing, err, c.load, c.missing)
		}
	}
}

func TestModulesAreFoundBelowTheirInstallPath(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "lib/modules/6.1.0-a/kernel/one.ko", makeModule())
	write(t, dir, "lib/modules/6.1.0-b/kernel/two.ko", makeModule())
	m, err := OpenModules(dir, "6.1.0-b")
	if err != nil || !m.Has("two") || m.Has("one") {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestDirectoryWithoutModulesIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "absent")} {
		if _, err := OpenModules(d, ""); err == nil || !strings.Contains(err.Error(), d) {
			t.Errorf("%s: %v", d, err)
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(makeModule("depends=a,b", "softdep=pre: x"))
	f.Fuzz(func(t *testing.T, p []byte) { parseModinfo(p) })
}
