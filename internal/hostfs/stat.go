package hostfs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const statxMask = unix.STATX_BASIC_STATS

// A fileID is a file's identity on the host.
type fileID struct{ dev, ino uint64 }

// stat is what statx(2) says of a file.
type stat unix.Statx_t

func (st *stat) dev() uint64  { return unix.Mkdev(st.Dev_major, st.Dev_minor) }
func (st *stat) id() fileID   { return fileID{st.dev(), st.Ino} }
func (st *stat) kind() uint32 { return uint32(st.Mode) & unix.S_IFMT }

// statFD is stat of an open file, O_PATH too.
func (s *Server) statFD(fd int) (*stat, error) { return statAt(fd, "", unix.AT_EMPTY_PATH) }

// statAt is stat of the entry name of a directory.
func statAt(dir int, name string, flags int) (*stat, error) {
	var st unix.Statx_t
	for {
		err := unix.Statx(dir, name, flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statxMask, &st)
		if err != unix.EINTR {
			return (*stat)(&st), err
		}
	}
}

// visible applies the export's rule to the entry name of directory dir.
func (s *Server) visible(dir *node, name string, st *stat) bool {
	mode := uint32(st.Mode)
	if s.export.Rule == Owner {
		hidden := dir.file == s.home && len(name) > 0 && name[0] == '.' && st.kind() == unix.S_IFDIR && mode&0o077 == 0
		return !hidden
	}
	switch st.kind() {
	case unix.S_IFREG:
		return mode&unix.S_IROTH != 0
	case unix.S_IFDIR:
		return mode&unix.S_IXOTH != 0 || s.empty[st.id()]
	}
	return true // links, devices, pipes and sockets are names only: the server never opens one
}

// attr turns st into what the guest is told. Inode numbers of other devices than the root's carry the device's number on top, so that
// no two files of the export share one.
func (s *Server) attr(st *stat, a *fuse.Attr) {
	*a = fuse.Attr{
		Ino: st.Ino ^ s.device(st.dev())<<48, Size: st.Size, Blocks: st.Blocks,
		Atime: uint64(st.Atime.Sec), Atimensec: st.Atime.Nsec,
		Mtime: uint64(st.Mtime.Sec), Mtimensec: st.Mtime.Nsec,
		Ctime: uint64(st.Ctime.Sec), Ctimensec: st.Ctime.Nsec,
		Mode: uint32(st.Mode), Nlink: st.Nlink, Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev: uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)), Blksize: st.Blksize,
	}
}

func (s *Server) device(dev uint64) uint64 {
	s.mu.RLock()
	n, ok := s.devs[dev]
	s.mu.RUnlock()
	if ok {
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok = s.devs[dev]; !ok {
		n = uint64(len(s.devs)) & 0xFFFF
		s.devs[dev] = n
	}
	return n
}

// pseudo are the file systems that never cross: they have no files, only views of the host's kernel, or may hang (statfs(2)).
var pseudo = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true,
	unix.DEVPTS_SUPER_MAGIC: true, unix.PSTOREFS_MAGIC: true, unix.EFIVARFS_MAGIC: true, unix.SELINUX_MAGIC: true,
	unix.SMACK_MAGIC: true, unix.BINFMTFS_MAGIC: true, unix.HUGETLBFS_MAGIC: true, unix.AUTOFS_SUPER_MAGIC: true,
	unix.NSFS_MAGIC: true, unix.RDTGROUP_SUPER_MAGIC: true,
	0x62656570: true, // configfs
	0x19800202: true, // mqueue
	0x67596969: true, // rpc_pipefs
	0x65735543: true, // fusectl
	0x65735546: true, // FUSE: its server may never answer
	0x1373:     true, // devfs
}

// barrier tells whether the directory behind fd is a pseudo file system's.
func barrier(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) != nil || pseudo[int64(st.Type)]
}
