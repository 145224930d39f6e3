package files

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/hostfs"
	"vitrine.dev/vitrine/internal/mem"
)

// more are the threads that serve an export's requests beside the first.
const more = 5

// Main is the helper.
func Main(c *helper.Conn) error {
	var s setup
	fds, err := c.Recv(&s)
	if err != nil {
		return err
	}
	if len(fds) != 1+2*len(s.Exports) {
		return c.Refuse(errSetup)
	}
	ram, err := mem.Open(fds[0])
	if err != nil {
		return c.Refuse(err)
	}
	var servers []*hostfs.Server
	for i, e := range s.Exports {
		if err := setHot(fds[1+2*i]); err != nil {
			return c.Refuse(err)
		}
		server, err := hostfs.New(e)
		if err != nil {
			return c.Refuse(err)
		}
		servers = append(servers, server)
	}
	if err := c.Confine(rights(&s, servers)); err != nil {
		return err
	}
	runtime.GOMAXPROCS(len(servers) + more) // each first thread keeps one for itself, mostly idle
	var all sync.WaitGroup
	for i, server := range servers {
		first, second := fds[1+2*i], fds[2+2*i]
		all.Go(func() { serve(first, first, receiveHot, ram, server) })
		for range more {
			all.Go(func() { serve(second, first, receive, ram, server) })
		}
	}
	all.Wait()
	return nil
}

// serve answers requests until the guest's process has gone: it takes them from fd, and answers by to.
func serve(fd, to int, receive func(int, []byte) (int, error), ram *mem.Memory, server *hostfs.Server) {
	in := make([]byte, maxRequest+1)
	var r request
	var answer [answerSize]byte
	for {
		n, err := receive(fd, in)
		if err != nil || n == 0 {
			return
		}
		if err := r.parse(ram, in[:n]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			unix.Shutdown(to, unix.SHUT_RDWR)
			return
		}
		putAnswer(&answer, r.slot, uint32(server.Handle(r.in, r.out)))
		if send(to, answer[:]) != nil {
			return
		}
	}
}

// System calls of a file server. Those that take a name are all under Landlock, but for statx and readlinkat: who, what time and what mode a file
// has is changed by its descriptor.
var (
	readingCalls = confine.Calls(
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_STATX, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_FSTATFS,
		unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SHUTDOWN, unix.SYS_RECVMSG, unix.SYS_SENDMSG,
	)
	changingCalls = append(confine.Calls(
		unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_FCHMOD, unix.SYS_FCHOWN,
		unix.SYS_FTRUNCATE, unix.SYS_FSYNC,
	), confine.Call{Number: unix.SYS_UTIMENSAT, Args: []confine.Arg{{Index: 1}, {Index: 1, High: true}}})
)

// openFiles is enough for each export's cache of descriptors, and some under way.
const openFiles = 1024

// rights are what serving needs: the exports' files, and where it is root the capabilities to read or change them as root may. For what nobody could read,
// no right at all is needed.
func rights(s *setup, servers []*hostfs.Server) confine.Rights {
	r := confine.Rights{Calls: readingCalls, OpenFiles: openFiles, User: s.User}
	for i, e := range s.Exports {
		below := confine.Below{FD: servers[i].Root(), Access: confine.Read | confine.List}
		if e.Rule == hostfs.Owner {
			r.User = 0
			r.Capabilities |= capabilityToRead()
		}
		if e.Writable {
			below.Access |= confine.Change
			r.FileSize = -1
			r.Calls = slices.Concat(readingCalls, changingCalls)
			r.Capabilities |= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_CHOWN | 1<<unix.CAP_FOWNER
		}
		if len(e.Empty) == 0 {
			r.Files = append(r.Files, below)
		} else {
			r.Files = append(r.Files, without(e)...)
		}
	}
	return r
}

// capabilityToRead lets a root read what belongs to others: containers often leave theirs only the second, with which it may write too, as far as Landlock lets it.
func capabilityToRead() uint64 {
	if has, err := confine.Permitted(); err == nil && has&(1<<unix.CAP_DAC_READ_SEARCH) == 0 {
		return 1 << unix.CAP_DAC_OVERRIDE
	}
	return 1 << unix.CAP_DAC_READ_SEARCH
}

// without gives what is directly in an export's directory and not shown empty: Landlock knows only what is allowed. A directory that the
// host makes there later can be seen and not read.
func without(e hostfs.Export) (all []confine.Below) {
	names, _ := os.ReadDir(e.Dir)
	for _, n := range names {
		path := filepath.Join(e.Dir, n.Name())
		if !slices.Contains(e.Empty, path) && (n.IsDir() || n.Type().IsRegular()) {
			all = append(all, confine.Below{Path: path, Access: confine.Read | confine.List})
		}
	}
	return all
}
