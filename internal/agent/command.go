package agent

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// A command is a process that the host asked for, and the three streams between them.
type command struct {
	s      *server
	stream uint32
	pid    int // and its process group's, and its session's

	stdin  *wire.Queue // nil where it has none
	input  *os.File    // where stdin goes
	outs   []*output
	pumps  sync.WaitGroup
	isTerm bool
}

// An output is one stream from a command to the host.
type output struct {
	of   wire.Type
	file *os.File // our end, non-blocking
	fd   int
	flow *wire.Flow
}

// start runs what m says as stream id. On error, status is what a shell would give.
func (s *server) start(stream uint32, m *wire.Start) (status int, err error) {
	if len(m.Args) == 0 || s.command(stream) != nil {
		return 125, errors.New("no command, or its stream is in use")
	}
	if m.Dir != "" {
		if fi, err := os.Stat(m.Dir); err != nil || !fi.IsDir() {
			return 125, errors.New("working directory " + m.Dir + " is not there")
		}
	}
	cred, err := become(m)
	if err != nil {
		return 125, err
	}
	path, status, err := lookPath(m.Args[0], m.Dir, m.Env)
	if err != nil {
		return status, err
	}
	c := &command{s: s, stream: stream, isTerm: m.Terminal}
	files, err := c.open(m)
	if err == nil && cred != nil && m.Terminal {
		err = files[0].Chown(int(cred.Uid), -1)
	}
	if err != nil {
		closeAll(files)
		return 125, err
	}
	attr := &syscall.ProcAttr{Dir: m.Dir, Env: m.Env, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: m.Terminal, Credential: cred}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	s.mu.Lock()
	c.pid, err = syscall.ForkExec(path, m.Args, attr)
	if err == syscall.ENOEXEC { // a script without #!, as execvp(3) has it
		c.pid, err = syscall.ForkExec("/bin/sh", append([]string{"/bin/sh", path}, m.Args[1:]...), attr)
	}
	if err == nil {
		s.byStream[stream], s.byPID[c.pid] = c, c
		c.pump() // before its end can be seen, which waits for the pumps
	}
	s.mu.Unlock()
	closeAll(files)
	if err != nil {
		c.close()
		if err == syscall.ENOENT {
			return 127, errors.New(m.Args[0] + ": its interpreter is not there")
		}
		return 126, place(m.Args[0], err)
	}
	return 0, nil
}

// open makes the command's streams; the files it returns are the command's 0, 1 and 2.
func (c *command) open(m *wire.Start) ([]*os.File, error) {
	if m.Terminal {
		return c.openTerminal(m.Size)
	}
	var theirs []*os.File
	in, w, err := os.Pipe()
	if m.NoStdin {
		in.Close()
		w.Close()
		in, err = os.Open("/dev/null")
	} else {
		c.stdin, c.input = wire.NewQueue(), w
	}
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, in)
	for _, of := range []wire.Type{wire.TypeStdout, wire.TypeStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, w)
		if err := c.addOutput(of, r); err != nil {
			return theirs, err
		}
	}
	return theirs, nil
}

// addOutput takes over f, whose descriptor is remembered: File.Fd may change the mode.
func (c *command) addOutput(of wire.Type, f *os.File) error {
	fd := -1
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(n uintptr) { fd = int(n) })
	}
	c.outs = append(c.outs, &output{of: of, file: f, fd: fd, flow: wire.NewFlow()})
	return err
}

func (c *command) pump() {
	if c.stdin != nil {
		go c.pumpIn()
	}
	for _, o := range c.outs {
		c.pumps.Go(func() { c.pumpOut(o) })
	}
}

// pumpIn gives the command what the host sent. Once it reads no more, what still comes is dropped, so that the host's end is not held up.
func (c *command) pumpIn() {
	p := make([]byte, wire.MaxData)
	var err error
	for {
		n := c.stdin.Take(p)
		if n == 0 {
			break
		}
		if err == nil {
			_, err = c.input.Write(p[:n])
		}
		c.s.conn.Send(wire.TypeCredit, c.stream, wire.Credit{Of: wire.TypeStdin, N: uint64(n)}.Marshal())
	}
	if c.isTerm {
		if err == nil {
			c.input.Write([]byte{4}) // end of transmission; the terminal itself stays open for output
		}
		return
	}
	c.input.Close()
}

