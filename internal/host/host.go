// Package host knows the guests of this host: it keeps the registry of our own.
//
// Each running guest has a directory, named as the guest, in the user's run-time directory (see [Dir]): lock, which its VM process holds
// locked as long as it lives; state.json, which says what it is; api.sock, where it answers. A directory whose lock is free is
// nobody's, whatever else is in it: listings pass it over, and the next guest that starts removes it.
package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names of the files in a guest's directory.
const (
	lockFile   = "lock"
	stateFile  = "state.json"
	socketFile = "api.sock"
	makingFile = ".making" // in the directory above; held while guests' directories come and go
)

// State is what a listing says of a guest. Its keys are promised.
type State struct {
	Name        string    `json:"name"`
	VMM         string    `json:"vmm"`
	PID         int       `json:"pid"`
	Accelerator string    `json:"accelerator"`
	CPUs        int       `json:"cpus"`
	MemoryBytes uint64    `json:"memory_bytes"`
	Kernel      string    `json:"kernel"`
	State       string    `json:"state"` // starting, running, paused, stopping; Ended of a guest that was kept
	Started     time.Time `json:"started"`

	ExitStatus *int       `json:"exit_status,omitempty"` // of a guest that has ended
	Error      string     `json:"error,omitempty"`       // why, where it was not its command's end
	Finished   *time.Time `json:"finished,omitempty"`
}

// Ended is the State of a guest that has ended and is kept to be asked about.
const Ended = "ended"

// An Entry is a running guest as the registry has it.
type Entry struct {
	State
	dir string
}

// Socket is where the guest's VM process answers.
func (e *Entry) Socket() string { return filepath.Join(e.dir, socketFile) }

// List gives the running guests, by name. It creates and changes nothing. What cannot be read is left out.
func List() ([]Entry, error) { return list(false) }

// ListAll gives those that have ended and are kept, too.
func ListAll() ([]Entry, error) { return list(true) }

func list(ended bool) ([]Entry, error) {
	var all []Entry
	for _, dir := range Dirs() {
		names, err := os.ReadDir(dir)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			return nil, fmt.Errorf("host: %w", err)
		}
		for _, n := range names {
			if CheckName(n.Name()) != nil || !n.IsDir() {
				continue
			}
			if e, ok := read(filepath.Join(dir, n.Name())); ok && (ended || e.State.State != Ended) {
				all = append(all, e)
			}
		}
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// read reads one guest's directory, and tells whether the guest lives, or has ended and is kept.
func read(dir string) (Entry, bool) {
	e := Entry{dir: dir}
	alive := locked(filepath.Join(dir, lockFile))
	f, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return e, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil || json.Unmarshal(text, &e.State) != nil {
		return e, false
	}
	e.Name = filepath.Base(dir)
	return e, alive || e.State.State == Ended
}

// Find gives the running guest with this name, or with this unambiguous beginning of a name.
func Find(name string) (*Entry, error) {
	all, err := List()
	if err != nil {
		return nil, err
	}
	return find(all, name)
}

// FindAny is Find, also among those that have ended and are kept.
func FindAny(name string) (*Entry, error) {
	all, err := ListAll()
	if err != nil {
		return nil, err
	}
	return find(all, name)
}

// Dir is the guest's directory.
func (e *Entry) Dir() string { return e.dir }

// WaitGone waits until the guest's process has let go of its entry.
func (e *Entry) WaitGone() error {
	f, err := os.OpenFile(filepath.Join(e.dir, lockFile), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_RDLCK})
		if err != unix.EINTR {
			return err
		}
	}
}

// Remove removes what is kept of a guest that has ended.
func (e *Entry) Remove() error {
	making, err := lockTop(filepath.Dir(e.dir))
	if err != nil {
		return err
	}
	defer making.Close()
	if locked(filepath.Join(e.dir, lockFile)) {
		return fmt.Errorf("%s runs: vitrine stop %s, or rm --force", e.Name, e.Name)
	}
	remove(e.dir)
	return nil
}

func find(all []Entry, name string) (*Entry, error) {
	var found []Entry
	for _, e := range all {
		if e.Name == name {
			return &e, nil
		}
		if name != "" && strings.HasPrefix(e.Name, name) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%q: no such guest: see vitrine ls", name)
	case 1:
		return &found[0], nil
	}
	names := make([]string, 0, 4)
	for _, e := range found[:min(len(found), 4)] {
		names = append(names, e.Name)
	}
	return nil, fmt.Errorf("%q: is it %s? Give more of the name", name, strings.Join(names, ", "))
}

// locked tells whether a process holds the lock on path. It only asks: a lock that was tried and let go would look, to others
// who ask at the same time, like a living guest. That is why it is an open file description lock and not flock(2).
func locked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// A shared lock is asked about, for which reading is enough: it meets the exclusive one that is held.
	fl := unix.Flock_t{Type: unix.F_RDLCK}
	err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &fl)
	return err == nil && fl.Type != unix.F_UNLCK
}
