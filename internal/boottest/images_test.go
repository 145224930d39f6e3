package boottest

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/kernel/decompress"
	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/machine/boot"
	"vitrine.dev/vitrine/internal/mem"
)

// Fields of a bzImage's header (Documentation/arch/x86/boot.rst).
const (
	setupSects    = 0x1F1
	xloadflags    = 0x236
	payloadOffset = 0x248
	payloadLength = 0x24C
)

var (
	//go:embed testdata/multiboot.bin
	multibootImage []byte
	//go:embed testdata/pvh.elf
	pvhImage []byte
)

func TestImagesOfOtherProtocolsBoot(t *testing.T) {
	for _, c := range []struct {
		image    []byte
		protocol boot.Protocol
		end      machine.Exit
		says     string
	}{
		{multibootImage, boot.Multiboot, machine.Exit{Reason: machine.DebugExit, Status: 33},
			"multiboot: kernel a=b c; module: what the module holds\n"},
		{pvhImage, boot.PVH, machine.Exit{Reason: machine.PowerOff}, "pvh: a=b c; module: what the module holds\n"},
	} {
		t.Run(string(c.protocol), func(t *testing.T) {
			on(t, func(t *testing.T, b hv.Backend) {
				o := guest{backend: b, kernel: boot.Bytes("kernel", c.image), cpus: 2, mib: 64, append: "a=b c",
					initrd: []*boot.Image{boot.Bytes("module", []byte("what the module holds"))}}.run(t)
				if o.Exit != c.end || o.console != c.says || o.facts.Protocol != c.protocol {
					t.Errorf("it ended by %+v, said %q and was booted by %s; want %+v, %q, %s", o.Exit, o.console, o.facts.Protocol, c.end, c.says, c.protocol)
				}
			})
		})
	}
}

// vmlinux is a bzImage's payload.
func vmlinux(t *testing.T, bz []byte) *boot.Image {
	t.Helper()
	le := binary.LittleEndian
	start := (int(bz[setupSects])+1)*512 + int(le.Uint32(bz[payloadOffset:]))
	packed := bz[start : start+int(le.Uint32(bz[payloadLength:]))]
	if form, _ := decompress.Detect(packed[:9]); form.Name != "gzip" {
		packed = packed[:len(packed)-4] // the size of what comes out (scripts/Makefile.lib, size_append)
	}
	p, err := decompress.All(packed, 512<<20)
	if err != nil {
		t.Fatal(err)
	}
	return boot.Bytes("vmlinux", p)
}

func TestKernelsBootInOtherWays(t *testing.T) {
	ways := []struct {
		name     string
		image    func(t *testing.T, bz []byte) *boot.Image
		protocol boot.Protocol
		words    string
	}{
		{"vmlinux by PVH", vmlinux, boot.PVH, "nokaslr "}, // a vmlinux is where it was linked; nokaslr leaves its direct map there too
		{"bzImage that decompresses itself", selfExtracting, boot.BzImage64, ""},
		{"bzImage that decompresses itself, nokaslr", selfExtracting, boot.BzImage64, "nokaslr "},
	}
	on(t, func(t *testing.T, b hv.Backend) {
		eachKernel(t, func(t *testing.T, k *kernel.Kernel) {
			full(t)
			bz, err := os.ReadFile(k.Path)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) {
					g := linux(t, k, 2, 512, quick+w.words)
					g.backend, g.kernel = b, w.image(t, bz)
					o := g.run(t)
					o.well(t)
					if o.facts.Protocol != w.protocol {
						t.Errorf("it was booted by %s, want %s", o.facts.Protocol, w.protocol)
					}
					t.Logf("%s: %.1f CPU seconds to its first process", k.Release, o.toInit.Seconds())
				})
			}
		})
	})
}

// selfExtracting is a bzImage whose payload the loader does not find, so that the image's own decompressor has to run.
func selfExtracting(t *testing.T, bz []byte) *boot.Image {
	bz = bytes.Clone(bz)
	clear(bz[payloadLength:][:4])
	return boot.Bytes("bzImage", bz)
}

func TestKernelOf32BitsIsRefused(t *testing.T) {
	k := suiteKernel(t, "bookworm")
	bz, err := os.ReadFile(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	bz[xloadflags] &^= 1 // XLF_KERNEL_64
	ram, err := mem.New(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	_, _, err = boot.Load(ram, boot.Config{Kernel: boot.Bytes("bzImage", bz)})
	if err == nil || !strings.Contains(err.Error(), "32-bit") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want one line that tells of a 32-bit kernel", err)
	}
}
