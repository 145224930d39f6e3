// Package helper runs parts of a guest's host side in processes of their own, each with the rights of its part and no more.
//
// A helper is this program again, started by a guest's process, which it does not outlive. The two talk by packets over a socket pair: the first says
// what the helper is to do, its answer that it has given up all other rights.
package helper

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
)

// program is a helper's argv[0]; its kind and its guest's name follow.
const program = "vitrine-helper"

// helperVar is set in a helper's environment, which has nothing else of its parent's.
const helperVar = "VITRINE_HELPER"

// connFD is a helper's end of the socket pair.
const connFD = 3

// patience is how long a helper may take to get ready, and to end.
const (
	readyTime = 30 * time.Second
	endTime   = 2 * time.Second
)

// A Main is what a helper of one kind does: it takes what it needs from the setup packet, calls [Conn.Confine] and works until the guest's process
// has gone, which ends the connection.
type Main func(c *Conn) error

// Run is a helper's whole life where the calling process is one; else it returns at once.
func Run(kinds map[string]Main) {
	if len(os.Args) != 3 || os.Args[0] != program {
		return
	}
	main, ok := kinds[os.Args[1]]
	if !ok {
		os.Exit(2)
	}
	unix.CloseOnExec(connFD)
	closeInherited()
	c, err := newConn(connFD)
	if err == nil {
		err = main(c)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// closeInherited closes what the guest's process got from its own parent: what a program opens itself is closed at execve, as the run time's.
func closeInherited() {
	all, _ := os.ReadDir("/proc/self/fd")
	for _, e := range all {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= connFD {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}

// A Process is a helper, as the guest's process sees it.
type Process struct {
	*Conn
	kind string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	log  func(string)
	// ready waits for the answer to the setup, once.
	ready func() (string, error)
}

// Options are what all helpers are started with.
type Options struct {
	// Program is an executable whose main calls Run; empty: this one's.
	Program string
	// Guest is the guest's name, to be seen in the host's list of processes.
	Guest string
	// Log gets what a helper says when it fails. It must not be nil.
	Log func(line string)
}

// Start starts a helper, and sends it setup, with copies of files. It does not wait for it: Ready does.
func Start(kind string, o Options, setup any, files ...int) (*Process, error) {
	if os.Getenv(helperVar) != "" {
		return nil, fmt.Errorf("helper %s: the program's main does not call GuestMain", kind)
	}
	if o.Program == "" {
		o.Program = "/proc/self/exe"
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("helper %s: %w", kind, err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "helper")
	defer theirs.Close()
	c, err := newConn(pair[0])
	if err != nil {
		return nil, fmt.Errorf("helper %s: %w", kind, err)
	}
	p := &Process{Conn: c, kind: kind, done: make(chan struct{}), log: o.Log}
	p.ready = sync.OnceValues(p.waitReady)
	// One processor is less to start, and to stop for a call on all threads; who needs more takes more.
	env := []string{helperVar + "=" + kind, "GOGC=50", "GOTRACEBACK=single", "GOMAXPROCS=1"}
	if run, ok := os.LookupEnv("XDG_RUNTIME_DIR"); ok { // by which one finds what belongs to a directory's guests
		env = append(env, "XDG_RUNTIME_DIR="+run)
	}
	p.cmd = &exec.Cmd{
		Path: o.Program, Args: []string{program, kind, "guest=" + o.Guest}, Dir: "/", Env: env,
		ExtraFiles: []*os.File{theirs},
		// A session of its own: what is typed at a terminal is for the guest's process.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL},
	}
	words, err := p.cmd.StderrPipe()
	if err == nil {
		err = onLastingThread(p.cmd.Start)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("helper %s: %w", kind, err)
	}
	go func() {
		p.pass(words)
		p.cmd.Wait()
		close(p.done)
	}()
	if err := p.Send(setup, files...); err != nil {
		p.Close()
		return nil, fmt.Errorf("helper %s: %w", kind, err)
	}
	return p, nil
}

// Capabilities are all that helpers may keep, or need until they have given up the others.
const Capabilities = 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_CHOWN | 1<<unix.CAP_FOWNER | 1<<unix.CAP_NET_BIND_SERVICE

// lasting runs functions on a thread that lives as long as the process: a parent-death signal is sent when the thread that forked ends (prctl(2)).
var lasting = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		confine.BoundThread(Capabilities) // each helper gives up the rest itself
		for f := range c {
			f()
		}
	}()
	return c
})

func onLastingThread(f func() error) error {
	err := make(chan error)
	lasting() <- func() { err <- f() }
	return <-err
}

// maxWords bounds the lines of a helper that are passed on.
const maxWords = 40

// pass logs what the helper writes to its standard error, which it does when it fails.
func (p *Process) pass(words io.Reader) {
	s := bufio.NewScanner(words)
	for n := 0; n < maxWords && s.Scan(); n++ {
		p.log(fmt.Sprintf("helper %s: %s", p.kind, s.Text()))
	}
	io.Copy(io.Discard, words)
}

// ready is a helper's answer to its setup.
type ready struct {
	Error string `json:"error,omitempty"`
	Lacks string `json:"lacks,omitempty"` // layers of confinement that the host does not have
}

// Confine gives up all rights but r, and tells the guest's process that the helper is ready. It fails where the rights
// cannot be given up, but for layers that the host lacks; the helper ends then.
func (c *Conn) Confine(r confine.Rights) error {
	r.DieWithParent = true
	var answer ready
	err := confine.Apply(r)
	if errors.Is(err, confine.ErrPart) {
		answer.Lacks, err = err.Error(), nil
	}
	if err != nil {
		return c.Refuse(err)
	}
	return c.Send(answer)
}

// Refuse tells the guest's process why there will be no helper; Main returns what it returns. It comes after the setup was received.
func (c *Conn) Refuse(err error) error {
	return errors.Join(c.Send(ready{Error: err.Error()}), io.EOF)
}

// Ready waits until the helper has given up its rights. lacks says which layers the host does not have. After an error the helper is closed.
func (p *Process) Ready() (lacks string, err error) { return p.ready() }

func (p *Process) waitReady() (lacks string, err error) {
	var answer ready
	p.c.SetReadDeadline(time.Now().Add(readyTime))
	_, err = p.Recv(&answer)
	p.c.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		err = fmt.Errorf("helper %s did not start: %w (the program's main calls GuestMain first?)", p.kind, err)
	case answer.Error != "":
		err = errors.New(answer.Error)
	default:
		return answer.Lacks, nil
	}
	p.Close()
	return "", err
}

// PID is the helper's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kind is what the helper is for.
func (p *Process) Kind() string { return p.kind }

// Done is closed when the helper has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close ends the helper and waits until it has gone.
func (p *Process) Close() error {
	p.Conn.Close()
	select {
	case <-p.done:
		return nil
	case <-time.After(endTime):
	}
	p.cmd.Process.Kill()
	select {
	case <-p.done:
		return nil
	case <-time.After(endTime): // it waits for a disk that does not answer; the kernel has noted its end
		return fmt.Errorf("helper %s does not end", p.kind)
	}
}
