// Package hostfs serves a directory of the host to a guest as a FUSE file system, read-only unless the export says otherwise.
//
// What a guest may see is decided here, never by trust in the guest: by a rule on each file, by opening one name at a time below
// its parent and never through a symbolic link, and by the rights of the process that serves (see internal/helper/files).
package hostfs

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ErrPseudo is returned for a directory of a file system that has no files, only views of the host's kernel: it is not served.
var ErrPseudo = errors.New("is a pseudo file system, which guests are not shown")

// A Rule says which files of an export a guest sees.
type Rule uint8

const (
	// Nobody shows what a stranger on the host could read: regular files with the others' read bit, directories with their
	// search bit. All else is absent.
	Nobody Rule = iota
	// Owner shows what the user who runs Vitrine can read.
	Owner
)

// An Export is a directory to be served.
type Export struct {
	Dir  string
	Rule Rule
	// Home is the user's home directory: with the rule Owner, its dot-directories that nobody else may enter stay absent.
	// Empty where there is none.
	Home string
	// Writable lets the guest change what is below Dir, as the user who runs Vitrine may. It makes neither set-user-ID files nor devices.
	Writable bool
	// Empty are absolute paths of directories shown without their contents.
	Empty []string
}

// HostRoot is the host's own root under the rule that guests see it by.
func HostRoot(rule Rule) Export {
	return Export{Dir: "/", Rule: rule, Empty: []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/home"}}
}

const (
	// maxRequest is the largest read, in bytes.
	maxRequest = 1 << 20
	// cachedFDs bounds the descriptors kept open: the whole process is to live with 1,024.
	cachedFDs = 256
	// cacheSeconds is how long the guest may go on believing a name and its attributes.
	cacheSeconds = 5
)

// A Server serves one export. Its Handle may be called from several threads at once.
type Server struct {
	fuse.RawFileSystem
	export Export
	proto  *fuse.ProtocolServer
	root   *os.File
	names  *openFile // the root's, opened before rights were given up; nil where it may not be listed
	home   fileID
	empty  map[fileID]bool

	mu    sync.RWMutex
	nodes map[uint64]*node // by node id, what the guest knows
	ids   map[fileID]*node
	last  uint64
	devs  map[uint64]uint64 // a small number for each device, the root's is 0

	fds fdCache
}

// Root is the descriptor of the directory that is served (O_PATH).
func (s *Server) Root() int { return int(s.root.Fd()) }

// Check tells what New would say of the directory of e.
func (e Export) Check() error {
	fd, err := e.open()
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// open opens the directory, for its name alone.
func (e Export) open() (int, error) {
	fd, err := unix.Open(e.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("hostfs: %s: %w", e.Dir, err)
	}
	if barrier(fd) {
		unix.Close(fd)
		return -1, fmt.Errorf("hostfs: %s: %w", e.Dir, ErrPseudo)
	}
	return fd, nil
}

// New opens the directory of e. The error is ErrPseudo for one in /proc or the like.
func New(e Export) (*Server, error) {
	dir, err := filepath.Abs(e.Dir)
	if err != nil {
		return nil, fmt.Errorf("hostfs: %w", err)
	}
	e.Dir = dir
	fd, err := e.open()
	if err != nil {
		return nil, err
	}
	s := &Server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), export: e, root: os.NewFile(uintptr(fd), dir),
		nodes: map[uint64]*node{}, ids: map[fileID]*node{}, devs: map[uint64]uint64{}, empty: map[fileID]bool{}, last: fuse.FUSE_ROOT_ID,
	}
	st, err := s.statFD(fd)
	if err != nil {
		s.root.Close()
		return nil, fmt.Errorf("hostfs: %s: %w", dir, err)
	}
	s.devs[st.dev()] = 0
	root := &node{id: fuse.FUSE_ROOT_ID, file: st.id(), kind: unix.S_IFDIR, nlookup: 1}
	s.nodes[root.id], s.ids[root.file] = root, root
	for _, p := range e.Empty {
		if id, ok := identify(p); ok && id != root.file {
			s.empty[id] = true
		}
	}
	if e.Home != "" {
		s.home, _ = identify(e.Home)
	}
	if e.Rule == Owner || uint32(st.Mode)&unix.S_IROTH != 0 {
		if fd, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			s.names = &openFile{fd: fd}
		}
	}
	s.proto = fuse.NewProtocolServer(s, &fuse.MountOptions{
		MaxWrite: maxRequest, MaxReadAhead: maxRequest, EnableSymlinkCaching: true, Name: "vitrine",
		Logger: log.New(io.Discard, "", 0),
	})
	return s, nil
}

// Close closes every descriptor. No Handle may be running.
func (s *Server) Close() error {
	s.fds.closeAll()
	if s.names != nil {
		unix.Close(s.names.fd)
	}
	return s.root.Close()
}

// Handle serves one FUSE request: in is the request, out takes the answer. It returns how much of out was written. The buffers
// are guest memory and may change at any time.
func (s *Server) Handle(in, out [][]byte) int {
	n, _ := s.proto.HandleRequest(in, out)
	return n
}

// identify gives the identity of the directory at path, not following a symbolic link at its end.
func identify(path string) (fileID, bool) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, statxMask, &st); err != nil {
		return fileID{}, false
	}
	return (*stat)(&st).id(), true
}

func status(err error) fuse.Status {
	switch e := err.(type) {
	case nil:
		return fuse.OK
	case syscall.Errno:
		return fuse.Status(e)
	}
	return fuse.EIO
}

// String implements [fuse.RawFileSystem].
func (s *Server) String() string { return "vitrine:" + s.export.Dir }
