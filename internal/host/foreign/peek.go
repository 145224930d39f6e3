package foreign

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host/vmm"
	"vitrine.dev/vitrine/internal/hv/kvm"
	"vitrine.dev/vitrine/internal/x86"
)

// A peek has the registers of a guest on KVM from the page that KVM shares with the VMM: a copy of the VMM's descriptor of a processor can be mapped by others, and
// KVM keeps the registers in that page once it is asked to there. To make them today's, the processor's thread is stopped for a moment (ptrace(2)):
// KVM_RUN returns to the VMM as it does for any signal, and the VMM, whose code is not touched, calls it again.
//
// The asking is taken back by close. If this process dies before, KVM goes on copying the registers with each exit, some hundred nanoseconds, and
// nothing else.
type peek struct {
	proc  vmm.Proc
	pid   int
	work  chan func()   // to the one thread that traces
	ended chan struct{} // closed when that has gone
	peeks []*peekCPU
	quiet time.Time // when a thread was last waited for in vain
}

type peekCPU struct {
	tid   int // 0: not known yet
	fd    int // the VMM's
	page  kvm.Shared
	added uint64 // what we asked for
	fresh bool   // KVM_RUN has returned since
}

// Bounds of stopping a thread: how long it may take on a busy host, and how long it may turn out to be in the VMM's own code. Where one was there for so long,
// as they all are in a machine that stands still, the others are not waited for.
const (
	stopTime  = 3 * time.Second
	tryTime   = time.Second
	tryPause  = time.Millisecond
	quietTime = 5 * time.Second
)

