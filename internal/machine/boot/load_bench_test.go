package boot

import (
	"os"
	"path/filepath"
	"testing"

	"vitrine.dev/vitrine/internal/mem"
)

// BenchmarkLoad is a whole Load of a real kernel that is in the cache, into new memory.
func BenchmarkLoad(b *testing.B) {
	home, err := os.UserCacheDir()
	if err != nil {
		b.Skip(err)
	}
	found, _ := filepath.Glob(filepath.Join(home, "vitrine/kernels/*/boot/vmlinuz-*"))
	if len(found) == 0 {
		b.Skip("no kernel in ", home)
	}
	dir := b.TempDir()
	load := func() {
		k, err := Open("kernel", found[0])
		if err != nil {
			b.Fatal(err)
		}
		defer k.Close()
		ram, err := mem.New(512 << 20)
		if err != nil {
			b.Fatal(err)
		}
		defer ram.Close()
		if _, _, err := Load(ram, Config{Kernel: k, CommandLine: "console=ttyS0", CacheDir: dir, Log: func(string) {}}); err != nil {
			b.Fatal(err)
		}
	}
	load()
	for b.Loop() {
		load()
	}
}
