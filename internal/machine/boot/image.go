package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Image is a file for the guest's memory: the kernel, an initial RAM disk, a multiboot module.
type Image struct {
	Name string // for errors
	Line string // a module's string as multiboot passes it on: the name and its arguments
	Size int64
	io.ReaderAt
	id    string // of a file: no two have the same, nor one before and after a change
	close func() error
}

// Bytes is an image that is in memory already; the caller does not change p until it is loaded.
func Bytes(name string, p []byte) *Image {
	return &Image{Name: name, Line: name, Size: int64(len(p)), ReaderAt: bytes.NewReader(p)}
}

// Open opens a file. What it is (a kernel, an initrd) is for errors alone.
func Open(what, path string) (*Image, error) {
	fail := func(err error) (*Image, error) {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not make us wait
	if err != nil {
		return fail(err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.IsDir():
		err = errors.New("is a directory, not a file")
	case !st.Mode().IsRegular():
		err = errors.New("is not a regular file")
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	return &Image{Name: path, Line: path, Size: st.Size(), ReaderAt: f, id: identity(st), close: f.Close}, nil
}

// identity is what changes when a file does: its place, size and times. The time of the last change of its inode cannot be set.
func identity(st os.FileInfo) string {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprint(s.Dev, s.Ino, s.Size, s.Mtim, s.Ctim)
}

// OpenInitrd opens a list of files as QEMU's -initrd has it: separated by commas (a comma in a name is doubled), each with
// arguments after its name, which only a multiboot kernel sees.
func OpenInitrd(list string) ([]*Image, error) {
	if list == "" {
		return nil, nil
	}
	var all []*Image
	for _, item := range splitList(list) {
		path := item
		if _, err := os.Stat(path); err != nil { // a name may hold blanks
			path, _, _ = strings.Cut(strings.TrimSpace(item), " ")
		}
		im, err := Open("initrd", path)
		if err != nil {
			for _, im := range all {
				im.Close()
			}
			return nil, err
		}
		im.Line = item
		all = append(all, im)
	}
	return all, nil
}

func splitList(s string) []string {
	const comma = "\x00"
	items := strings.Split(strings.ReplaceAll(s, ",,", comma), ",")
	for i := range items {
		items[i] = strings.ReplaceAll(items[i], comma, ",")
	}
	return items
}

// Close closes the file, if there is one.
func (im *Image) Close() error {
	if im.close == nil {
		return nil
	}
	return im.close()
}

// readFull fills p from off of r.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF || err == nil {
		return errTruncated
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return err
}

var errTruncated = errors.New("the file is truncated")
