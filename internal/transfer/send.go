package transfer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Send writes what is at path to w. A symbolic link at path's end is followed; those below it are sent as links.
func Send(w io.Writer, path string) error {
	e := newEncoder(w)
	err := e.tree(path)
	if err != nil {
		e.kind(kindFailed)
		reason := err.Error()
		e.string(reason[:min(len(reason), maxString)])
	} else {
		e.kind(kindEnd)
	}
	return errors.Join(err, e.w.Flush())
}

func newEncoder(w io.Writer) *encoder { return &encoder{w: bufio.NewWriterSize(w, maxChunk)} }

func (e *encoder) tree(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	name := filepath.Base(abs)
	root, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no such file or directory", path)
	}
	if err != nil {
		return err
	}
	e.kind(kindName)
	e.string(name)
	return filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := ""
		if p != root {
			if rel, err = filepath.Rel(root, p); err != nil {
				return err
			}
		}
		err = e.entry(p, rel)
		if errors.Is(err, fs.ErrNotExist) && rel != "" { // it went while we came
			err = nil
		}
		return err
	})
}

func (e *encoder) entry(path, rel string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	head := func(kind byte) {
		e.kind(kind)
		e.string(rel)
		if kind != kindLink {
			e.number(int64(st.Mode & modeBits))
		}
		e.number(st.Mtim.Nano())
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		head(kindDir)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		head(kindLink)
		e.string(target)
	case unix.S_IFREG:
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		head(kindFile)
		e.number(st.Size)
		return e.content(f, st.Size)
	default:
		if rel == "" {
			return fmt.Errorf("%s is no file, directory or link", path)
		}
	}
	return nil
}

// content sends what a file of size bytes has between its holes.
func (e *encoder) content(f *os.File, size int64) error {
	buf := make([]byte, maxChunk)
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO { // a hole to the end
			break
		}
		if err != nil { // a file system that does not know holes
			data = off
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil || end > size {
			end = size
		}
		for off = data; off < end; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
			if n > 0 {
				e.number(int64(n))
				e.number(off)
				if _, err := e.w.Write(buf[:n]); err != nil {
					return err
				}
				off += int64(n)
			}
			if err == io.EOF { // it shrank
				e.number(0)
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	e.number(0)
	return nil
}
