package hostfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// find looks up name in dir and applies the rule.
func (s *Server) find(dir *node, name string) (*stat, bool, error) {
	if dir.closed {
		return nil, false, unix.ENOENT
	}
	if !plain(name) {
		return nil, false, unix.EINVAL
	}
	d, err := s.dir(dir, 0)
	if err != nil {
		return nil, false, err
	}
	defer d.release()
	st, err := statAt(d.fd, name, 0)
	if err != nil {
		return nil, false, err
	}
	if !s.visible(dir, name, st) {
		return nil, false, unix.ENOENT
	}
	return st, s.closed(d.fd, dir, name, st), nil
}

// closed tells whether the entry name of dir is a directory to be shown empty.
func (s *Server) closed(dirFD int, dir *node, name string, st *stat) bool {
	if st.kind() != unix.S_IFDIR {
		return false
	}
	if s.empty[st.id()] {
		return true
	}
	if st.dev() == dir.file.dev {
		return false
	}
	fd, err := openat(dirFD, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	return barrier(fd)
}

func (s *Server) entry(n *node, st *stat, out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	out.EntryValid, out.AttrValid = cacheSeconds, cacheSeconds
	s.attr(st, &out.Attr)
}

// Lookup implements [fuse.RawFileSystem].
func (s *Server) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := s.node(h.NodeId)
	if !code.Ok() {
		return code
	}
	st, closed, err := s.find(dir, name)
	if err == unix.ENOENT {
		*out = fuse.EntryOut{EntryValid: cacheSeconds} // node 0: the guest may remember that there is none
		return fuse.OK
	}
	if err != nil {
		return status(err)
	}
	s.entry(s.intern(dir, name, st, closed), st, out)
	return fuse.OK
}

// GetAttr implements [fuse.RawFileSystem].
func (s *Server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	st, code := s.statNode(in.NodeId)
	if code.Ok() {
		out.AttrValid = cacheSeconds
		s.attr(st, &out.Attr)
	}
	return code
}

func (s *Server) statNode(id uint64) (*stat, fuse.Status) {
	n, code := s.node(id)
	if !code.Ok() {
		return nil, code
	}
	parent, name := s.place(n)
	if parent == nil {
		st, err := s.statFD(int(s.root.Fd()))
		return st, status(err)
	}
	st, _, err := s.find(parent, name)
	if err == nil && st.id() != n.file {
		err = unix.ESTALE
	}
	return st, status(err)
}

// Readlink implements [fuse.RawFileSystem].
func (s *Server) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, code := s.node(h.NodeId)
	if !code.Ok() {
		return nil, code
	}
	parent, name := s.place(n)
	if parent == nil || n.kind != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	d, err := s.dir(parent, 0)
	if err != nil {
		return nil, status(err)
	}
	defer d.release()
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:k], fuse.OK
}

// Open implements [fuse.RawFileSystem]. The answer "not implemented" tells Linux to stop asking: reads name the node, and a file that may
// not be read has no node (FUSE_NO_OPEN_SUPPORT).
func (s *Server) Open(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY && !s.export.Writable {
		return fuse.EROFS
	}
	return fuse.ENOSYS
}

// OpenDir implements [fuse.RawFileSystem], as Open.
func (s *Server) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush implements [fuse.RawFileSystem]: there is nothing to flush, and "not implemented" spares a round trip at every close.
func (s *Server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// A reading is a read(2) that goes straight into the guest's buffers.
type reading struct {
	f    *openFile
	off  int64
	size int
}

// Size implements [fuse.ReadResult].
func (r *reading) Size() int { return r.size }

// Done implements [fuse.ReadResult].
func (r *reading) Done() { r.f.release() }

// Bytes implements [fuse.ReadResult].
func (r *reading) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, code := r.Readv([][]byte{buf[:min(len(buf), r.size)]})
	return buf[:n], code
}

// Readv reads into dst until it is full or the file ends.
func (r *reading) Readv(dst [][]byte) (int, fuse.Status) {
	total := 0
	for len(dst) > 0 {
		n, err := unix.Preadv(r.f.fd, dst[:min(len(dst), 1024)], r.off+int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, status(err)
		}
		if n == 0 {
			break
		}
		total += n
		for len(dst) > 0 && n >= len(dst[0]) {
			n -= len(dst[0])
			dst = dst[1:]
		}
		if n > 0 { // a short read: go on inside this buffer
			dst = append([][]byte{dst[0][n:]}, dst[1:]...)
		}
	}
	return total, fuse.OK
}

// Read implements [fuse.RawFileSystem].
func (s *Server) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	n, code := s.node(in.NodeId)
	if !code.Ok() {
		return nil, code
	}
	if n.kind != unix.S_IFREG {
		return nil, fuse.EINVAL
	}
	if in.Offset > 1<<62 {
		return nil, fuse.EINVAL
	}
	f, err := s.content(n)
	if err != nil {
		return nil, status(err)
	}
	return &reading{f, int64(in.Offset), int(min(in.Size, maxRequest))}, fuse.OK
}

// StatFs implements [fuse.RawFileSystem].
func (s *Server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.root.Fd()), &st); err != nil {
		return status(err)
	}
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Bfree, 0
	if s.export.Writable {
		out.Bavail = st.Bavail
	}
	out.Files, out.Ffree = st.Files, st.Ffree
	out.Bsize, out.Frsize, out.NameLen = uint32(st.Bsize), uint32(st.Frsize), uint32(st.Namelen)
	return fuse.OK
}
