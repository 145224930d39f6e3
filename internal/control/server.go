package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// A Guest is what a server serves. All methods may be called from any goroutine.
type Guest interface {
	State() host.State
	// Stop asks the guest to end and waits until it has, or ends it where ctx is done first.
	Stop(ctx context.Context) error
	Kill()
	Memory() *mem.Memory
	NumCPU() int
	// Registers gives the registers of a CPU; it may take it a moment to get to where they can be had.
	Registers(cpu int, r *x86.Regs) error
	// Sample gives the registers of a CPU that executes guest code at this moment, at little cost, or false.
	Sample(cpu int, r *x86.Regs) bool

	Pause() error
	Resume() error
	// Signal sends the guest's command a signal, and returns false where there is none.
	Signal(sig unix.Signal) bool
	// Ended is closed when the guest has ended; Result is valid then.
	Ended() <-chan struct{}
	Result() Exit
	// Inspect says all there is to say of the guest, as JSON.
	Inspect() ([]byte, error)
	// ServeExec and ServeConsole serve a client until it goes; they close the connection.
	ServeExec(c net.Conn)
	ServeConsole(c net.Conn)
}

// StopTime is how long a guest that was told to end may take before it is ended.
const StopTime = 10 * time.Second

// A Server answers on a guest's socket. Each client has a goroutine of its own, and time limits on what is written to it,
// so that none can hold up the machine or another client.
type Server struct {
	guest Guest
	l     *net.UnixListener
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots chan struct{}
	owner int // the user who may talk to us; this process may be another one by then
}

// Serve begins to answer on l, which it takes over.
func Serve(l *net.UnixListener, g Guest) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{guest: g, l: l, ctx: ctx, stop: stop, slots: make(chan struct{}, MaxClients), owner: os.Geteuid()}
	s.wg.Go(s.accept)
	return s
}

// Close ends the listener and every connection, and waits for their goroutines: lastTime at most, for an answer under way.
// The guest's memory may be unmapped then.
func (s *Server) Close() {
	s.stop()
	s.l.Close()
	s.wg.Wait()
}

func (s *Server) accept() {
	for {
		c, err := s.l.AcceptUnix()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: try again
			continue
		}
		select {
		case s.slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		s.wg.Go(func() {
			end := context.AfterFunc(s.ctx, func() { // no further request; an answer under way may still go out
				c.SetReadDeadline(time.Now())
				c.SetWriteDeadline(time.Now().Add(lastTime))
			})
			s.serve(c)
			end()
			c.Close()
			<-s.slots
		})
	}
}

// serve answers one client's requests, one after the other.
func (s *Server) serve(c *net.UnixConn) {
	if err := checkPeer(c, s.owner); err != nil {
		s.reply(c, &Answer{Error: err.Error()}, -1)
		return
	}
	var buf []byte
	for {
		line, err := readLine(&buf, c.Read)
		if err != nil {
			return
		}
		if err := s.answer(c, line); err != nil {
			return
		}
	}
}

// checkPeer lets the guest's owner in, and root.
func checkPeer(c *net.UnixConn, owner int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != owner {
		return fmt.Errorf("control: user %d does not own this guest", cred.Uid)
	}
	return nil
}

