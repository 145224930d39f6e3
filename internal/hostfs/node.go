package hostfs

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A node is a file that the guest knows: no descriptor, only where it was found. All but nlookup and the place is fixed.
type node struct {
	id     uint64
	file   fileID
	kind   uint32 // S_IFMT bits
	closed bool   // a directory that is shown without its contents

	// Guarded by Server.mu. A file of several names keeps the one that was looked up last.
	parent  *node
	name    string
	nlookup uint64
}

// maxDepth bounds the climb to the root.
const maxDepth = 1024

// node finds what the guest calls id.
func (s *Server) node(id uint64) (*node, fuse.Status) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n := s.nodes[id]; n != nil {
		return n, fuse.OK
	}
	return nil, fuse.Status(unix.ESTALE)
}

// place says where n was found last.
func (s *Server) place(n *node) (parent *node, name string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return n.parent, n.name
}

// intern gives the node of the file st, found as name in dir, and counts the guest's knowing it.
func (s *Server) intern(dir *node, name string, st *stat, closed bool) *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.ids[st.id()]
	if n == nil {
		s.last++
		n = &node{id: s.last, file: st.id(), kind: st.kind(), closed: closed}
		s.nodes[n.id], s.ids[n.file] = n, n
	}
	if n.id != fuse.FUSE_ROOT_ID {
		n.parent, n.name = dir, strings.Clone(name)
	}
	n.nlookup++
	return n
}

// Forget implements [fuse.RawFileSystem].
func (s *Server) Forget(id, nlookup uint64) {
	s.mu.Lock()
	n := s.nodes[id]
	if n == nil || id == fuse.FUSE_ROOT_ID {
		s.mu.Unlock()
		return
	}
	n.nlookup -= min(nlookup, n.nlookup)
	gone := n.nlookup == 0
	if gone {
		delete(s.nodes, n.id)
		delete(s.ids, n.file)
	}
	s.mu.Unlock()
	if gone {
		s.fds.drop(n)
	}
}

// dir opens directory n for looking up names in it.
func (s *Server) dir(n *node, depth int) (*openFile, error) {
	if n.id == fuse.FUSE_ROOT_ID {
		return &openFile{fd: int(s.root.Fd())}, nil
	}
	if depth > maxDepth {
		return nil, unix.ELOOP
	}
	return s.fds.get(fdKey{n, forNames}, func() (int, error) {
		return s.openBelow(n, unix.O_PATH|unix.O_DIRECTORY, depth)
	})
}

// content opens n for reading its bytes or its names.
func (s *Server) content(n *node) (*openFile, error) {
	if n.id == fuse.FUSE_ROOT_ID {
		if s.names == nil {
			return nil, unix.EACCES
		}
		return s.names, nil
	}
	return s.fds.get(fdKey{n, forReading}, func() (int, error) {
		flags := unix.O_RDONLY | unix.O_NONBLOCK
		switch n.kind {
		case unix.S_IFREG:
		case unix.S_IFDIR:
			flags |= unix.O_DIRECTORY
		default:
			return -1, unix.EACCES
		}
		return s.openBelow(n, flags, 0)
	})
}

// openBelow opens n by its name in its parent, and makes sure that it is still the same file and still to be seen.
// One name is resolved, never a link, a ".." or a path, so nothing above the export can be reached.
func (s *Server) openBelow(n *node, flags, depth int) (int, error) {
	parent, name := s.place(n)
	if parent == nil {
		return -1, unix.ESTALE
	}
	d, err := s.dir(parent, depth+1)
	if err != nil {
		return -1, err
	}
	defer d.release()
	st, err := statAt(d.fd, name, 0)
	if err != nil {
		return -1, err
	}
	// A regular file is opened only when it is known to be one: opening a device or a pipe could act on it.
	if st.id() != n.file || st.kind() != n.kind {
		return -1, unix.ESTALE
	}
	if !s.visible(parent, name, st) {
		return -1, unix.ENOENT
	}
	fd, err := openat(d.fd, name, flags)
	if err != nil {
		return -1, err
	}
	if st, err = s.statFD(fd); err != nil || st.id() != n.file || !s.visible(parent, name, st) {
		unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

// openat opens the one name in dir: beneath it, and not through a link (openat2(2)); older kernels have the same guarantee from
// a name without a slash and O_NOFOLLOW.
func openat(dir int, name string, flags int) (int, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == unix.ENOSYS || err == unix.EPERM {
		return unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	return fd, err
}

// plain tells whether name is one component.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}
