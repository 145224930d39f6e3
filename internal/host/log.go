package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Names of a guest's logs.
const (
	ConsoleLog = "console.log" // what its first serial port wrote
	OutputLog  = "output.log"  // what its command wrote, where nobody else got it
)

// logKept is how many of the last bytes of a log are kept at least, logRoom how many its file may take on the disk.
const (
	logKept = 1 << 20
	logRoom = 2 * logKept
)

// A Log is a file that is written for ever and takes up logRoom at most: what is old is cut out of it as a hole (fallocate(2)), so that offsets stay
// what they were and a reader who follows need not know.
type Log struct {
	mu   sync.Mutex // guards what follows
	f    *os.File
	end  int64 // the file's size
	hole int64 // where what is kept begins
	lost int64 // bytes that could not be written
}

// OpenLog makes one of the guest's logs. The caller closes it.
func (g *Guest) OpenLog(name string) (*Log, error) {
	f, err := os.OpenFile(filepath.Join(g.dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("host: %w", err)
	}
	return &Log{f: f}, nil
}

// Write never fails: that the disk is full is not the guest's fault, whose words are lost then.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.f.WriteAt(p, l.end)
	l.end += int64(n)
	if err != nil {
		l.lost += int64(len(p) - n)
	}
	if l.end-l.hole > logRoom {
		l.hole = l.end - logKept
		if unix.Fallocate(int(l.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, l.hole) != nil {
			l.f.Truncate(0) // a file system without holes: begin anew
			l.end, l.hole = 0, 0
		}
	}
	return len(p), nil
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

// A LogReader reads what is kept of a log, and goes on where it is called again after io.EOF.
type LogReader struct {
	f   *os.File
	off int64
}

// OpenLog opens one of the guest's logs for reading.
func (e *Entry) OpenLog(name string) (*LogReader, error) {
	if e.guest != nil {
		return nil, e.foreign()
	}
	f, err := os.OpenFile(filepath.Join(e.dir, name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s", e.Name, name)
	}
	if err != nil {
		return nil, err
	}
	r := &LogReader{f: f}
	return r, r.skip()
}

// skip moves on over a hole.
func (r *LogReader) skip() error {
	off, err := unix.Seek(int(r.f.Fd()), r.off, unix.SEEK_DATA)
	switch err {
	case nil:
		r.off = max(r.off, off)
	case unix.ENXIO, unix.EINVAL: // nothing there yet; a file system that cannot tell
	default:
		return fmt.Errorf("host: %s: %w", r.f.Name(), err)
	}
	return nil
}

// Read implements io.Reader.
func (r *LogReader) Read(p []byte) (int, error) {
	if fi, err := r.f.Stat(); err == nil && fi.Size() < r.off {
		r.off = 0
	}
	if err := r.skip(); err != nil {
		return 0, err
	}
	n, err := r.f.ReadAt(p, r.off)
	r.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Close closes the file.
func (r *LogReader) Close() error { return r.f.Close() }