// answer does what one line asks. It returns an error where the connection is of no more use.
func (s *Server) answer(c *net.UnixConn, line []byte) error {
	r, err := parseRequest(line)
	if err != nil {
		return s.reply(c, &Answer{Error: err.Error()}, -1)
	}
	a, fd := Answer{}, -1
	switch r.Verb {
	case VerbInfo:
		st := s.guest.State()
		a.State = &st
	case VerbStop:
		ctx, cancel := context.WithTimeout(s.ctx, StopTime)
		err = s.guest.Stop(ctx)
		cancel()
	case VerbKill:
		s.guest.Kill()
	case VerbMemory:
		ram := s.guest.Memory()
		a.Memory, fd = &Memory{Regions: ram.Regions(), CPUs: s.guest.NumCPU()}, ram.FD()
	case VerbRegisters:
		if r.CPU < 0 || r.CPU >= s.guest.NumCPU() {
			err = fmt.Errorf("control: the guest has no CPU %d", r.CPU)
			break
		}
		a.Registers = new(x86.Regs)
		if err = s.guest.Registers(r.CPU, a.Registers); err != nil {
			a.Registers = nil
		}
	case VerbPause:
		err = s.guest.Pause()
	case VerbResume:
		err = s.guest.Resume()
	case VerbSignal:
		if r.Signal < 1 || r.Signal > 64 {
			err = fmt.Errorf("control: %d is no signal", r.Signal)
		} else if !s.guest.Signal(unix.Signal(r.Signal)) {
			err = errors.New("the guest has no command to send a signal to")
		}
	case VerbWait:
		if err = s.wait(c); err != nil {
			return err
		}
		exit := s.guest.Result()
		a.Exit = &exit
	case VerbInspect:
		a.Inspect, err = s.guest.Inspect()
	case VerbExec, VerbConsole:
		if err := s.reply(c, &a, -1); err != nil {
			return err
		}
		c.SetWriteDeadline(time.Time{}) // it is for who serves to see that a slow client holds nothing up
		if r.Verb == VerbExec {
			s.guest.ServeExec(c)
		} else {
			s.guest.ServeConsole(c)
		}
		return net.ErrClosed
	case VerbSamples:
		return s.samples(c, r)
	default:
		err = fmt.Errorf("control: unknown verb %q", r.Verb)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return s.reply(c, &a, fd)
}

// wait waits for the guest's end, or the client's, which sends nothing meanwhile.
func (s *Server) wait(c *net.UnixConn) error {
	gone := make(chan struct{})
	var n int
	go func() {
		var p [1]byte
		n, _ = c.Read(p[:])
		close(gone)
	}()
	select {
	case <-s.guest.Ended():
		c.SetReadDeadline(time.Now())
		<-gone
		return nil
	case <-gone:
		if n > 0 {
			return errors.New("control: a request while another waits")
		}
	}
	select {
	case <-s.guest.Ended(): // the server closes, and cut the reading short
		return nil
	default:
		return net.ErrClosed
	}
}

// samples sends lines of samples for as long as was asked, or until the client has gone.
func (s *Server) samples(c *net.UnixConn, r Request) error {
	began := time.Now()
	end := began.Add(time.Duration(r.Seconds * float64(time.Second)))
	tick := time.NewTicker(time.Second / time.Duration(r.Hz))
	defer tick.Stop()
	a, sent, taken := Answer{}, began, 0
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		for cpu := range s.guest.NumCPU() {
			var regs x86.Regs
			sm := Sample{Time: int64(now.Sub(began)), CPU: cpu}
			if sm.Running = s.guest.Sample(cpu, &regs); sm.Running {
				sm.fill(&regs)
			}
			a.Samples = append(a.Samples, sm)
		}
		taken++
		a.Last = !now.Before(end)
		if now.Sub(sent) < Period && !a.Last {
			continue
		}
		due := int(now.Sub(began).Seconds() * float64(r.Hz))
		a.Lost = max(0, due-taken)
		taken = max(taken, due)
		if err := s.reply(c, &a, -1); err != nil || a.Last {
			return err
		}
		a.Samples, sent = a.Samples[:0], now
	}
}

func (s *Sample) fill(r *x86.Regs) {
	s.RIP, s.RSP, s.RBP, s.CR3, s.CPL = r.RIP, r.GPR[x86.RSP], r.GPR[x86.RBP], r.CR3, r.CPL()
	s.GSBase, s.KernelGSBase = r.Seg[x86.GS].Base, r.KernelGSBase
}

// reply sends one line, and a descriptor with it where fd is not negative.
func (s *Server) reply(c *net.UnixConn, a *Answer, fd int) error {
	limit := writeTime
	if s.ctx.Err() != nil {
		limit = lastTime
	}
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	c.SetWriteDeadline(time.Now().Add(limit))
	if fd >= 0 {
		n, _, err := c.WriteMsgUnix(line, unix.UnixRights(fd), nil)
		if err != nil {
			return err
		}
		line = line[n:]
	}
	_, err = c.Write(line)
	return err
}
