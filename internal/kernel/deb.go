package kernel

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/kernel/decompress"
)

// maxPackage bounds what a package's files may take, unpacked: Debian's largest kernel has 500 MB.
const maxPackage = 4 << 30

// unpackDeb writes what keep wants of a Debian package (deb(5): an ar archive with data.tar, compressed) below root. keep is given the path
// in the package, without "./", and says under which path to write it, or "".
func unpackDeb(r io.Reader, root *os.Root, keep func(string) string) error {
	var magic [8]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil || string(magic[:]) != "!<arch>\n" {
		return errors.New("not a Debian package")
	}
	for {
		var h [60]byte // name 16, time 12, uid 6, gid 6, mode 8, size 10, "`\n"
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return errors.New("the package has no data.tar, or is truncated")
		}
		size, err := strconv.ParseInt(strings.TrimSpace(string(h[48:58])), 10, 64)
		if err != nil || size < 0 || string(h[58:]) != "`\n" {
			return errors.New("the package is damaged")
		}
		name := strings.TrimRight(string(h[:16]), " /")
		if !strings.HasPrefix(name, "data.tar") {
			if _, err := io.CopyN(io.Discard, r, size+size&1); err != nil {
				return errors.New("the package is truncated")
			}
			continue
		}
		member := io.LimitReader(r, size)
		if name != "data.tar" {
			if member, err = decompress.NewReader(member); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := unpackTar(member, root, keep); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
}

func unpackTar(r io.Reader, root *os.Root, keep func(string) string) error {
	t := tar.NewReader(r)
	left := int64(maxPackage)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		to := keep(strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
		if to == "" {
			continue
		}
		if left -= h.Size; left < 0 {
			return fmt.Errorf("more than %d GiB", maxPackage>>30)
		}
		if err := writeFile(root, to, t); err != nil {
			return err
		}
	}
}

// writeFile writes a new file, with the directories above it. os.Root sees to it that no name leads out of root.
func writeFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil // two packages have it
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
