package blk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// raw is a disk that is a file or a block device, byte for byte.
type raw struct {
	f        *os.File
	fd       int
	size     int64
	readOnly bool
}

// OpenRaw opens a file or block device as a disk. A size that is no multiple of SectorSize is rounded up: the last sector's rest
// reads as zeros, and a write to it makes the file longer.
func OpenRaw(path string, readOnly bool) (Disk, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() && (st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0) {
		err = fmt.Errorf("disk %s: neither a file nor a block device", path)
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil && size == 0 {
		err = fmt.Errorf("disk %s: empty", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &raw{f: f, fd: int(f.Fd()), size: (size + SectorSize - 1) / SectorSize * SectorSize, readOnly: readOnly}, nil
}

// Size implements [Disk].
func (r *raw) Size() int64 { return r.size }

// ReadOnly implements [Disk].
func (r *raw) ReadOnly() bool { return r.readOnly }

// Close implements [Disk].
func (r *raw) Close() error { return r.f.Close() }

// maxVec is the kernel's bound on one preadv (IOV_MAX).
const maxVec = 1024

// ReadAt implements [Disk].
func (r *raw) ReadAt(bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := unix.Preadv(r.fd, bufs[:min(len(bufs), maxVec)], off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("disk %s: read at %#x: %w", r.f.Name(), off, err)
		case n == 0: // the file's end
			for _, b := range bufs {
				clear(b)
			}
			return nil
		}
		bufs, off = skip(bufs, n), off+int64(n)
	}
	return nil
}

// WriteAt implements [Disk].
func (r *raw) WriteAt(bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := unix.Pwritev(r.fd, bufs[:min(len(bufs), maxVec)], off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("disk %s: write at %#x: %w", r.f.Name(), off, err)
		case n == 0:
			return fmt.Errorf("disk %s: write at %#x: %w", r.f.Name(), off, io.ErrShortWrite)
		}
		bufs, off = skip(bufs, n), off+int64(n)
	}
	return nil
}

// skip drops the first n bytes.
func skip(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// Flush implements [Disk].
func (r *raw) Flush() error {
	if r.readOnly {
		return nil
	}
	return unix.Fdatasync(r.fd)
}

// Discard implements [Disk]. The guest does not care what it reads afterwards, so a host that cannot is no error.
func (r *raw) Discard(off, n int64) error {
	if err := r.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); !errors.Is(err, ErrUnsupported) {
		return err
	}
	return nil
}

// Zero implements [Disk].
func (r *raw) Zero(off, n int64, unmap bool) error {
	modes := []uint32{unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}
	if unmap {
		modes = append([]uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}, modes...)
	}
	for _, mode := range modes {
		if err := r.allocate(mode, off, n); !errors.Is(err, ErrUnsupported) {
			return err
		}
	}
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if err := r.WriteAt([][]byte{zeros[:k]}, off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// allocate is fallocate, where ErrUnsupported says that this file system cannot.
func (r *raw) allocate(mode uint32, off, n int64) error {
	for {
		err := unix.Fallocate(r.fd, mode, off, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV):
			return ErrUnsupported
		case err != nil:
			return fmt.Errorf("disk %s: fallocate at %#x: %w", r.f.Name(), off, err)
		}
		return nil
	}
}
