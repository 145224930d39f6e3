package hostfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The operations that change the export. Where it is not writable, Linux mounts it read-only and does not send them; a guest that does anyway
// is refused.

// permissions are the mode bits that a guest may set: a set-user-ID file of its making would be the host user's.
const permissions = 0o777

// changing opens directory id for changing its entry name, which must be one that the guest may see, or none.
func (s *Server) changing(id uint64, name string) (*node, *openFile, fuse.Status) {
	if !s.export.Writable {
		return nil, nil, fuse.EROFS
	}
	dir, code := s.node(id)
	if !code.Ok() {
		return nil, nil, code
	}
	if dir.kind != unix.S_IFDIR {
		return nil, nil, fuse.ENOTDIR
	}
	if dir.closed {
		return nil, nil, fuse.EACCES
	}
	if !plain(name) {
		return nil, nil, fuse.EINVAL
	}
	d, err := s.dir(dir, 0)
	if err != nil {
		return nil, nil, status(err)
	}
	if st, err := statAt(d.fd, name, 0); err == nil && !s.visible(dir, name, st) {
		d.release()
		return nil, nil, fuse.EACCES
	}
	return dir, d, fuse.OK
}

// made tells the guest of an entry that was just made.
func (s *Server) made(dir *node, name string, out *fuse.EntryOut) (*node, fuse.Status) {
	st, closed, err := s.find(dir, name)
	if err != nil {
		return nil, status(err)
	}
	n := s.intern(dir, name, st, closed)
	s.entry(n, st, out)
	return n, fuse.OK
}

// Create implements [fuse.RawFileSystem]: Linux then uses Mknod and Open.
func (s *Server) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	if !s.export.Writable {
		return fuse.EROFS
	}
	return fuse.ENOSYS
}

// Mknod implements [fuse.RawFileSystem], for regular files. The descriptor is kept: who makes a file may write to it, whatever its mode.
func (s *Server) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, d, code := s.changing(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer d.release()
	if in.Mode&unix.S_IFMT != unix.S_IFREG {
		return fuse.EPERM
	}
	fd, err := unix.Openat(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return status(err)
	}
	if err := unix.Fchmod(fd, in.Mode&permissions); err != nil {
		unix.Close(fd)
		return status(err)
	}
	n, code := s.made(dir, name, out)
	var st unix.Stat_t
	if !code.Ok() || unix.Fstat(fd, &st) != nil || st.Ino != n.file.ino {
		unix.Close(fd)
		return code
	}
	if f, err := s.fds.get(fdKey{n, forWriting}, func() (int, error) { return fd, nil }); err == nil {
		f.release()
	}
	return fuse.OK
}

// Mkdir implements [fuse.RawFileSystem].
func (s *Server) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, d, code := s.changing(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer d.release()
	if err := unix.Mkdirat(d.fd, name, in.Mode&permissions); err != nil {
		return status(err)
	}
	_, code = s.made(dir, name, out)
	return code
}

// Symlink implements [fuse.RawFileSystem]. Where it leads is for who follows it: this package never does.
func (s *Server) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir, d, code := s.changing(h.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer d.release()
	if err := unix.Symlinkat(target, d.fd, name); err != nil {
		return status(err)
	}
	_, code = s.made(dir, name, out)
	return code
}

// Link implements [fuse.RawFileSystem].
func (s *Server) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, d, code := s.changing(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer d.release()
	n, code := s.node(in.Oldnodeid)
	if !code.Ok() {
		return code
	}
	parent, old := s.place(n)
	if parent == nil {
		return fuse.EPERM
	}
	from, err := s.dir(parent, 0)
	if err != nil {
		return status(err)
	}
	defer from.release()
	if err := unix.Linkat(from.fd, old, d.fd, name, 0); err != nil {
		return status(err)
	}
	_, code = s.made(dir, name, out)
	return code
}

// Unlink implements [fuse.RawFileSystem].
func (s *Server) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(h.NodeId, name, 0)
}

// Rmdir implements [fuse.RawFileSystem].
func (s *Server) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(h.NodeId, name, unix.AT_REMOVEDIR)
}

func (s *Server) remove(id uint64, name string, flags int) fuse.Status {
	_, d, code := s.changing(id, name)
	if !code.Ok() {
		return code
	}
	defer d.release()
	return status(unix.Unlinkat(d.fd, name, flags))
}

// Rename implements [fuse.RawFileSystem].
func (s *Server) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	oldDir, from, code := s.changing(in.NodeId, oldName)
	if !code.Ok() {
		return code
	}
	defer from.release()
	newDir, to, code := s.changing(in.Newdir, newName)
	if !code.Ok() {
		return code
	}
	defer to.release()
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	if err := unix.Renameat2(from.fd, oldName, to.fd, newName, uint(in.Flags)); err != nil {
		return status(err)
	}
	s.moved(to.fd, newDir, newName)
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		s.moved(from.fd, oldDir, oldName)
	}
	return fuse.OK
}

