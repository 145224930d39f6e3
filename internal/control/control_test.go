package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

var _ guest.Target = (*Target)(nil)

type fake struct {
	ram     *mem.Memory
	stopped atomic.Bool
	killed  atomic.Bool
	paused  atomic.Bool
	ended   chan struct{}
}

func (f *fake) State() host.State              { return host.State{Name: "fake", CPUs: 2} }
func (f *fake) Stop(ctx context.Context) error { f.stopped.Store(true); return nil }
func (f *fake) Kill()                          { f.killed.Store(true) }
func (f *fake) Memory() *mem.Memory            { return f.ram }
func (f *fake) NumCPU() int                    { return 2 }
func (f *fake) Registers(cpu int, r *x86.Regs) error {
	if cpu == 1 {
		return errors.New("it sleeps")
	}
	r.RIP, r.Seg[x86.GS].Base, r.GPR[x86.RBX] = 0xFFFFFFFF81000000, 1<<63, 7
	return nil
}
func (f *fake) Sample(cpu int, r *x86.Regs) bool {
	r.RIP, r.CR3, r.Seg[x86.SS].Access = 0x1234, 0x5000, 3<<x86.SegDPLShift
	return cpu == 0
}

func (f *fake) Pause() error                { f.paused.Store(true); return nil }
func (f *fake) Resume() error               { f.paused.Store(false); return nil }
func (f *fake) Signal(sig unix.Signal) bool { return sig == unix.SIGUSR1 }
func (f *fake) Ended() <-chan struct{}      { return f.ended }
func (f *fake) Result() Exit                { return Exit{42, "the end"} }
func (f *fake) Inspect() ([]byte, error)    { return []byte(`{"name":"fake"}`), nil }
func (f *fake) ServeExec(c net.Conn)        { io.Copy(c, c); c.Close() }
func (f *fake) ServeConsole(c net.Conn)     { f.ServeExec(c) }

func TestAGuestIsPausedSignalledAndWaitedFor(t *testing.T) {
	f, dial := serve(t)
	c := NewClient(dial())
	if err := c.Pause(); err != nil || !f.paused.Load() {
		t.Errorf("pause: %v", err)
	}
	if err := c.Resume(); err != nil || f.paused.Load() {
		t.Errorf("resume: %v", err)
	}
	if err := c.Signal(unix.SIGUSR1); err != nil {
		t.Errorf("a signal: %v", err)
	}
	for _, sig := range []unix.Signal{unix.SIGUSR2, 0, 65, -1} {
		if err := c.Signal(sig); err == nil {
			t.Errorf("signal %d was sent", sig)
		}
	}
	if text, err := c.Inspect(); err != nil || string(text) != `{"name":"fake"}` {
		t.Errorf("inspect: %s, %v", text, err)
	}
	gone := NewClient(dial())
	go gone.Wait()
	time.AfterFunc(10*time.Millisecond, func() { gone.Close(); close(f.ended) })
	if exit, err := c.Wait(); err != nil || exit != (Exit{42, "the end"}) {
		t.Errorf("wait: %+v, %v", exit, err)
	}
}

func TestAStreamIsTheGuestsAndHasNoTimeLimit(t *testing.T) {
	_, dial := serve(t)
	for _, verb := range []string{VerbExec, VerbConsole} {
		s, err := NewClient(dial()).Stream(verb)
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("there and back"))
		s.(*stream).Conn.(*net.UnixConn).CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "there and back" {
			t.Errorf("%s: %q, %v", verb, got, err)
		}
	}
}

