package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// makeDeb is a package with the given files, uncompressed.
func makeDeb(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for name, p := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(p))}); err != nil {
			t.Fatal(err)
		}
		w.Write(p)
	}
	w.Close()
	var deb bytes.Buffer
	deb.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		p    []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", []byte("odd")}, {"data.tar", data.Bytes()}} {
		fmt.Fprintf(&deb, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", m.name, 0, 0, 0, 0o644, len(m.p))
		deb.Write(m.p)
		if len(m.p)%2 == 1 {
			deb.WriteByte('\n')
		}
	}
	return deb.Bytes()
}

const fakeRelease = "6.1.0-9-fake"

func fakeDeb(t testing.TB) []byte {
	files := map[string][]byte{
		"./boot/vmlinuz-" + fakeRelease:                                                    []byte("kernel"),
		"./usr/share/doc/x":                                                                []byte("not kept"),
		"./lib/modules/" + fakeRelease + "/modules.builtin":                                []byte("kernel/virtio_pci.ko\nkernel/virtiofs.ko\nkernel/overlay.ko\n"),
		"./lib/modules/" + fakeRelease + "/modules.order":                                  []byte("kernel/vmw_vsock_virtio_transport.ko\n"),
		"../../../etc/lib/modules/../../../escape":                                         []byte("no"),
		"./lib/modules/" + fakeRelease + "/kernel/escape/../vmw_vsock_virtio_transport.ko": makeModule("depends="),
	}
	return makeDeb(t, files)
}

