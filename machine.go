package vitrine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/client"
	"vitrine.dev/vitrine/internal/agent/wire"
	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/helper/files"
	"vitrine.dev/vitrine/internal/helper/network"
	"vitrine.dev/vitrine/internal/helper/registry"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/machine/virtio/balloon"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Statuses that are not the guest's command's, as a shell has them.
const (
	StatusInternal  = 120 // KVM failed
	StatusEmulation = 121 // KVM met an instruction that it could neither execute nor emulate
	StatusEntry     = 122 // the host's processor refused the state of the guest's
	StatusCrash     = 123 // a processor of the guest stopped with a triple fault
	StatusFailed    = 125 // we failed, or the guest did, in another way
	StatusNoExec    = 126 // the command cannot be executed
	StatusNotFound  = 127 // the command was not found
	StatusKilled    = 128 + 9
)

// ErrKilled is why a machine ended that was ended from outside.
var ErrKilled = errors.New("the guest was ended from outside")

// A GuestError is a guest that did not do what it was started for.
type GuestError struct {
	What      string
	Registers []string // of the processor that could not go on, and the code that it was to execute; empty where that was not the reason
	Console   []string // the last lines of its console, printable
}

// Error is What alone: one line. The rest is for who has room.
func (e *GuestError) Error() string { return e.What }

// A Machine is a guest that was started. Its methods may be called from any goroutine.
type Machine struct {
	cfg      Config
	exactly  bool // no agent: what was given is booted, nothing added
	entry    *host.Guest
	ram      *mem.Memory
	board    *machine.Machine
	balloon  *balloon.Device
	console  tail
	api      *control.Server
	agents   net.Listener     // where the agent connects; nil if exactly
	shares   []wire.Share     // directories over the root
	net      *network.Network // nil where the guest has none
	blind    bool             // the kernel's modules were not found: what it needs may not be built in
	began    time.Time
	startCPU time.Duration // CPU time of this process until its guest began
	keys     *keyboard
	logs     []*host.Log
	helpers  []*helper.Process // all of them
	keeper   *registry.Files   // changes the guest's directory
	files    []*files.Share
	lacks    string // layers of confinement that the host does not have

	kernelPath, commandLine string

	up    chan struct{} // closed when the guest is set up
	over  chan struct{} // closed when status and result are set; the control server still answers
	ended chan struct{} // closed when the board has stopped; exit, crash and err are set
	exit  machine.Exit
	crash *hv.Failure // with a triple fault
	err   error

	mu      sync.Mutex // guards what follows
	agent   *client.Client
	process *client.Process
	killed  bool

	done   chan struct{} // closed when nothing of the machine is left; status and result are set
	status int
	result error
}

// Name is the guest's.
func (m *Machine) Name() string { return m.entry.Name() }

// Wait waits until the guest has ended and nothing of it is left. The status is the command's, as a shell has it; the error is nil where that
// or the guest's own end is all there is to say. StatusFailed, StatusNoExec and StatusNotFound come with an error that tells why.
func (m *Machine) Wait() (status int, err error) {
	<-m.done
	return m.status, m.result
}

// Done is closed when Wait would return.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Signal sends the guest's command a signal. It returns false where there is none to send it to.
func (m *Machine) Signal(sig unix.Signal) bool {
	p := m.running()
	return p != nil && p.Signal(int(sig)) == nil
}

// Resize tells the command's terminal its size.
func (m *Machine) Resize(rows, cols int) {
	if p := m.running(); p != nil {
		p.Resize(wire.Size{Rows: uint64(rows), Cols: uint64(cols)})
	}
}

func (m *Machine) running() *client.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.process
}

// Kill ends the guest at once, as if its plug were pulled.
func (m *Machine) Kill() {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	m.board.Stop()
}

// hangUp is how long a command has to end after it was asked to, before the guest is powered off under it.
const hangUp = 5 * time.Second

// Stop asks the guest to end and waits until it has: its command is sent SIGTERM (SIGHUP where it has a terminal), then the guest is powered off;
// exactly what was booted has its power button pressed. When ctx is done first, the guest is ended as by Kill.
func (m *Machine) Stop(ctx context.Context) error {
	if m.board.Paused() {
		m.board.Resume()
	}
	m.setState("stopping")
	m.mu.Lock()
	agent, p := m.agent, m.process
	m.mu.Unlock()
	idle := false
	select {
	case <-m.up:
		idle = !m.exactly
	default:
	}
	switch {
	case m.exactly:
		m.board.PressPowerButton()
	case p != nil:
		sig := unix.SIGTERM
		if m.cfg.Terminal {
			sig = unix.SIGHUP
		}
		p.Signal(int(sig))
		select {
		case <-m.ended:
		case <-time.After(hangUp):
			agent.PowerOff()
		case <-ctx.Done():
		}
	case idle:
		agent.PowerOff()
	default: // it boots, there is nothing to lose
		m.Kill()
	}
	select {
	case <-m.ended:
	case <-ctx.Done():
		m.Kill()
		<-m.ended
	}
	return nil
}

// State is what listings say of the guest.
func (m *Machine) State() host.State { return m.entry.State() }

// Memory is the guest's RAM.
func (m *Machine) Memory() *mem.Memory { return m.ram }

// NumCPU is how many processors it has.
func (m *Machine) NumCPU() int { return m.board.NumCPU() }

// Registers gives a processor's registers.
func (m *Machine) Registers(cpu int, r *x86.Regs) error { return m.board.Registers(cpu, r) }

