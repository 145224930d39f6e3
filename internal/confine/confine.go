// Package confine takes rights from a process, for good and on all of its threads.
//
// Each layer stands alone, so that one may be missing on a host or have a hole: no new privileges, resource limits, Landlock, another user, no
// capabilities, and a list of the system calls that are left (seccomp).
package confine

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Rights are what a process keeps. The zero value keeps nothing but what Go's run time needs, and what is open.
type Rights struct {
	// Calls are allowed beside those of Go's run time.
	Calls []Call
	// Code lets the process map memory as code: for who makes code at run time.
	Code bool
	// Files are what it may still open, where it has the calls for that.
	Files []Below
	// Connect lets it connect by TCP, where it has the calls for that.
	Connect bool
	// User is the user and group that it becomes, without further groups, where it is root; 0: it stays who it is. A user namespace may not
	// have the number: then it becomes nobody.
	User int
	// Capabilities are those it keeps of what it has, as bits, where it stays root.
	Capabilities uint64
	// OpenFiles is how many descriptors it may have, 0: as many as before. FileSize bounds the files that it writes; negative: no bound.
	OpenFiles uint64
	FileSize  int64
	// DieWithParent has the kernel kill the process when the thread that started it ends.
	DieWithParent bool
}

// Nobody is the user of strangers: the kernel's overflow id.
const Nobody = 65534

// users begins a range of user numbers that no system hands out (systemd.io/UIDS-GIDS has its ends). Below 2^31.
const users = 0x7E000000

// UserOf is a user number that nobody else on this host has while the process lives: two guests cannot signal or trace each other.
func UserOf(pid int) int { return users + pid }

// errCgo: the kernel takes most rights thread by thread, and Go reaches all threads only in a program without cgo.
var errCgo = errors.New("the program is built with cgo: no Landlock, capabilities kept")

// ErrPart is returned by Apply, wrapped, where this host lacks a layer. All others are in place.
var ErrPart = errors.New("the host lacks a part of the confinement")

// Apply takes all but r from the calling process. An error that is ErrPart says which layers the host lacks; after any other error the process is
// confined in part and should end.
func Apply(r Rights) error {
	// With cgo no_new_privs is this thread's alone until the filter takes it to the others.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var lacks []error
	err := noNewPrivileges()
	if errors.Is(err, errCgo) {
		lacks, err = append(lacks, err), nil
	}
	if err != nil {
		return fmt.Errorf("confine: no_new_privs: %w", err)
	}
	if err := limit(r); err != nil {
		return fmt.Errorf("confine: resource limits: %w", err)
	}
	if err := landlock(r.Files, r.Connect); errors.Is(err, ErrNoLandlock) {
		lacks = append(lacks, err)
	} else if err != nil {
		return fmt.Errorf("confine: Landlock: %w", err)
	}
	if err := identity(r); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	if r.DieWithParent { // another user would have ended that
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return fmt.Errorf("confine: death signal: %w", err)
		}
	}
	memory := plainMemory
	if r.Code {
		memory = anyMemory
	}
	err = seccomp(slices.Concat(With(unix.SYS_TGKILL, 0, uint32(unix.Getpid())), r.Calls, goCalls, memory))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		lacks = append(lacks, errors.New("no seccomp filters here"))
	} else if err != nil {
		return fmt.Errorf("confine: seccomp: %w", err)
	}
	if lacks != nil {
		return fmt.Errorf("%w: %w", ErrPart, errors.Join(lacks...))
	}
	return nil
}

// noNewPrivileges sets no_new_privs, with which any process may take the rest from itself. In a program with cgo it is set on this thread alone, and
// seccomp's filter carries it to the others (SECCOMP_FILTER_FLAG_TSYNC).
func noNewPrivileges() error {
	err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return errCgo
}

// limit sets resource limits that cannot be raised again without CAP_SYS_RESOURCE.
func limit(r Rights) error {
	limits := map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0}
	if r.FileSize >= 0 {
		limits[unix.RLIMIT_FSIZE] = uint64(r.FileSize)
	}
	if r.OpenFiles > 0 {
		limits[unix.RLIMIT_NOFILE] = r.OpenFiles
	}
	for what, most := range limits {
		var l unix.Rlimit
		if err := unix.Getrlimit(what, &l); err != nil {
			return err
		}
		l = unix.Rlimit{Cur: min(most, l.Max), Max: min(most, l.Max)}
		if err := unix.Setrlimit(what, &l); err != nil {
			return err
		}
	}
	return nil
}

// lastCapability bounds the search for the kernel's last one.
const lastCapability = 63

// identity changes the user, and drops capabilities.
func identity(r Rights) error {
	permitted, err := Permitted() // the root of a container has not all
	if err != nil {
		return err
	}
	keep := r.Capabilities & permitted
	if unix.Geteuid() == 0 {
		if err := bound(keep, allThreads); err != nil {
			return fmt.Errorf("bounding set: %w", err)
		}
		if r.User != 0 && become(r.User) == nil {
			keep = 0
		}
	} else {
		keep = 0
	}
	err = capset(keep)
	if errors.Is(err, unix.ENOTSUP) { // a program with cgo, whose user has changed, or that had none
		return nil
	}
	if err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// BoundThread takes from the calling thread's bounding set all capabilities but those that a process needs that is going to call Apply to keep keep: what
// the thread starts has no others from the beginning. For all threads of a process that has some, Apply takes far longer.
func BoundThread(keep uint64) error {
	return bound(keep|1<<unix.CAP_SETUID|1<<unix.CAP_SETGID|1<<unix.CAP_SETPCAP, func(number, a, b, c uintptr) error {
		if _, _, e := unix.RawSyscall(number, a, b, c); e != 0 {
			return e
		}
		return nil
	})
}

// bound takes what is not in keep out of the bounding set, and all out of the ambient set, by call, which makes a system call. A root
// without CAP_SETPCAP cannot, nor a program with cgo: no_new_privs makes both sets idle.
func bound(keep uint64, call func(number, a, b, c uintptr) error) error {
	err := call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	for c := uintptr(0); c <= lastCapability && err == nil; c++ {
		has, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0)
		if e != 0 { // EINVAL: the kernel has no more
			break
		}
		if has == 1 && keep&(1<<c) == 0 {
			err = call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		}
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// become changes to user and group n, or nobody, and leaves all other groups. A root without CAP_SETUID cannot, and stays a root without capabilities.
func become(n int) error {
	var err error
	for _, id := range []int{n, Nobody} {
		syscall.Setgroups(nil) // a user namespace may forbid it, and its groups are the user's own then
		if err = syscall.Setresgid(id, id, id); err == nil {
			err = syscall.Setresuid(id, id, id)
		}
		if err == nil {
			return nil
		}
	}
	return err
}
