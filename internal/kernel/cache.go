package kernel

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The cache holds a directory a kernel, as its packages had the files: boot/vmlinuz-RELEASE, lib/modules/RELEASE. Beside them are
// info.json and SHA256SUMS, as sha256sum(1) writes it. A directory appears whole, by a rename.
type cache struct{ dir string }

const (
	infoFile    = "info.json"
	sumsFile    = "SHA256SUMS"
	partial     = ".partial" // the directory being made by the one who holds the lock
	pinnedFirst = "default"  // the request that a Find without names makes
)

type cacheInfo struct {
	Release string `json:"release"`
	Source  string `json:"source"`
}

var errCorrupt = errors.New("its checksum is wrong")

// open checks and gives a kernel of the cache.
func (c *cache) open(name string, needs []string) (*Kernel, error) {
	dir := filepath.Join(c.dir, name)
	p, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return nil, reason(err)
	}
	var info cacheInfo
	if err := json.Unmarshal(p, &info); err != nil || info.Release == "" {
		return nil, errCorrupt
	}
	sums, err := readSums(filepath.Join(dir, sumsFile))
	if err != nil {
		return nil, err
	}
	image := "boot/vmlinuz-" + info.Release
	tree := "lib/modules/" + info.Release + "/"
	p, err = os.ReadFile(filepath.Join(dir, image))
	if err != nil {
		return nil, reason(err)
	}
	if err := checkSum(sums, image, p); err != nil {
		return nil, err
	}
	for _, list := range []string{"modules.builtin", "modules.order"} {
		if p, err = os.ReadFile(filepath.Join(dir, tree+list)); err == nil {
			err = checkSum(sums, tree+list, p)
		}
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w", tree, list, reason(err))
		}
	}
	m, err := OpenModules(filepath.Join(dir, tree), info.Release)
	if err != nil {
		return nil, err
	}
	m.sums = map[string]string{}
	for name, sum := range sums {
		if name, ok := strings.CutPrefix(name, tree); ok {
			m.sums[name] = sum
		}
	}
	k := &Kernel{Path: filepath.Join(dir, image), Release: info.Release, Source: "cache, from " + info.Source, Modules: m}
	return k, k.able(needs)
}

// find opens the kernel that was fetched for the request before, or fetches it. Who comes second waits for the first.
func (c *cache) find(ctx context.Context, r aptRequest, o Options) (*Kernel, error) {
	name := r.name()
	k, err := c.open(name, o.Needs)
	if err == nil {
		return k, nil
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache %s: %w: name another by VITRINE_CACHE, or a kernel by --kernel", c.dir, reason(err))
	}
	unlock, err := c.lock(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k, err = c.open(name, o.Needs); err == nil {
		return k, nil
	}
	dir := filepath.Join(c.dir, name)
	if !errors.Is(err, fs.ErrNotExist) || isDir(dir) {
		o.Progress(fmt.Sprintf("cached kernel %s: %v; fetching it again", dir, err))
	}
	work := filepath.Join(c.dir, partial)
	defer os.RemoveAll(work)
	if err := c.fetch(ctx, r, o, work, dir); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return nil, fmt.Errorf("cache %s: the disk is full: a kernel takes 300 MiB while it is fetched; name another place by VITRINE_CACHE, or a kernel by --kernel", c.dir)
		}
		return nil, err
	}
	k, err = c.open(name, o.Needs)
	if err != nil {
		return nil, fmt.Errorf("kernel %s, just fetched: %w: name another by --kernel", dir, err)
	}
	k.Source = strings.TrimPrefix(k.Source, "cache, from ")
	return k, nil
}

// fetch makes the directory dir of the cache in work.
func (c *cache) fetch(ctx context.Context, r aptRequest, o Options, work, dir string) error {
	if err := os.RemoveAll(work); err != nil { // of one who was killed
		return fmt.Errorf("cache: %w", err)
	}
	files := filepath.Join(work, "files")
	if err := os.MkdirAll(files, 0o700); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	source, err := fetchPackages(ctx, r, o, work, files)
	if err != nil {
		return err
	}
	if err := seal(files, source); err != nil {
		return fmt.Errorf("cache %s: %w", c.dir, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return os.Rename(files, dir)
}

// seal writes the checksums of what was unpacked, and what it is.
func seal(dir, source string) error {
	images, _ := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return fmt.Errorf("package %s: %d kernels in it, want one", source, len(images))
	}
	rel := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	var sums strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		fmt.Fprintf(&sums, "%x  %s\n", h.Sum(nil), name)
		return err
	})
	if err != nil {
		return err
	}
	info, err := json.Marshal(cacheInfo{Release: rel, Source: source})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, sumsFile), []byte(sums.String()), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, infoFile), append(info, '\n'), 0o600)
}

func readSums(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	sums := map[string]string{}
	sc := bufio.NewScanner(io.LimitReader(f, 64<<20))
	for sc.Scan() {
		sum, name, ok := strings.Cut(sc.Text(), "  ")
		if !ok || len(sum) != 2*sha256.Size {
			return nil, errCorrupt
		}
		sums[name] = sum
	}
	return sums, sc.Err()
}

// checkSum compares p with the list, where there is one.
func checkSum(sums map[string]string, name string, p []byte) error {
	if sums == nil {
		return nil
	}
	if h := sha256.Sum256(p); fmt.Sprintf("%x", h) != sums[name] {
		return fmt.Errorf("%s: %w", name, errCorrupt)
	}
	return nil
}

// lock waits for the cache's lock. The kernel gives it back when its holder is gone, whatever the reason.
func (c *cache) lock(ctx context.Context, progress func(string)) (func(), error) {
	path := filepath.Join(c.dir, ".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w: name another by VITRINE_CACHE, or a kernel by --kernel", c.dir, reason(err))
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("cache %s: lock: %w", c.dir, err)
		}
		if !said {
			progress("another vitrine is fetching a kernel; waiting for it")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
