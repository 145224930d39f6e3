package transfer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Receive reads a stream and puts what it carries at dest: into it, under its own name, where dest is a directory, else as dest, whose parent
// must be there. Whatever the stream says, nothing is written elsewhere, nor through a symbolic link that leads out of what is received.
func Receive(r io.Reader, dest string) error {
	d := &receiver{decoder: decoder{bufio.NewReaderSize(r, maxChunk)}}
	defer d.close()
	kind, err := d.kind()
	if err == nil && kind == kindFailed {
		return d.failed()
	}
	if err != nil {
		return cut(err)
	}
	if kind != kindName {
		return errFormat
	}
	name, err := d.string()
	if err != nil {
		return err
	}
	into, err := filepath.Abs(dest)
	if err != nil {
		return err
	}
	fi, serr := os.Stat(dest)
	switch {
	case serr == nil && fi.IsDir():
		if name == "/" || name == "." {
			d.existing = true
		} else {
			into = filepath.Join(into, name)
		}
		if filepath.Base(name) != name || name == ".." {
			return errFormat
		}
	case strings.HasSuffix(dest, "/"):
		return fmt.Errorf("%s is no directory", dest)
	}
	if d.parent, err = os.OpenRoot(filepath.Dir(into)); err != nil {
		return err
	}
	d.base = filepath.Base(into)
	for {
		done, err := d.record()
		if err != nil || done {
			return errors.Join(err, d.finish(err == nil))
		}
	}
}

// A receiver makes one tree.
type receiver struct {
	decoder
	parent   *os.Root // where the tree's top goes, as base
	base     string
	existing bool     // the top may be there already
	tree     *os.Root // the top, where that is a directory
	any      bool     // the top was made
	dirs     []dir    // their modes and times are set last: a directory may be read-only, and its time changes with its contents
}

type dir struct {
	path  string
	mode  fs.FileMode
	mtime time.Time
}

func (d *receiver) close() {
	if d.tree != nil {
		d.tree.Close()
	}
	if d.parent != nil {
		d.parent.Close()
	}
}

func (d *receiver) failed() error {
	reason, err := d.string()
	if err != nil {
		return err
	}
	return errors.New(reason)
}

// record takes one, and tells whether it was the last.
func (d *receiver) record() (bool, error) {
	kind, err := d.kind()
	if err != nil {
		return false, cut(err)
	}
	switch kind {
	case kindEnd:
		if !d.any {
			return false, errFormat
		}
		return true, nil
	case kindFailed:
		return false, d.failed()
	case kindDir, kindFile, kindLink:
	default:
		return false, errFormat
	}
	path, err := d.string()
	if err != nil {
		return false, err
	}
	mode := int64(0)
	if kind != kindLink {
		if mode, err = d.number(modeBits); err != nil {
			return false, err
		}
	}
	nano, err := d.time()
	if err != nil {
		return false, err
	}
	root, at, err := d.place(path)
	if err != nil {
		return false, err
	}
	e := dir{at, goMode(mode), time.Unix(0, nano)}
	switch kind {
	case kindDir:
		err = d.dir(root, path, e)
	case kindFile:
		err = d.file(root, e)
	case kindLink:
		err = d.link(root, e)
	}
	d.any = true
	return false, err
}

// place says where a record's path is: the top is in parent, all else in the tree.
func (d *receiver) place(path string) (*os.Root, string, error) {
	if path == "" {
		if d.any {
			return nil, "", errFormat
		}
		return d.parent, d.base, nil
	}
	if d.tree == nil || !filepath.IsLocal(path) || filepath.Clean(path) != path || path == "." {
		return nil, "", errFormat
	}
	return d.tree, path, nil
}

func (d *receiver) dir(root *os.Root, path string, e dir) error {
	err := root.Mkdir(e.path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		var fi fs.FileInfo
		if fi, err = root.Lstat(e.path); err == nil && !fi.IsDir() {
			err = fmt.Errorf("%s is there already and is no directory", filepath.Join(root.Name(), e.path))
		}
	}
	if err != nil {
		return err
	}
	if path != "" {
		d.dirs = append(d.dirs, e)
		return nil
	}
	d.tree, err = root.OpenRoot(e.path)
	if !d.existing {
		e.path = "."
		d.dirs = append(d.dirs, e)
	}
	return err
}

func (d *receiver) file(root *os.Root, e dir) error {
	size, err := d.number(math.MaxInt64 / 2)
	if err != nil {
		return err
	}
	if err := clearWay(root, e.path); err != nil {
		return err
	}
	f, err := root.OpenFile(e.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = d.content(f, size)
	if err == nil {
		err = f.Chmod(e.mode)
	}
	if err == nil {
		at := unix.NsecToTimeval(e.mtime.UnixNano())
		err = unix.Futimes(int(f.Fd()), []unix.Timeval{at, at})
	}
	return errors.Join(err, f.Close())
}

func (d *receiver) content(f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, maxChunk)
	for {
		n, err := d.number(maxChunk)
		if n == 0 || err != nil {
			return err
		}
		off, err := d.number(size - n)
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(d.r, buf[:n]); err != nil {
			return cut(err)
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
	}
}

func (d *receiver) link(root *os.Root, e dir) error {
	target, err := d.string()
	if err != nil {
		return err
	}
	if err := clearWay(root, e.path); err != nil {
		return err
	}
	return root.Symlink(target, e.path)
}

// clearWay removes what is at path, unless it is a directory.
func clearWay(root *os.Root, path string) error {
	fi, err := root.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return fmt.Errorf("%s is there already and is a directory", filepath.Join(root.Name(), path))
	}
	return root.Remove(path)
}

// finish gives directories their modes and, where all went well, times, the deepest first.
func (d *receiver) finish(well bool) error {
	var errs []error
	for i := len(d.dirs) - 1; i >= 0 && d.tree != nil; i-- {
		e := d.dirs[i]
		if fi, err := d.tree.Lstat(e.path); err != nil || !fi.IsDir() { // a later record replaced it
			continue
		}
		if well {
			errs = append(errs, d.tree.Chtimes(e.path, e.mtime, e.mtime))
		}
		errs = append(errs, d.tree.Chmod(e.path, e.mode))
	}
	return errors.Join(errs...)
}

// goMode is st_mode's bits as Go has them.
func goMode(m int64) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, is := range map[int64]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= is
		}
	}
	return mode
}
