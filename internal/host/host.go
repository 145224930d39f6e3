// Package host knows the guests of this host: it keeps the registry of our own, and finds those of others.
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
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/host/vmm"
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

	Owner     string `json:"owner,omitempty"`     // of another VMM's guest: the user whose process it is
	Container string `json:"container,omitempty"` // that the process is in
	Manager   string `json:"manager,omitempty"`   // libvirt
	Unseen    string `json:"unseen,omitempty"`    // why nobody but its owner can look into it

	ExitStatus *int       `json:"exit_status,omitempty"` // of a guest that has ended
	Error      string     `json:"error,omitempty"`       // why, where it was not its command's end
	Finished   *time.Time `json:"finished,omitempty"`
}

// Ended is the State of a guest that has ended and is kept to be asked about.
const Ended = "ended"

// An Entry is a guest as the registry has it, or another VMM's as it was found.
type Entry struct {
	State
	dir   string
	guest *vmm.Guest // of another VMM
}

// ErrForeign is returned for what only our own guests do.
var ErrForeign = errors.New("it is not Vitrine's guest: one can look into it, and no more")

// Foreign is what is known of another VMM's guest; nil of our own.
func (e *Entry) Foreign() *vmm.Guest { return e.guest }

// Socket is where the guest's VM process answers.
func (e *Entry) Socket() string { return filepath.Join(e.dir, socketFile) }

// List gives our running guests, by name. It creates and changes nothing. What cannot be read is left out.
func List() ([]Entry, error) { return list(false) }

// ListAll gives those that have ended and are kept, too.
func ListAll() ([]Entry, error) { return list(true) }

// Others gives the running guests that are in none of the registries, by name: other VMMs'.
func Others() ([]Entry, error) {
	found, err := vmm.Scan("/proc", nil)
	if err != nil {
		return nil, fmt.Errorf("host: %w", err)
	}
	ours, err := list(false) // asked later: what has begun meanwhile is here
	if err != nil {
		return nil, err
	}
	known := map[int]bool{}
	for _, e := range ours {
		known[e.PID] = true
	}
	var all []Entry
	for i := range found {
		if g := &found[i]; !known[g.PID] {
			all = append(all, other(g))
		}
	}
	byName(all)
	return all, nil
}

// other is the entry of another VMM's guest.
func other(g *vmm.Guest) Entry {
	s := State{
		Name: g.Name, VMM: g.VMM, PID: g.PID, Accelerator: g.Accelerator, CPUs: g.CPUs, MemoryBytes: g.MemoryBytes, State: "running",
		Started: g.Started, Container: g.Container, Manager: g.Manager, Unseen: g.Unseen,
	}
	if g.Stopped {
		s.State = "stopped"
	}
	if g.UID >= 0 {
		s.Owner = vmm.Owner(g.UID)
	}
	if s.Unseen == "" && g.Protected != "" {
		s.Unseen = "its memory is kept from the host (" + g.Protected + ")"
	}
	return Entry{State: s, guest: g}
}

func byName(all []Entry) {
	sort.SliceStable(all, func(i, j int) bool { return all[i].Name < all[j].Name })
}

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
	byName(all)
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

// Find gives the running guest with this name, or of this process, or with this unambiguous beginning of a name.
func Find(name string) (*Entry, error) { return findIn(List, name) }

// FindAny is Find, also among those that have ended and are kept.
func FindAny(name string) (*Entry, error) { return findIn(ListAll, name) }

// findIn looks among ours, and, where none has the very name, among others' too.
func findIn(list func() ([]Entry, error), name string) (*Entry, error) {
	all, err := list()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == name {
			return &all[i], nil
		}
	}
	others, err := Others()
	if err != nil {
		return nil, err
	}
	return find(append(all, others...), name)
}

// Dir is the guest's directory.
func (e *Entry) Dir() string { return e.dir }

// WaitGone waits until the guest's process has let go of its entry.
func (e *Entry) WaitGone() error {
	if e.guest != nil {
		return e.foreign()
	}
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
	if e.guest != nil {
		return e.foreign()
	}
	making, err := lockTop(filepath.Dir(e.dir))
	if err != nil {
		return err
	}
	defer making.Close()
	if locked(filepath.Join(e.dir, lockFile)) {
		return fmt.Errorf("%s runs: vitrine stop %s, or rm --force", e.Name, e.Name)
	}
	Directory(e.dir).Remove()
	return nil
}

func (e *Entry) foreign() error { return fmt.Errorf("%s: %w", e.Name, ErrForeign) }

// find prefers the very name to a process's number, and that to a beginning of a name.
func find(all []Entry, name string) (*Entry, error) {
	pid, _ := strconv.Atoi(name)
	for _, is := range []func(*Entry) bool{
		func(e *Entry) bool { return e.Name == name },
		func(e *Entry) bool { return pid > 0 && e.PID == pid && e.State.State != Ended },
		func(e *Entry) bool { return name != "" && strings.HasPrefix(e.Name, name) },
	} {
		var found []*Entry
		for i := range all {
			if is(&all[i]) {
				found = append(found, &all[i])
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return nil, which(name, found)
		}
	}
	return nil, fmt.Errorf("%q: no such guest: see vitrine ls", name)
}

// which asks back.
func which(name string, found []*Entry) error {
	var names []string
	for _, e := range found[:min(len(found), 4)] {
		if e.Name == name {
			names = append(names, strconv.Itoa(e.PID))
		} else {
			names = append(names, e.Name)
		}
	}
	help := "Give more of the name"
	if found[0].Name == name {
		help = "Several have the name: give the process"
	}
	return fmt.Errorf("%q: is it %s? %s", name, strings.Join(names, ", "), help)
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