func serve(t *testing.T) (*fake, func() *net.UnixConn) {
	t.Helper()
	ram, err := mem.New(mem.PageSize * 4)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{ram: ram, ended: make(chan struct{})}
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, f)
	t.Cleanup(func() { s.Close(); ram.Close() })
	return f, func() *net.UnixConn {
		c, err := net.DialUnix("unix", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func TestVerbsAreAnswered(t *testing.T) {
	f, dial := serve(t)
	c := NewClient(dial())
	if st, err := c.Info(); err != nil || st.Name != "fake" || st.CPUs != 2 {
		t.Errorf("info: %+v, %v", st, err)
	}
	var r x86.Regs
	if err := c.Registers(0, &r); err != nil || r.RIP != 0xFFFFFFFF81000000 || r.Seg[x86.GS].Base != 1<<63 || r.GPR[x86.RBX] != 7 {
		t.Errorf("registers: %+v, %v", r, err)
	}
	if err := c.Registers(1, &r); err == nil || err.Error() != "it sleeps" {
		t.Errorf("registers of a CPU without: %v", err)
	}
	if err := c.Registers(2, &r); err == nil {
		t.Error("registers of CPU 2 of 2")
	}
	if err := c.Stop(); err != nil || !f.stopped.Load() {
		t.Errorf("stop: %v", err)
	}
	if err := c.Kill(); err != nil || !f.killed.Load() {
		t.Errorf("kill: %v", err)
	}
}

func TestATargetSeesTheGuestsMemoryAsItChanges(t *testing.T) {
	f, dial := serve(t)
	tg, err := NewClient(dial()).Target()
	if err != nil {
		t.Fatal(err)
	}
	defer tg.Close()
	f.ram.WriteAt([]byte("now"), 0x3FFD)
	p := make([]byte, 3)
	if n, err := tg.ReadPhys(p, 0x3FFD); n != 3 || err != nil || string(p) != "now" {
		t.Errorf("read %d, %q, %v", n, p, err)
	}
	if n, err := tg.ReadPhys(p, 0x3FFE); n != 2 || !errors.Is(err, mem.ErrNotRAM) {
		t.Errorf("read across the end: %d, %v", n, err)
	}
	var r x86.Regs
	if err := tg.CPU(0, &r); err != nil || tg.NumCPU() != 2 {
		t.Errorf("CPU: %v; %d CPUs", err, tg.NumCPU())
	}
}

func TestSamplesComeWhileTimeLasts(t *testing.T) {
	_, dial := serve(t)
	c := NewClient(dial())
	running, idle, lots := 0, 0, 0
	err := c.Samples(200, 0.3, func(all []Sample, lost int) error {
		lots++
		for _, s := range all {
			switch {
			case s.CPU == 0 && s.Running && s.RIP == 0x1234 && s.CR3 == 0x5000 && s.CPL == 3:
				running++
			case s.CPU == 1 && !s.Running && s.RIP == 0:
				idle++
			default:
				t.Errorf("sample %+v", s)
			}
		}
		return nil
	})
	if err != nil || running == 0 || running != idle || lots < 2 {
		t.Errorf("%d and %d samples in %d lots, %v", running, idle, lots, err)
	}
	if _, err := c.Info(); err != nil {
		t.Errorf("the connection after samples: %v", err)
	}
}

func TestBadRequestsAreAnsweredOrCutOff(t *testing.T) {
	_, dial := serve(t)
	for _, line := range []string{"{}", "nonsense", `{"verb":"fly"}`, `{"verb":"samples"}`, `{"verb":"samples","hz":100000,"seconds":1}`, `{"verb":"registers","cpu":-1}`, ""} {
		c := dial()
		c.Write([]byte(line + "\n"))
		var buf []byte
		got, err := readLine(&buf, c.Read)
		if err != nil || !strings.Contains(string(got), `"error"`) {
			t.Errorf("%q: got %q, %v", line, got, err)
		}
	}
	c := dial()
	go io.Copy(c, bytes.NewReader(bytes.Repeat([]byte("x"), 2*MaxLine)))
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an endless line: %v", err)
	}
}

func TestClientsAreBoundedAndNeverBlockEachOther(t *testing.T) {
	_, dial := serve(t)
	slow := dial() // asks much and reads nothing
	go io.Copy(slow, strings.NewReader(strings.Repeat(`{"verb":"info"}`+"\n", 1<<16)))
	c := NewClient(dial())
	for range 10 {
		if _, err := c.Info(); err != nil {
			t.Fatal(err)
		}
	}
	for range MaxClients * 2 {
		dial()
	}
	if _, err := c.Info(); err != nil {
		t.Errorf("an old client beside too many new ones: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"verb":"samples","hz":99,"seconds":1.5}`))
	f.Add([]byte(`{"verb":"registers","cpu":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err == nil && r.Verb == VerbSamples && (r.Hz < 1 || r.Hz > MaxHz || r.Seconds <= 0 || r.Seconds > MaxSeconds) {
			t.Errorf("%q gave %+v", b, r)
		}
		src := bytes.NewReader(b)
		var buf []byte
		for {
			line, err := readLine(&buf, src.Read)
			if err != nil {
				break
			}
			if bytes.IndexByte(line, '\n') >= 0 {
				t.Errorf("a line with a newline: %q", line)
			}
		}
	})
}

func TestAReadThatFailsIsAnErrorAndNoPanic(t *testing.T) {
	var buf []byte
	if line, err := readLine(&buf, func([]byte) (int, error) { return -1, net.ErrClosed }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%q, %v", line, err)
	}
}
