package vitrine

import (
	"io"
	"strings"
	"sync"
	"time"

	"vitrine.dev/vitrine/internal/printable"
)

// tailSize is how much of a console's output is remembered.
const tailSize = 32 << 10

// A tail is a console's output: it remembers the last of it, for the error that a failed boot ends in, and passes it on.
type tail struct {
	next io.Writer // may be nil
	log  io.Writer // never fails; may be nil

	mu       sync.Mutex // guards what follows
	buf      []byte
	last     time.Time // when something was written
	watchers map[chan []byte]bool
}

// Write never fails: that nobody reads a console is not the guest's fault.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > tailSize {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.last = time.Now()
	for c := range t.watchers {
		select {
		case c <- append([]byte(nil), p...):
		default: // who is so slow misses something
		}
	}
	t.mu.Unlock()
	if t.log != nil {
		t.log.Write(p)
	}
	if t.next != nil {
		t.next.Write(p)
	}
	return len(p), nil
}

// text is what is remembered.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[max(0, len(t.buf)-tailSize):])
}

// lines gives the last n lines that say something, with nothing in them that a terminal would obey.
func (t *tail) lines(n int) []string {
	all := strings.FieldsFunc(t.text(), func(r rune) bool { return r == '\n' || r == '\r' })
	var out []string
	for i := len(all) - 1; i >= 0 && len(out) < n; i-- {
		if s := printable.Text(strings.TrimSpace(all[i])); s != "" {
			out = append(out, s)
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// Words of Linux by which a console tells how its kernel ended (kernel/panic.c, kernel/reboot.c). They decide only which status a
// machine that has stopped is given, and when to give up one that has said that it hangs.
const (
	panicWords   = "Kernel panic - not syncing"
	panicEnd     = "---[ end Kernel panic" // printed before panic() loops for ever: there is no panic= on the command line
	restartWords = "reboot: Restarting system"
	machineWords = "reboot: machine restart"
)

// panicked gives the kernel's last words, if it has panicked.
func (t *tail) panicked() (string, bool) {
	text := t.text()
	i := strings.LastIndex(text, panicWords)
	if i < 0 {
		return "", false
	}
	line, _, _ := strings.Cut(text[i:], "\n")
	return printable.Text(strings.TrimSpace(line)), true
}

// restarting tells whether the kernel said that it restarts the machine.
func (t *tail) restarting() bool {
	text := t.text()
	return strings.Contains(text, restartWords) || strings.Contains(text, machineWords)
}

// hangs tells whether the last that was said, some time ago, is that the kernel loops for ever.
func (t *tail) hangs() bool {
	t.mu.Lock()
	quiet := time.Since(t.last) > 2*time.Second
	t.mu.Unlock()
	if !quiet {
		return false
	}
	last := t.lines(1)
	return len(last) == 1 && strings.Contains(last[0], panicEnd)
}
