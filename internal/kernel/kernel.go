// Package kernel finds a Linux kernel for a guest, with its modules: the host's own, one fetched before, or the distribution's package,
// fetched and verified by the host's package manager and installed nowhere.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Required are the drivers that a guest of ours cannot do without: its bus, its root file system, our agent's line to the host.
var Required = []string{"virtio_pci", "virtiofs", "overlay", "vmw_vsock_virtio_transport"}

// Options says what to find.
type Options struct {
	Path       string   // the kernel; empty: search for one
	ModulesDir string   // its modules; empty: where they are for such a kernel
	CacheDir   string   // empty: DefaultCacheDir
	Needs      []string // drivers that a kernel that was searched for must have; nil: Required
	// Progress takes a line about what is done, and what was passed over and why. May be nil.
	Progress func(line string)
}

// A Kernel is one that was found.
type Kernel struct {
	Path    string
	Release string   // as uname -r will say; empty if the file does not tell
	Source  string   // where it is from, in words: "the host's own", "cache", "package linux-image-… 6.1.192-2"
	Modules *Modules // never nil
}

// Find gives the kernel that is asked for, or, in this order, the host's own, the cache's, the distribution's package. Its errors are
// one line that says what to do.
func Find(ctx context.Context, o Options) (*Kernel, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Needs == nil {
		o.Needs = Required
	}
	if o.Path != "" {
		return o.named()
	}
	k, err := o.hosts()
	if err == nil {
		return o.withModules(k)
	}
	o.Progress(err.Error() + ": looking for another")
	c, err := o.cache()
	if err != nil {
		return nil, err
	}
	k, err = c.find(ctx, aptRequest{}, o)
	if err != nil {
		return nil, err
	}
	return o.withModules(k)
}

// DefaultCacheDir is where kernels are kept: $VITRINE_CACHE, else vitrine in $XDG_CACHE_HOME, else ~/.cache/vitrine.
func DefaultCacheDir() (string, error) {
	if dir := os.Getenv("VITRINE_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", errors.New("no cache directory: neither VITRINE_CACHE nor XDG_CACHE_HOME nor HOME is set")
	}
	return filepath.Join(dir, "vitrine"), nil
}

func (o *Options) cache() (*cache, error) {
	dir := o.CacheDir
	if dir == "" {
		var err error
		if dir, err = DefaultCacheDir(); err != nil {
			return nil, err
		}
	}
	return &cache{dir: filepath.Join(dir, "kernels")}, nil
}

// withModules puts the modules in place that were asked for by name.
func (o *Options) withModules(k *Kernel) (*Kernel, error) {
	if o.ModulesDir == "" {
		return k, nil
	}
	m, err := OpenModules(o.ModulesDir, k.Release)
	if err != nil {
		return nil, err
	}
	k.Modules = m
	return k, nil
}

// named is the kernel at o.Path. Its modules are looked for in what may be its build tree, beside it, and where the host has them.
func (o *Options) named() (*Kernel, error) {
	k := &Kernel{Path: o.Path, Source: "--kernel", Release: release(o.Path), Modules: &Modules{}}
	if o.ModulesDir != "" {
		return o.withModules(k)
	}
	path, err := filepath.EvalSymlinks(o.Path)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", o.Path, reason(err))
	}
	dir := filepath.Dir(path)
	for _, d := range []string{
		dir,                                          // vmlinux in its build tree
		filepath.Join(dir, "../../.."),               // arch/x86/boot/bzImage in it
		filepath.Join(dir, "../lib/modules"),         // boot/ and lib/ of an unpacked package
		filepath.Join(dir, "../usr/lib/modules"),     //
		"/lib/modules",                               // of the host
		filepath.Join(dir, "modules", k.Release+"/"), //
	} {
		if filepath.Base(d) == "modules" {
			if k.Release == "" {
				continue
			}
			d = filepath.Join(d, k.Release)
		}
		for _, list := range []string{"modules.builtin", "modules.order"} {
			if _, err := os.Stat(filepath.Join(d, list)); err == nil {
				if m, err := OpenModules(d, k.Release); err == nil {
					k.Modules = m
					return k, nil
				}
			}
		}
	}
	return k, nil
}

// hosts is the kernel that the host itself runs, if it can be read and has the drivers.
func (o *Options) hosts() (*Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	rel := unix.ByteSliceToString(u.Release[:])
	modules := filepath.Join("/lib/modules", rel)
	err := fmt.Errorf("the host's own kernel (%s) has no image in /boot or %s", rel, modules)
	for _, path := range []string{"/boot/vmlinuz-" + rel, filepath.Join(modules, "vmlinuz")} {
		if e := unix.Access(path, unix.R_OK); e != nil {
			if e == unix.EACCES {
				err = fmt.Errorf("the host's own kernel, %s, cannot be read by this user (sudo chmod a+r %s would allow it)", path, path)
			}
			continue
		}
		m, e := OpenModules(modules, rel)
		if e != nil {
			return nil, fmt.Errorf("the host's own kernel (%s): %w", rel, e)
		}
		k := &Kernel{Path: path, Release: rel, Source: "the host's own", Modules: m}
		if e := k.able(o.Needs); e != nil {
			return nil, fmt.Errorf("the host's own kernel (%s): %w", rel, e)
		}
		return k, nil
	}
	return nil, err
}

// able checks that the drivers are there and can be read.
func (k *Kernel) able(needs []string) error {
	_, missing, err := k.Modules.Closure(needs)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("it has no driver %s, neither built in nor as a module", strings.Join(missing, ", "))
	}
	return err
}

// release reads a bzImage's release out of its header (boot.rst, kernel_version); "" where there is none.
func release(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 0x10400)
	n, _ := io.ReadFull(f, head)
	head = head[:n]
	if n < 0x210 || string(head[0x202:0x206]) != "HdrS" {
		return ""
	}
	off := 0x200 + int(head[0x20E]) + int(head[0x20F])<<8
	if off == 0x200 || off >= n {
		return ""
	}
	text := string(head[off:min(off+128, n)])
	text, _, _ = strings.Cut(text, "\x00")
	text, _, _ = strings.Cut(text, " ")
	for _, c := range text { // it becomes part of a path, and is printed
		if !strings.ContainsRune("+-._~:", c) && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	if strings.HasPrefix(text, ".") {
		return ""
	}
	return text
}
