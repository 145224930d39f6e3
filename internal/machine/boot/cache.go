package boot

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// The cache of decompressed kernels: a file a payload, named by the payload's SHA-256, that ends in its length and checksum.
const (
	cachePrefix  = "vmlinux-"
	cacheTrailer = 16 // length, CRC-32C, magic
	cacheMagic   = 0x31765456
	tmpSuffix    = ".tmp" // while it is made; the open file keeps the name
	cacheKeep    = 8      // files of about 60 MiB each; who builds a kernel an hour must not fill the disk

	knownPrefix = "known-" // what a kernel's file is in the cache, so that neither need be read whole
	knownKeep   = 32
)

// A cacheError is a failure of the cache, not of the kernel: the boot goes on without.
type cacheError struct{ err error }

func (e *cacheError) Error() string { return e.err.Error() }
func (e *cacheError) Unwrap() error { return e.err }

// cached opens p's decompressed form in dir, making it first where it is absent or damaged. Two processes at once take turns. id is the identity of the
// file that p is of: what was found for it once is believed until the host is booted anew.
func cached(dir, id string, p *io.SectionReader, limit int64) (*unpacked, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &cacheError{pathless(err)}
	}
	note := knownPath(dir, id)
	if u := openKnown(note, dir, limit); u != nil {
		return u, nil
	}
	u, err := find(dir, p, limit)
	if err == nil {
		know(note, u)
	}
	return u, err
}

// find is cached for a file that is not known.
func find(dir string, p *io.SectionReader, limit int64) (*unpacked, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(p, 0, p.Size())); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s%x", cachePrefix, h.Sum(nil)))
	if u := openCached(path, limit); u != nil {
		return u, nil
	}
	tmp, err := lockFile(path + tmpSuffix)
	if err != nil {
		return nil, &cacheError{pathless(err)}
	}
	if u := openCached(path, limit); u != nil { // made while we waited
		tmp.Close()
		return u, nil
	}
	u, err := fill(tmp, path, p, limit)
	if err != nil {
		os.Remove(tmp.Name())
		tmp.Close()
		return nil, err
	}
	prune(dir, cachePrefix, cacheKeep)
	return u, nil
}

// fill decompresses p into tmp and names it path.
func fill(tmp *os.File, path string, p *io.SectionReader, limit int64) (*unpacked, error) {
	if err := tmp.Truncate(0); err != nil {
		return nil, &cacheError{pathless(err)}
	}
	w := &diskWriter{f: tmp}
	size, sum, err := unpack(p, w, limit)
	if err == nil {
		trailer := binary.LittleEndian.AppendUint64(nil, uint64(size))
		trailer = binary.LittleEndian.AppendUint32(trailer, sum)
		_, err = w.Write(binary.LittleEndian.AppendUint32(trailer, cacheMagic))
	}
	if w.err != nil {
		return nil, &cacheError{pathless(w.err)}
	}
	if err != nil {
		return nil, err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return nil, &cacheError{pathless(err)}
	}
	return &unpacked{tmp, size, sum}, nil
}

// diskWriter remembers that it was the disk that failed.
type diskWriter struct {
	f   *os.File
	err error
}

func (w *diskWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// openCached opens a file of the cache, or returns nil: it is absent, or not as it was written.
func openCached(path string, limit int64) *unpacked {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	u, err := verify(f)
	if err != nil || u.size > limit {
		f.Close()
		return nil
	}
	used(path)
	return u
}

// used notes that a file of the cache was of use, for prune; on a read-only disk nothing is pruned either.
func used(path string) { os.Chtimes(path, time.Now(), time.Time{}) }

// lastUse is the time that used noted.
func lastUse(path string) time.Time {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return time.Time{}
	}
	return time.Unix(st.Atim.Unix())
}

// verify reads the whole file.
func verify(f *os.File) (*unpacked, error) {
	u, err := trailer(f)
	if err != nil {
		return nil, err
	}
	crc := crc32.New(castagnoli)
	if _, err := io.Copy(crc, io.NewSectionReader(f, 0, u.size)); err != nil {
		return nil, err
	}
	if crc.Sum32() != u.sum {
		return nil, errors.New("wrong checksum")
	}
	return u, nil
}

// trailer reads the file's end.
func trailer(f *os.File) (*unpacked, error) {
	st, err := f.Stat()
	if err != nil || st.Size() < cacheTrailer {
		return nil, errTruncated
	}
	size := st.Size() - cacheTrailer
	var t [cacheTrailer]byte
	if err := readFull(f, t[:], size); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint64(t[:]) != uint64(size) || le.Uint32(t[12:]) != cacheMagic {
		return nil, errors.New("not a file of this cache")
	}
	return &unpacked{f, size, le.Uint32(t[8:])}, nil
}

// lockFile opens path, made where it is absent, and waits until no other process has it locked. The lock goes with the descriptor;
// the file found under the name is the one that is locked.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		for {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
				break
			}
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		mine, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close() // renamed or removed by the one that had it
	}
}

// prune removes all files of a prefix but the keep ones that were used last.
func prune(dir, prefix string, keep int) {
	all, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil || len(all) <= keep {
		return
	}
	use := map[string]time.Time{}
	for _, path := range all {
		use[path] = lastUse(path)
	}
	sort.Slice(all, func(i, j int) bool { return use[all[i]].After(use[all[j]]) })
	for _, path := range all[keep:] {
		os.Remove(path)
	}
}

// pathless is the reason in a file error, whose path is said elsewhere.
func pathless(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}