// moved notes where a file is now, if the guest knows it.
func (s *Server) moved(fd int, dir *node, name string) {
	st, err := statAt(fd, name, 0)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A directory cannot be below itself; the host's kernel refused that, and what was changed on the host meanwhile is not to make a ring here.
	n := s.ids[st.id()]
	for p := dir; p != nil; p = p.parent {
		if p == n {
			return
		}
	}
	if n != nil && n.id != fuse.FUSE_ROOT_ID {
		n.parent, n.name = dir, name
	}
}

// SetAttr implements [fuse.RawFileSystem].
func (s *Server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !s.export.Writable {
		return fuse.EROFS
	}
	n, code := s.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	if err := s.setAttr(n, in); err != nil {
		return status(err)
	}
	st, code := s.statNode(in.NodeId)
	if code.Ok() {
		out.AttrValid = cacheSeconds
		s.attr(st, &out.Attr)
	}
	return code
}

func (s *Server) setAttr(n *node, in *fuse.SetAttrIn) error {
	if size, ok := in.GetSize(); ok {
		if size > 1<<62 {
			return unix.EFBIG
		}
		f, err := s.written(n)
		if err != nil {
			return err
		}
		err = unix.Ftruncate(f.fd, int64(size))
		f.release()
		if err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		f, err := s.content(n) // a link has no mode
		if err != nil {
			return err
		}
		err = unix.Fchmod(f.fd, mode&permissions)
		f.release()
		if err != nil {
			return err
		}
	}
	uid, u := in.GetUID()
	gid, g := in.GetGID()
	atime, a := in.GetATime()
	mtime, m := in.GetMTime()
	if !u && !g && !a && !m {
		return nil
	}
	if n.kind == unix.S_IFLNK {
		return s.setLink(n, u, uid, g, gid)
	}
	f, err := s.content(n)
	if err == unix.EACCES { // its owner may write to it and not read it
		f, err = s.written(n)
	}
	if err != nil {
		return err
	}
	defer f.release()
	if u || g {
		owner, group := -1, -1
		if u {
			owner = int(uid)
		}
		if g {
			group = int(gid)
		}
		if err := unix.Fchown(f.fd, owner, group); err != nil {
			return err
		}
	}
	if a || m {
		times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
		if a {
			times[0] = unix.NsecToTimespec(atime.UnixNano())
		}
		if m {
			times[1] = unix.NsecToTimespec(mtime.UnixNano())
		}
		return futimens(f.fd, &times)
	}
	return nil
}

// setLink answers what would change a symbolic link's owner or times. That is done by name, which neither Landlock nor seccomp can hold to the export,
// so it is not done: times stay what they are, as where a file system has none for links.
func (s *Server) setLink(n *node, u bool, uid uint32, g bool, gid uint32) error {
	st, code := s.statNode(n.id)
	if !code.Ok() {
		return unix.Errno(code)
	}
	if u && uid != st.Uid || g && gid != st.Gid {
		return unix.EPERM
	}
	return nil
}

// written opens regular file n for writing.
func (s *Server) written(n *node) (*openFile, error) {
	if n.kind != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	return s.fds.get(fdKey{n, forWriting}, func() (int, error) {
		return s.openBelow(n, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	})
}

// Write implements [fuse.RawFileSystem].
func (s *Server) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return s.Writev(cancel, in, [][]byte{data})
}

// Writev implements what go-fuse asks for where the data is in pieces.
func (s *Server) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if !s.export.Writable {
		return 0, fuse.EROFS
	}
	n, code := s.node(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	if in.Offset > 1<<62 {
		return 0, fuse.Status(unix.EFBIG)
	}
	f, err := s.written(n)
	if err != nil {
		return 0, status(err)
	}
	defer f.release()
	total := 0
	for _, p := range data {
		for len(p) > 0 {
			k, err := unix.Pwrite(f.fd, p, int64(in.Offset)+int64(total))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				if total > 0 {
					return uint32(total), fuse.OK
				}
				return 0, status(err)
			}
			total, p = total+k, p[k:]
		}
	}
	return uint32(total), fuse.OK
}

// Fsync implements [fuse.RawFileSystem].
func (s *Server) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if !s.export.Writable {
		return fuse.OK
	}
	n, code := s.node(in.NodeId)
	if !code.Ok() {
		return code
	}
	f, err := s.content(n)
	if err != nil {
		return status(err)
	}
	defer f.release()
	return status(unix.Fsync(f.fd))
}