// Sample gives the registers of a processor that runs guest code now.
func (m *Machine) Sample(cpu int, r *x86.Regs) bool { return m.board.Sample(cpu, r) }

func (m *Machine) setState(s string) { m.entry.Update(func(st *host.State) { st.State = s }) }

// supervise sees the guest through to its end, and clears up.
func (m *Machine) supervise() {
	if m.exactly {
		m.status, m.result = m.watch()
	} else {
		m.status, m.result = m.command()
	}
	m.mu.Lock()
	killed := m.killed
	m.mu.Unlock()
	if killed && m.result != nil {
		m.status, m.result = StatusKilled, ErrKilled
	}
	m.board.Stop()
	<-m.ended
	if m.err != nil && m.result == nil && m.status == 0 {
		m.status, m.result = StatusFailed, m.err
	}
	close(m.over)
	m.clear()
	close(m.done)
}

// clear frees what the machine holds; its board has stopped, or never ran.
func (m *Machine) clear() {
	if m.keys != nil {
		m.keys.close() // who types is not to wait
	}
	if m.api != nil {
		m.api.Close() // first: it reads RAM
	}
	if m.agents != nil {
		m.agents.Close()
	}
	if m.agent != nil {
		m.agent.Close()
	}
	for _, s := range m.files {
		s.Hang() // requests under way fail: the board waits for them
	}
	if m.board != nil {
		m.board.Close()
	}
	if m.net != nil {
		m.net.Close() // after the board, which uses it
	}
	if m.ram != nil {
		m.ram.Close()
	}
	for _, l := range m.logs {
		l.Close()
	}
	defer func() {
		for _, h := range m.helpers {
			h.Close()
		}
	}()
	select {
	case <-m.over:
		if m.cfg.Keep {
			m.entry.Finish(m.status, m.Result().Error)
			return
		}
	default: // it did not come to run
	}
	if m.entry != nil {
		m.entry.Close()
	}
}

// watch waits for the end of a guest that was booted exactly as given.
func (m *Machine) watch() (int, error) {
	var late <-chan time.Time
	if m.cfg.BootTimeout > 0 {
		late = time.After(m.cfg.BootTimeout)
	}
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-m.ended:
			return m.verdict()
		case <-late:
			return m.fail("the guest has not ended after %v (--boot-timeout)", m.cfg.BootTimeout)
		case <-look.C:
			if m.console.hangs() {
				return m.fail("the guest's kernel panicked and hangs (panic=-1 in --append makes it reboot): %s", m.panicWords())
			}
		}
	}
}

// verdict is the status of a guest that was booted exactly as given and has ended. A reboot is an end like a power-off: what was asked
// to run has run. A kernel that panics with panic=-1 reboots too, and only its console tells the two apart; so does it tell
// a triple fault that is a reboot (reboot=t) from one that is a crash.
func (m *Machine) verdict() (int, error) {
	switch m.exit.Reason {
	case machine.PowerOff:
		return 0, nil
	case machine.DebugExit:
		return m.exit.Status, nil
	case machine.Reset, machine.TripleFault:
		if words, ok := m.console.panicked(); ok {
			return m.fail("the guest's kernel panicked: %s", strings.TrimPrefix(words, panicWords+": "))
		}
		if m.exit.Reason == machine.TripleFault && !m.console.restarting() {
			return m.crashed()
		}
		return 0, nil
	}
	if m.err != nil {
		return m.broken()
	}
	return StatusKilled, ErrKilled
}

func (m *Machine) panicWords() string {
	words, _ := m.console.panicked()
	return strings.TrimPrefix(words, panicWords+": ")
}

// fail is a guest that went wrong.
func (m *Machine) fail(format string, args ...any) (int, error) {
	return StatusFailed, &GuestError{What: fmt.Sprintf(format, args...), Console: m.console.lines(20)}
}

// statuses are those of processors that cannot go on.
var statuses = map[hv.Fault]int{hv.Internal: StatusInternal, hv.Emulation: StatusEmulation, hv.Entry: StatusEntry, hv.Crash: StatusCrash}

// broken is a guest whose processors cannot go on.
func (m *Machine) broken() (int, error) {
	var f *hv.Failure
	if errors.As(m.err, &f) {
		return m.failed(f, f.Error())
	}
	return m.fail("%v", m.err)
}

// crashed is a guest that ended by a triple fault.
func (m *Machine) crashed() (int, error) {
	what := fmt.Sprintf("the guest's processor %d stopped with a triple fault", m.exit.CPU)
	if m.crash != nil {
		return m.failed(m.crash, what)
	}
	return StatusCrash, &GuestError{What: what, Console: m.console.lines(20)}
}

// failed tells all there is to know of a processor that cannot go on.
func (m *Machine) failed(f *hv.Failure, what string) (int, error) {
	return statuses[f.Fault], &GuestError{What: what, Registers: strings.Split(f.Report(), "\n"), Console: m.console.lines(20)}
}

// untimely is the error for a guest that ended while something was expected of it.
func (m *Machine) untimely(when string) (int, error) {
	<-m.ended
	if words, ok := m.console.panicked(); ok {
		return m.fail("the guest's kernel panicked %s: %s", when, strings.TrimPrefix(words, panicWords+": "))
	}
	if m.err != nil {
		return m.broken()
	}
	if m.exit.Reason == machine.TripleFault && !m.console.restarting() {
		return m.crashed()
	}
	hint := ""
	if m.blind {
		hint = ": the kernel's modules were not found, give their tree by --modules"
	}
	return m.fail("the guest ended (%v) %s%s", m.exit.Reason, when, hint)
}
