package decompress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// packers are the tools and flags that Linux's scripts/Makefile.lib packs kernels with, and Debian and Fedora modules.
var packers = []struct{ name, cmd string }{
	{"gzip", "gzip -n -9"},
	{"bzip2", "bzip2 -9"},
	{"lzma", "lzma -9"},
	{"xz", "xz --check=crc32 --x86 --lzma2=dict=32MiB"},
	{"xz module", "xz --check=crc32 --lzma2=dict=1MiB"},
	{"lzop", "lzop -9"},
	{"lz4", "lz4 -l -9 - -"},
	{"zstd", "zstd -q -22 --ultra"},
	{"zstd module", "zstd -q -19"},
}

// sample is what compresses in many ways: text, machine code, zeros, noise.
func sample(t testing.TB) []byte {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	p := append([]byte(nil), exe[:min(len(exe), 1<<19)]...)
	p = append(p, make([]byte, 1<<19)...)
	x := uint32(1)
	for range 100_000 {
		x = x*1664525 + 1013904223
		p = append(p, byte(x>>24))
	}
	for i := range 50_000 {
		p = fmt.Appendf(p, "line %d of %d\n", i, i*i)
	}
	return bytes.Repeat(p, 5)[:9<<20]
}

func pack(t testing.TB, cmd string, p []byte) []byte {
	t.Helper()
	args := strings.Fields(cmd)
	if _, err := exec.LookPath(args[0]); err != nil {
		if os.Getenv("VITRINE_TEST_FULL") == "1" {
			t.Fatalf("%s is not installed", args[0])
		}
		t.Skipf("%s is not installed", args[0])
	}
	c := exec.Command(args[0], args[1:]...)
	c.Stdin = bytes.NewReader(p)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return out
}

func TestReadsWhatThePackersOfKernelsWrite(t *testing.T) {
	whole := sample(t)
	for _, p := range packers {
		t.Run(p.name, func(t *testing.T) {
			want := whole[:2<<20]
			if p.name == "lz4" {
				want = whole // more than one block
			}
			packed := pack(t, p.cmd, want)
			got, err := All(packed, int64(len(want)))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v; want %d bytes, nil", len(got), err, len(want))
			}
			if _, err := All(packed, int64(len(want))-1); err == nil {
				t.Error("limit one less than the content: no error")
			}
			if f, _ := Detect(packed[:9]); !strings.HasPrefix(p.name, f.Name) {
				t.Errorf("Detect says %q", f.Name)
			}
		})
	}
}

func TestTruncatedIsAnError(t *testing.T) {
	want := sample(t)[:1<<20]
	for _, p := range packers {
		t.Run(p.name, func(t *testing.T) {
			packed := pack(t, p.cmd, want)
			for _, n := range []int{9, 20, len(packed) / 2, len(packed) - 9} {
				if got, err := All(packed[:n], 1<<30); err == nil && len(got) >= len(want) {
					t.Errorf("first %d of %d bytes: all %d came out", n, len(packed), len(got))
				}
			}
		})
	}
}

func TestUnknownFormIsErrFormat(t *testing.T) {
	for _, p := range []string{"", "\x1f", "\x7fELF and more"} {
		if _, err := All([]byte(p), 10); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v, want ErrFormat", p, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	small := bytes.Repeat([]byte("a kernel, a kernel, a module. "), 40)
	for _, p := range packers {
		args := strings.Fields(p.cmd)
		if _, err := exec.LookPath(args[0]); err == nil {
			f.Add(pack(f, p.cmd, small))
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := NewReader(bytes.NewReader(p))
		if err != nil {
			return
		}
		if n, _ := io.Copy(io.Discard, io.LimitReader(r, 1<<24)); n > 1<<24 {
			t.Errorf("%d bytes", n)
		}
	})
}