// openPeek maps the pages of all processors. It changes nothing yet.
func openPeek(proc vmm.Proc, g *vmm.Guest) (*peek, error) {
	if g.Accelerator != vmm.KVM || !slices.ContainsFunc(g.VCPUs, func(c vmm.VCPU) bool { return c.FD >= 0 }) {
		return nil, guest.ErrNoRegisters
	}
	if !kvm.CanShare() {
		return nil, errors.New("this host's KVM does not share registers, or /dev/kvm may not be opened")
	}
	process, err := unix.PidfdOpen(g.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(process)
	if s, ok := proc.Stat(g.PID); !ok || s.Started != g.Ticks {
		return nil, ErrGone
	}
	p := &peek{proc: proc, pid: g.PID, work: make(chan func()), ended: make(chan struct{})}
	for _, c := range g.VCPUs {
		page, err := borrow(process, &c)
		if err != nil {
			p.unmap()
			return nil, fmt.Errorf("the descriptor of CPU %d: %w", c.Index, err)
		}
		p.peeks = append(p.peeks, &peekCPU{tid: c.TID, fd: c.FD, page: page})
	}
	go p.trace()
	return p, nil
}

// borrow maps the page of a processor by its VMM's descriptor.
func borrow(process int, c *vmm.VCPU) (kvm.Shared, error) {
	if c.FD < 0 {
		return nil, errors.New("not known")
	}
	fd, err := unix.PidfdGetfd(process, c.FD, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// The number may have come to mean another descriptor.
	if link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil || link != "anon_inode:kvm-vcpu:"+strconv.Itoa(c.Index) {
		return nil, errors.New("it has gone")
	}
	return kvm.MapShared(fd)
}

func (p *peek) unmap() {
	for _, c := range p.peeks {
		c.page.Unmap()
	}
}

func (p *peek) close() error {
	close(p.work)
	<-p.ended
	for _, c := range p.peeks {
		c.page.Forget(c.added)
	}
	p.unmap()
	return nil
}

func (p *peek) cpus() int   { return len(p.peeks) }
func (p *peek) how() string { return "KVM" }

// trace is the thread that traces: only who seized a thread may let go of it. It ends with the source, and with it whatever it held.
func (p *peek) trace() {
	defer close(p.ended)
	runtime.LockOSThread() // and never unlocked: the thread ends
	for f := range p.work {
		f()
	}
}

func (p *peek) read(i int, r *x86.Regs) (running bool, err error) {
	done := make(chan struct{})
	err = errStuck
	select {
	case p.work <- func() {
		defer close(done)
		running, err = p.sample(p.peeks[i], r)
	}:
		<-done
	case <-p.ended:
	}
	return running, err
}

// errStuck is for a thread that could not be stopped. The thread that waited for it has ended, so that nothing is held.
var errStuck = errors.New("foreign: a thread of the VMM does not stop")

// keep asks for the registers. Another who looked may have taken back the asking: then what is there is old.
func (c *peekCPU) keep() {
	if added := c.page.Keep(); added != 0 {
		c.added |= added
		c.fresh = false
	}
}

// sample stops the processor's thread until its registers are there.
func (p *peek) sample(c *peekCPU, r *x86.Regs) (running bool, err error) {
	c.keep()
	limit := time.Now().Add(tryTime)
	if time.Since(p.quiet) < quietTime {
		limit = time.Now()
	}
	for c.tid == 0 {
		if err := p.identify(); err != nil {
			return false, err
		}
		if c.tid == 0 && time.Now().After(limit) {
			p.quiet = time.Now()
			return false, fmt.Errorf("%w: none of the VMM's threads runs this CPU now", guest.ErrNoRegisters)
		}
		if c.tid == 0 {
			time.Sleep(tryPause)
		}
	}
	for {
		running = p.running(c.tid)
		found := false
		err := stopped(c.tid, func(fd int) {
			c.fresh = c.fresh || fd == c.fd
			found = c.fresh && c.page.Kept() && c.page.Registers(r)
		})
		switch {
		case found || errors.Is(err, ErrGone):
			return running, err
		case time.Now().After(limit) && err != nil: // somebody else traces it
			return running, err
		case time.Now().After(limit):
			p.quiet = time.Now()
			return running, fmt.Errorf("%w: the CPU's thread is not in KVM_RUN", guest.ErrNoRegisters)
		}
		time.Sleep(tryPause)
		c.keep()
	}
}

// running tells whether a thread has work: one that sleeps in KVM_RUN has a halted processor.
func (p *peek) running(tid int) bool {
	s, ok := p.proc.Thread(p.pid, tid)
	return ok && s.State == 'R'
}

// idle tells without stopping anything that a processor sleeps.
func (p *peek) idle(i int) bool { return p.peeks[i].tid != 0 && !p.running(p.peeks[i].tid) }

// identify finds the threads of processors whose names do not tell: by what they wait in, and those that do not wait by stopping them.
func (p *peek) identify() error {
	tids, err := p.proc.Threads(p.pid)
	if err != nil {
		return err
	}
	var first error
	for _, tid := range tids {
		if slices.ContainsFunc(p.peeks, func(c *peekCPU) bool { return c.tid == tid }) {
			continue
		}
		fd := p.proc.Runs(p.pid, tid)
		if fd < 0 && p.running(tid) {
			if err := stopped(tid, func(f int) { fd = f }); err != nil && first == nil {
				first = err
			}
		}
		for _, c := range p.peeks {
			if c.tid == 0 && c.fd == fd {
				c.tid = tid
			}
		}
	}
	return first
}

// stopped stops a thread and calls fn with the descriptor that it is running a processor of, or -1. The thread goes on as if it had been
// interrupted by a signal. The caller is the thread that traces.
func stopped(tid int, fn func(fd int)) error {
	if err := unix.PtraceSeize(tid); err != nil {
		return fmt.Errorf("ptrace: %w", err)
	}
	err := unix.PtraceInterrupt(tid)
	deadline := time.Now().Add(stopTime)
	for spins := 0; err == nil; spins++ {
		var status unix.WaitStatus
		var got int
		got, err = unix.Wait4(tid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			err = nil
		case err != nil:
		case got == tid && status.Stopped():
			fn(runsNow(tid))
			// A signal that arrived first is delivered; what stopped the thread for us is none.
			sig := 0
			if uint32(status)>>16 == 0 {
				sig = int(status.StopSignal())
			}
			return detach(tid, sig)
		case got == tid:
			return ErrGone
		case time.Now().After(deadline):
			// It cannot be let go of before it stops; this thread's end does that.
			runtime.Goexit()
		case spins > 50:
			time.Sleep(20 * time.Microsecond)
		}
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ECHILD) {
		return ErrGone
	}
	return fmt.Errorf("ptrace: %w", err)
}

// runsNow gives the descriptor of the processor that a stopped thread was running, or -1: the call's arguments are still in its registers. What has no place in a
// program is a thread of KVM's own.
func runsNow(tid int) int {
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) != nil || regs.Rip == 0 || regs.Orig_rax != unix.SYS_IOCTL || uint32(regs.Rsi) != kvm.Run {
		return -1
	}
	return int(int32(regs.Rdi))
}

func detach(tid, sig int) error {
	if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, uintptr(sig), 0, 0); e != 0 && e != unix.ESRCH {
		return fmt.Errorf("ptrace: %w", e)
	}
	return nil
}
