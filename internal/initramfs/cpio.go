// Package initramfs makes the archive that a Linux kernel unpacks as its first root file system.
package initramfs

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// A File is an entry of an archive.
type File struct {
	Path  string      // absolute or relative to the root: "init", "/dev/console"
	Mode  fs.FileMode // type and permissions; of the types: regular, directory, symlink, character device
	Data  []byte      // a regular file's content, a symlink's target
	Major uint32      // of a device
	Minor uint32
}

// A Writer writes an archive in cpio's "newc" form (Linux's Documentation/driver-api/early-userspace/buffer-format.rst).
// What it writes depends on the entries alone: owner 0, time 0, inodes counted. An entry's directories are made before it.
type Writer struct {
	w     io.Writer
	n     int64 // bytes written
	inode uint32
	made  map[string]bool
	err   error
}

// NewWriter writes an archive to w. Close ends it.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, made: map[string]bool{}} }

// The file types of st_mode.
const (
	modeDir     = 0o040000
	modeChar    = 0o020000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

const trailer = "TRAILER!!!"

// Add writes an entry.
func (w *Writer) Add(f File) error {
	name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
	if name == "" || name == trailer || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("initramfs: no name for a file: %q", f.Path)
	}
	mode := uint32(f.Mode.Perm())
	for _, bit := range []struct {
		set fs.FileMode
		st  uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if f.Mode&bit.set != 0 {
			mode |= bit.st
		}
	}
	switch f.Mode.Type() {
	case 0:
		mode |= modeRegular
	case fs.ModeDir:
		mode |= modeDir
		if w.made[name] {
			return w.err
		}
	case fs.ModeSymlink:
		mode |= modeSymlink
	case fs.ModeDevice | fs.ModeCharDevice:
		mode |= modeChar
	default:
		return fmt.Errorf("initramfs: %s: type %v is not known", f.Path, f.Mode.Type())
	}
	if uint64(len(f.Data)) > 1<<32-1 {
		return fmt.Errorf("initramfs: %s: %d bytes, newc holds less than 4 GiB", f.Path, len(f.Data))
	}
	if dir := path.Dir(name); dir != "." && !w.made[dir] {
		if err := w.Add(File{Path: dir, Mode: fs.ModeDir | 0o755}); err != nil {
			return err
		}
	}
	w.made[name] = true
	w.entry(name, mode, f)
	return w.err
}

// Close writes the end of the archive, padded as cpio does. It does not close the writer beneath.
func (w *Writer) Close() error {
	w.entry(trailer, 0, File{})
	w.pad(512)
	return w.err
}

func (w *Writer) entry(name string, mode uint32, f File) {
	links := 1
	if mode&modeDir != 0 {
		links = 2
	}
	w.inode++
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
	w.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		w.inode, mode, 0, 0, links, 0, len(f.Data), 0, 0, f.Major, f.Minor, len(name)+1, 0, name))
	w.pad(4)
	w.write(f.Data)
	w.pad(4)
}

func (w *Writer) pad(to int64) {
	w.write(make([]byte, (to-w.n%to)%to))
}

func (w *Writer) write(p []byte) {
	if w.err == nil && len(p) > 0 {
		var n int
		n, w.err = w.w.Write(p)
		w.n += int64(n)
	}
}
