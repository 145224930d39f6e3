package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTaken is returned for the name of a guest that runs.
var ErrTaken = errors.New("a guest of this name is running")

// A Guest is the calling process's entry in the registry.
type Guest struct {
	dir  string
	lock *os.File

	mu    sync.Mutex // guards what follows, and the state's file
	state State
	files Files
}

// Files are the files of a guest's directory, as far as they change once the guest runs. A [Directory] changes them itself; a process without the right to has
// another do it.
type Files interface {
	// WriteState replaces the state's file whole, so that who reads sees the old or the new.
	WriteState(text []byte) error
	// RemoveSocket removes the guest's socket, Remove its directory, and nothing that we did not make.
	RemoveSocket() error
	Remove() error
}

// Delegate has what changes from now on changed by f.
func (g *Guest) Delegate(f Files) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files = f
}

// Register enters a guest in the registry, under s.Name, or a name made up where it is empty. The directories of guests that have gone are
// removed on the way.
func Register(s State) (*Guest, error) {
	if s.Name != "" {
		if err := CheckName(s.Name); err != nil {
			return nil, err
		}
	}
	top := Dir()
	if err := makeDir(top); err != nil {
		return nil, err
	}
	making, err := lockTop(top)
	if err != nil {
		return nil, err
	}
	defer making.Close()
	sweep(top)
	for try := 0; ; try++ {
		name := s.Name
		if name == "" {
			name = madeUp()
			if try >= 100 {
				name += "-" + strconv.Itoa(os.Getpid())
			}
		}
		g, err := enter(filepath.Join(top, name), s)
		if errors.Is(err, os.ErrExist) {
			if s.Name == "" && try < 200 {
				continue
			}
			if e, ok := read(filepath.Join(top, name)); ok && e.State.State == Ended {
				return nil, fmt.Errorf("--name %s: a guest of this name has ended: choose another, or vitrine rm %s", name, name)
			}
			return nil, fmt.Errorf("--name %s: %w: choose another, or vitrine stop %s", name, ErrTaken, name)
		}
		return g, err
	}
}

// lockTop takes the lock under which guests' directories come and go; closing the file lets go of it.
func lockTop(top string) (*os.File, error) {
	making, err := os.OpenFile(filepath.Join(top, makingFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("host: %w", err)
	}
	if err := lock(making, unix.F_OFD_SETLKW); err != nil {
		making.Close()
		return nil, fmt.Errorf("host: %s: %w", making.Name(), err)
	}
	return making, nil
}

// sweep removes what guests that have gone left in top. The caller holds the lock of top.
func sweep(top string) {
	names, _ := os.ReadDir(top)
	for _, n := range names {
		dir := filepath.Join(top, n.Name())
		if CheckName(n.Name()) != nil || !n.IsDir() || locked(filepath.Join(dir, lockFile)) {
			continue
		}
		if _, kept := read(dir); !kept {
			Directory(dir).Remove()
		}
	}
}

func enter(dir string, s State) (*Guest, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	g := &Guest{dir: dir, state: s, files: Directory(dir)}
	g.state.Name = filepath.Base(dir)
	var err error
	g.lock, err = os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = lock(g.lock, unix.F_OFD_SETLK)
	}
	if err == nil {
		err = g.write()
	}
	if err != nil {
		g.Close()
		return nil, fmt.Errorf("host: %w", err)
	}
	return g, nil
}

func lock(f *os.File, cmd int) error {
	for {
		err := unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: unix.F_WRLCK})
		if err != unix.EINTR {
			return err
		}
	}
}

// Name is the guest's.
func (g *Guest) Name() string { return g.state.Name }

// Dir is the guest's directory.
func (g *Guest) Dir() string { return g.dir }

// State is what listings say now.
func (g *Guest) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}

// Update changes what listings say.
func (g *Guest) Update(fn func(*State)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	fn(&g.state)
	return g.write()
}

// write writes state.json. The caller holds g.mu, or is alone.
func (g *Guest) write() error {
	text, err := json.Marshal(g.state)
	if err != nil {
		return err
	}
	return g.files.WriteState(append(text, '\n'))
}

// Listen makes the guest's socket, for its owner alone.
func (g *Guest) Listen() (*net.UnixListener, error) {
	path, done, err := shortPath(filepath.Join(g.dir, socketFile))
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("host: %w", err)
	}
	l.SetUnlinkOnClose(false) // Close removes it; a path by descriptor means nothing later
	return l, os.Chmod(filepath.Join(g.dir, socketFile), 0o600)
}

// Finish ends the entry of a guest that is kept: it is listed as ended, with its status and logs, until it is removed.
func (g *Guest) Finish(status int, why string) error {
	now := time.Now().UTC().Truncate(time.Second)
	err := g.Update(func(s *State) { s.State, s.ExitStatus, s.Error, s.Finished = Ended, &status, why, &now })
	g.files.RemoveSocket()
	if err != nil { // an entry that says it runs would be swept anyway
		g.files.Remove()
	}
	return errors.Join(err, g.lock.Close())
}

// Close takes the guest out of the registry.
func (g *Guest) Close() error {
	g.files.Remove()
	if g.lock == nil {
		return nil
	}
	return g.lock.Close()
}

// Dial connects to the guest's VM process.
func (e *Entry) Dial() (*net.UnixConn, error) {
	if e.guest != nil {
		return nil, e.foreign()
	}
	path, done, err := shortPath(e.Socket())
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%s: its process does not answer: %w", e.Name, err)
	}
	return c, nil
}

// shortPath gives a name of path that fits into a socket address (108 bytes, unix(7)). It is valid until done is called.
func shortPath(path string) (short string, done func(), err error) {
	if len(path) < 108 {
		return path, func() {}, nil
	}
	d, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, fmt.Errorf("host: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path)), func() { d.Close() }, nil
}