// pumpOut sends what the command writes, until the last writer has closed it, or the command has ended and all that it wrote is sent.
func (c *command) pumpOut(o *output) {
	p := make([]byte, wire.MaxData)
	left := -1 // once the command has ended: how many bytes are still its own
	for left != 0 {
		q := p
		if left > 0 {
			q = p[:min(left, len(p))]
		}
		var n int
		var err error
		if left < 0 {
			n, err = o.file.Read(q)
		} else {
			n, err = unix.Read(o.fd, q)
		}
		if n > 0 && !c.send(o, q[:n]) {
			break
		}
		if left > 0 {
			left -= max(n, 0)
		}
		if left < 0 && !c.isTerm && errors.Is(err, os.ErrDeadlineExceeded) {
			// The command has ended, but what it left behind holds the pipe: what is in it now may be the command's own.
			if left, err = unix.IoctlGetInt(o.fd, unix.TIOCINQ); err == nil {
				continue
			}
		}
		if err != nil || n <= 0 {
			break
		}
	}
	o.file.SetReadDeadline(time.Time{})
	c.s.conn.Send(o.of, c.stream, nil)
}

func (c *command) send(o *output, p []byte) bool {
	for len(p) > 0 {
		n := o.flow.Take(len(p))
		if n == 0 || c.s.conn.Send(o.of, c.stream, p[:n]) != nil {
			return false
		}
		p = p[n:]
	}
	return true
}

// finish tells the host that the command has ended, after the last of its output.
func (c *command) finish(status int) {
	grace := time.Duration(0)
	if c.isTerm {
		grace = 100 * time.Millisecond // a terminal passes output on in its own time (tty_flip_buffer_push)
	}
	for _, o := range c.outs {
		o.file.SetReadDeadline(time.Now().Add(grace))
	}
	c.pumps.Wait()
	c.s.mu.Lock()
	delete(c.s.byStream, c.stream)
	c.s.mu.Unlock()
	c.s.conn.Send(wire.TypeExit, c.stream, wire.Number(status).Marshal())
	c.close()
}

// receive takes a frame for this command; it does not wait.
func (c *command) receive(f wire.Frame) {
	switch f.Type {
	case wire.TypeStdin:
		if c.stdin != nil {
			c.stdin.Put(f.Payload)
		}
	case wire.TypeCredit:
		var m wire.Credit
		if m.Unmarshal(f.Payload) != nil {
			return
		}
		for _, o := range c.outs {
			if o.of == m.Of {
				o.flow.Add(m.N)
			}
		}
	case wire.TypeSignal:
		var n wire.Number
		if n.Unmarshal(f.Payload) == nil && n > 0 && n < 65 {
			unix.Kill(-c.pid, unix.Signal(n)) // its whole group, as a terminal would
		}
	case wire.TypeResize:
		var size wire.Size
		if c.isTerm && size.Unmarshal(f.Payload) == nil {
			setSize(c.outs[0].fd, size)
		}
	}
}

// close frees our ends.
func (c *command) close() {
	if c.stdin != nil {
		c.stdin.Close()
	}
	for _, o := range c.outs {
		o.flow.Close()
		o.file.Close()
	}
	if c.input != nil && !c.isTerm {
		c.input.Close()
	}
}

func closeAll(files []*os.File) {
	closed := map[*os.File]bool{}
	for _, f := range files {
		if !closed[f] {
			f.Close()
		}
		closed[f] = true
	}
}

// lookPath finds a command as a shell in directory cwd does, in env's PATH.
func lookPath(name, cwd string, env []string) (path string, status int, err error) {
	dirs := []string{""}
	if !hasSlash(name) {
		dirs = splitPath(getenv(env, "PATH"))
	}
	status, err = 127, errors.New(name+": command not found")
	for _, dir := range dirs {
		path := name
		if dir != "" {
			path = dir + "/" + name
		}
		if path == "" || path[0] != '/' {
			path = cwd + "/" + path
		}
		fi, e := os.Stat(path)
		switch {
		case errors.Is(e, fs.ErrNotExist):
			if len(dirs) == 1 && hasSlash(name) {
				err = errors.New(name + ": no such file")
			}
		case e != nil:
			status, err = 126, e
		case fi.IsDir():
			if hasSlash(name) {
				status, err = 126, errors.New(name+": is a directory")
			}
		case fi.Mode()&0o111 == 0:
			status, err = 126, errors.New(name+": permission denied")
		default:
			return path, 0, nil
		}
	}
	return "", status, err
}
