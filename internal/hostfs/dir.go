package hostfs

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A dirent is one entry as getdents64(2) gives it.
type dirent struct {
	ino, next uint64 // next is the offset of the entry behind
	kind      uint8
	name      string
}

// direntHead is the size of linux_dirent64 before its name.
const direntHead = 19

// parse takes the first entry off b.
func (e *dirent) parse(b []byte) (rest []byte, ok bool) {
	if len(b) < direntHead {
		return nil, false
	}
	size := int(binary.NativeEndian.Uint16(b[16:]))
	if size < direntHead || size > len(b) {
		return nil, false
	}
	name := b[direntHead:size]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	*e = dirent{binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:]), b[18], string(name)}
	return b[size:], true
}

// list calls fn with the entries of directory n from offset off, until fn wants no more.
func (s *Server) list(n *node, off uint64, fn func(*dirent) bool) error {
	if n.closed {
		return nil
	}
	f, err := s.content(n)
	if err != nil {
		return err
	}
	defer f.release()
	f.dirMu.Lock()
	defer f.dirMu.Unlock()
	if _, err := unix.Seek(f.fd, int64(off), 0); err != nil {
		return err
	}
	buf := make([]byte, 16<<10)
	for {
		k, err := unix.Getdents(f.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if k <= 0 || err != nil {
			return err
		}
		var e dirent
		for b, ok := e.parse(buf[:k]); ok; b, ok = e.parse(b) {
			if !fn(&e) {
				return nil
			}
		}
	}
}

// ReadDir implements [fuse.RawFileSystem].
func (s *Server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in, func(dir *node, e *dirent) bool {
		if e.name == "." || e.name == ".." {
			return out.AddDirEntry(fuse.DirEntry{Mode: unix.S_IFDIR, Name: e.name, Ino: e.ino, Off: e.next})
		}
		st, _, err := s.find(dir, e.name)
		if err != nil {
			return true
		}
		var a fuse.Attr
		s.attr(st, &a)
		return out.AddDirEntry(fuse.DirEntry{Mode: a.Mode, Name: e.name, Ino: a.Ino, Off: e.next})
	})
}

// ReadDirPlus implements [fuse.RawFileSystem].
func (s *Server) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in, func(dir *node, e *dirent) bool {
		if e.name == "." || e.name == ".." {
			return out.AddDirLookupEntry(fuse.DirEntry{Mode: unix.S_IFDIR, Name: e.name, Ino: e.ino, Off: e.next}) != nil
		}
		st, closed, err := s.find(dir, e.name)
		if err != nil {
			return true
		}
		var a fuse.Attr
		s.attr(st, &a)
		entry := out.AddDirLookupEntry(fuse.DirEntry{Mode: a.Mode, Name: e.name, Ino: a.Ino, Off: e.next})
		if entry == nil {
			return false
		}
		s.entry(s.intern(dir, e.name, st, closed), st, entry)
		return true
	})
}

func (s *Server) readDir(in *fuse.ReadIn, fn func(*node, *dirent) bool) fuse.Status {
	n, code := s.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if n.id != fuse.FUSE_ROOT_ID && n.kind != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	return status(s.list(n, in.Offset, func(e *dirent) bool { return fn(n, e) }))
}