// fakeApt puts an apt before the real one: it counts downloads in a file, and serves fakeDeb.
func fakeApt(t *testing.T, update, download string) (downloads string) {
	t.Helper()
	dir := t.TempDir()
	downloads = filepath.Join(dir, "downloads")
	write(t, dir, "x.deb", fakeDeb(t))
	script := func(name, body string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("apt-config", `echo 'Acquire::http::Proxy "http://proxy";'`)
	script("apt-cache", `test -e `+dir+`/empty && exit 100
for p; do :; done
echo "Package: $p"; echo "Version: 6.1.9-1"
case $p in *cloud*|*virtual) echo "Depends: linux-image-`+fakeRelease+` (= 6.1.9-1)";; esac`)
	script("apt-get", `case "$2" in
update) `+update+`;;
download) echo once >>`+downloads+`; `+download+`; cp `+dir+`/x.deb ./x.deb;;
esac`)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return downloads
}

func fetched(t *testing.T, downloads string) int {
	p, _ := os.ReadFile(downloads)
	return strings.Count(string(p), "once")
}

func find(dir string, log func(string)) (*Kernel, error) {
	c := &cache{dir: filepath.Join(dir, "kernels")}
	if log == nil {
		log = func(string) {}
	}
	return c.find(context.Background(), aptRequest{pkg: "linux-image-cloud-amd64"}, Options{Needs: Required, Progress: log})
}

func TestFetchedKernelIsKeptAndCheckedEachTime(t *testing.T) {
	downloads := fakeApt(t, "true", "true")
	dir := t.TempDir()
	k, err := find(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != fakeRelease || k.Source != "package linux-image-"+fakeRelease+" 6.1.9-1" {
		t.Errorf("%+v", k)
	}
	if k, err = find(dir, nil); err != nil || !strings.HasPrefix(k.Source, "cache") || fetched(t, downloads) != 1 {
		t.Fatalf("%+v, %v, %d downloads", k, err, fetched(t, downloads))
	}
	tree := filepath.Dir(filepath.Dir(k.Path)) + "/lib/modules/" + fakeRelease
	for i, damaged := range []string{k.Path, tree + "/modules.order", tree + "/kernel/vmw_vsock_virtio_transport.ko", filepath.Join(dir, "kernels", "_linux-image-cloud-amd64", sumsFile)} {
		if err := os.WriteFile(damaged, []byte("damaged"), 0o644); err != nil {
			t.Fatal(err)
		}
		var log []string
		if _, err := find(dir, func(l string) { log = append(log, l) }); err != nil || fetched(t, downloads) != i+2 || !strings.Contains(log[0], "fetching it again") {
			t.Errorf("%s: %v, %d downloads, log %q", damaged, err, fetched(t, downloads), log)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "kernels", "[^.]*"))
	if _, err := os.Stat(filepath.Join(dir, "kernels", partial)); err == nil || len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestTwoFirstRunsTakeTurns(t *testing.T) {
	downloads := fakeApt(t, "true", "sleep 0.3")
	dir := t.TempDir()
	var waits atomic.Int32
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := find(dir, func(l string) {
				if strings.Contains(l, "waiting") {
					waits.Add(1)
				}
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if fetched(t, downloads) != 1 || waits.Load() != 2 {
		t.Errorf("%d downloads, %d waited; want 1, 2", fetched(t, downloads), waits.Load())
	}
}

func TestCancelledFetchLeavesNothing(t *testing.T) {
	fakeApt(t, "sleep 60", "true")
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	c := &cache{dir: dir}
	begun := make(chan struct{})
	go func() {
		<-begun
		cancel()
	}()
	var once sync.Once
	_, err := c.find(ctx, aptRequest{pkg: "linux-image-cloud-amd64"}, Options{Progress: func(string) { once.Do(func() { close(begun) }) }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "[^.]*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(filepath.Join(dir, partial)); err == nil {
		t.Error("left behind: " + partial)
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	for _, c := range []struct{ what, update, download, want string }{
		{"no network", `echo "W: Failed to fetch http://x/InRelease  Temporary failure resolving 'x'" >&2; touch $(dirname $0)/empty`, "true", "apt-get update: Failed to fetch http://x/InRelease  Temporary failure resolving 'x': check the network, or name a kernel with --kernel"},
		{"empty lists", "touch $(dirname $0)/empty", "true", "there is no package linux-image-cloud-amd64: name a kernel with --kernel"},
		{"a download that fails", "true", `echo "E: Hash Sum mismatch" >&2; exit 100`, "Hash Sum mismatch: check the network, or name a kernel"},
		{"a full disk", "true", `echo "E: write error - write (28: No space left on device)" >&2; exit 100`, "the disk is full"},
	} {
		t.Run(c.what, func(t *testing.T) {
			fakeApt(t, c.update, c.download)
			_, err := find(t.TempDir(), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
	t.Run("no package manager", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := find(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "--kernel") {
			t.Errorf("%v", err)
		}
	})
	t.Run("no place for a cache", func(t *testing.T) {
		if _, err := find("/dev/null", nil); err == nil || !strings.Contains(err.Error(), "VITRINE_CACHE") {
			t.Errorf("%v", err)
		}
	})
}

func TestAptKeepsProxiesAndRunsNoHooks(t *testing.T) {
	fakeApt(t, "true", "true")
	a := &apt{dir: t.TempDir()}
	if err := a.setup(context.Background(), aptRequest{}); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(a.conf())
	for _, want := range []string{`Acquire::http::Proxy "http://proxy";`, `Dir::Etc::parts "/dev/null";`, `Dir::State::lists "` + a.dir} {
		if !strings.Contains(string(p), want) {
			t.Errorf("no %s in\n%s (%v)", want, p, err)
		}
	}
}

func TestKernelDependsOfDistributions(t *testing.T) {
	for _, c := range []struct{ field, want string }{
		{"linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)", "linux-image-6.1.0-56-cloud-amd64"},
		{"kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool", ""},
		{"kmod, linux-base (>= 4.5ubuntu1~16.04.1), linux-modules-6.8.0-31-generic", "linux-modules-6.8.0-31-generic"},
		{"linux-base-7.3.4+deb13-cloud-amd64 (= 1), linux-binary-7.3.4+deb13-cloud-amd64 (= 1)", "linux-base-7.3.4+deb13-cloud-amd64 linux-binary-7.3.4+deb13-cloud-amd64"},
	} {
		if got := strings.Join(kernelDepends(c.field), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.field, got, c.want)
		}
	}
}

func TestNamedKernelFindsItsModules(t *testing.T) {
	dir := t.TempDir()
	image := make([]byte, 0x400)
	copy(image[0x202:], "HdrS")
	image[0x20F] = 1 // the text is at 0x300
	copy(image[0x300:], "6.6.6-own (me@here) #1\x00")
	write(t, dir, "src/arch/x86/boot/bzImage", image)
	write(t, dir, "src/modules.order", []byte("drivers/a.o\n"))
	write(t, dir, "src/drivers/a.ko", makeModule())
	k, err := Find(context.Background(), Options{Path: filepath.Join(dir, "src/arch/x86/boot/bzImage")})
	if err != nil || k.Release != "6.6.6-own" || !k.Modules.Has("a") {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := Find(context.Background(), Options{Path: filepath.Join(dir, "absent")}); err == nil || !strings.Contains(err.Error(), "absent: no such file") {
		t.Errorf("%v", err)
	}
}

func unpackInto(t testing.TB, fn func(*os.Root) error) error {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return fn(root)
}

func FuzzDeb(f *testing.F) {
	f.Add(fakeDeb(f))
	f.Fuzz(func(t *testing.T, p []byte) {
		unpackInto(t, func(root *os.Root) error {
			return unpackDeb(io.LimitReader(bytes.NewReader(p), 1<<20), root, keepKernel)
		})
	})
}

func FuzzCPIO(f *testing.F) {
	f.Add([]byte("070701" + strings.Repeat("0", 104)))
	f.Fuzz(func(t *testing.T, p []byte) {
		unpackInto(t, func(root *os.Root) error { return unpackCPIO(bytes.NewReader(p), root, keepKernel) })
	})
}
