package vitrine

import (
	"io"
	"net"
	"sync"
)

// A keyboard is what is typed at a guest's first serial port, from wherever.
type keyboard struct {
	r *io.PipeReader
	w *io.PipeWriter
}

// newKeyboard takes in's bytes too; a Read of it may outlive the keyboard.
func newKeyboard(in io.Reader) *keyboard {
	k := &keyboard{}
	k.r, k.w = io.Pipe()
	if in != nil {
		go io.Copy(k.w, in)
	}
	return k
}

// close ends every Write that waits for the guest to read.
func (k *keyboard) close() { k.r.CloseWithError(io.ErrClosedPipe) }

// watcherRoom is how far behind one who watches a console may fall, in writes, before lines are left out.
const watcherRoom = 1024

// watch gives what is written from now on, after what is remembered. The channel is closed by done.
func (t *tail) watch() (past string, next <-chan []byte, done func()) {
	c := make(chan []byte, watcherRoom)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watchers == nil {
		t.watchers = map[chan []byte]bool{}
	}
	t.watchers[c] = true
	return string(t.buf[max(0, len(t.buf)-tailSize):]), c, sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.watchers, c)
		close(c)
	})
}

// ServeConsole connects a tool with the guest's first serial port: what that wrote last comes first.
func (m *Machine) ServeConsole(c net.Conn) {
	past, next, done := m.console.watch()
	var writer sync.WaitGroup
	writer.Go(func() {
		defer c.Close()
		if _, err := io.WriteString(c, past); err != nil {
			return
		}
		for p := range next {
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	})
	io.Copy(m.keys.w, c)
	done()
	writer.Wait()
}
