package foreign

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/host/vmm"
)

// Bounds of a monitor's answers, which come from a process that may be anybody's.
const (
	maxAnswer = 8 << 20
	maxEvents = 1000            // that are passed over while waiting for one answer
	greetTime = time.Second     // a monitor that serves somebody else says nothing
	replyTime = 5 * time.Second // a busy host's VMM
)

// A qmp is a connection to a QEMU's monitor (QEMU docs/interop/qmp-spec.rst).
type qmp struct {
	mu sync.Mutex // guards what follows: one question at a time
	c  net.Conn
	r  *bufio.Reader
}

// dialQMP connects to the first of a guest's monitors that answers.
func dialQMP(proc vmm.Proc, g *vmm.Guest) (*qmp, error) {
	err := errors.New("it has no QMP socket")
	for _, e := range g.QMP() {
		var c net.Conn
		if c, err = dialEndpoint(proc, g.PID, e); err != nil {
			continue
		}
		q := newQMP(c)
		if err = q.greet(); err == nil {
			return q, nil
		}
		q.close()
	}
	return nil, err
}

// dialEndpoint connects to where a VMM listens; a path is the VMM's own.
func dialEndpoint(proc vmm.Proc, pid int, e vmm.Endpoint) (net.Conn, error) {
	if e.Network != "unix" {
		return net.DialTimeout(e.Network, e.Address, greetTime)
	}
	path := proc.Path(pid, "cwd/"+e.Address)
	if filepath.IsAbs(e.Address) {
		path = proc.Path(pid, "root"+e.Address)
	}
	// A socket's address is short (unix(7)): go by its directory.
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return net.DialTimeout("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), greetTime)
}

func newQMP(c net.Conn) *qmp {
	return &qmp{c: c, r: bufio.NewReaderSize(c, 64<<10)}
}

func (q *qmp) close() error { return q.c.Close() }

// greet takes QMP's greeting and leaves its negotiation.
func (q *qmp) greet() error {
	q.c.SetDeadline(time.Now().Add(greetTime))
	line, err := readLine(q.r)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("its QMP socket serves somebody else")
		}
		return fmt.Errorf("QMP: %w", err)
	}
	var hello struct {
		QMP *struct{} `json:"QMP"`
	}
	if json.Unmarshal(line, &hello) != nil || hello.QMP == nil {
		return errors.New("its QMP socket does not speak QMP")
	}
	_, err = q.ask("qmp_capabilities", nil)
	return err
}

// ask runs a command and gives what it returns.
func (q *qmp) ask(command string, arguments any) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	question, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return nil, err
	}
	q.c.SetDeadline(time.Now().Add(replyTime))
	if _, err := q.c.Write(append(question, '\n')); err != nil {
		return nil, fmt.Errorf("QMP: %w", err)
	}
	for range maxEvents {
		line, err := readLine(q.r)
		if err != nil {
			return nil, fmt.Errorf("QMP: %s: %w", command, err)
		}
		value, isAnswer, err := parseAnswer(line)
		if isAnswer || err != nil {
			return value, err
		}
	}
	return nil, fmt.Errorf("QMP: %s: no answer among %d events", command, maxEvents)
}

// parseAnswer reads an answer, or tells that it is an event.
func parseAnswer(line []byte) (value json.RawMessage, isAnswer bool, err error) {
	var a struct {
		Return json.RawMessage `json:"return"`
		Event  string          `json:"event"`
		Error  *struct {
			Description string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, false, fmt.Errorf("QMP: %w", err)
	}
	if a.Error != nil {
		return nil, true, fmt.Errorf("QMP: %q", a.Error.Description)
	}
	return a.Return, a.Event == "", nil
}

// monitor runs a command of the human monitor, and gives what it prints.
func (q *qmp) monitor(command string) (string, error) {
	answer, err := q.ask("human-monitor-command", map[string]string{"command-line": command})
	if err != nil {
		return "", err
	}
	var text string
	err = json.Unmarshal(answer, &text)
	return text, err
}

// readLine reads up to a newline.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if len(line) > maxAnswer {
			return nil, errors.New("the answer is too long")
		}
	}
}
