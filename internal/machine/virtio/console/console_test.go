package console

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/virtiotest"
)

const all = ^uint64(0)

func read(t *testing.T, p *Port, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(p, b); err != nil || string(b) != want {
		t.Errorf("read %q, %v; want %q", b, err, want)
	}
}

func write(t *testing.T, p *Port, s string) {
	t.Helper()
	if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
		t.Errorf("write %q: %d, %v", s, n, err)
	}
}

func TestTerminalWithoutPorts(t *testing.T) {
	dev := New()
	write(t, dev.Port(0), "typed early\n") // before there is a driver
	d := virtiotest.New(t, dev)
	if f := d.Offered(); f&FeatureMultiport != 0 {
		t.Errorf("features %#x offer ports that do not exist", f)
	}
	d.Start(all, 0)
	rx, tx := d.Queues[0], d.Queues[1]
	if got := string(rx.Do(nil, 100).Answer()); got != "typed early\n" {
		t.Errorf("guest reads %q", got)
	}
	tx.Do([][]byte{[]byte("hello "), []byte("world")})
	read(t, dev.Port(0), "hello world")
	r := rx.Add(nil, 3)
	rx.Add(nil, 3)
	rx.Kick()
	write(t, dev.Port(0), "abcdef")
	if got := string(rx.Wait(r).Answer()); got != "abc" {
		t.Errorf("guest reads %q, want what fits", got)
	}
}

func TestSizeIsConfigurationWithoutPorts(t *testing.T) {
	dev := New()
	dev.Resize(80, 25)
	d := virtiotest.New(t, dev).Start(all, 0)
	if v := d.Read(d.Config, 4); v != 25<<16|80 {
		t.Errorf("size %#x", v)
	}
	before := d.Interrupts(0)
	dev.Resize(132, 50)
	if v := d.Read(d.Config, 4); v != 50<<16|132 || d.Interrupts(0) != before+1 {
		t.Errorf("size %#x with %d interrupts", v, d.Interrupts(0)-before)
	}
}

func TestSizeIsToldAtTheFirstOutput(t *testing.T) {
	dev := New()
	dev.Resize(80, 25)
	d := virtiotest.New(t, dev).Start(all, 0)
	if n := d.Interrupts(0); n != 0 {
		t.Errorf("%d configuration interrupts before any output", n)
	}
	for range 2 {
		d.Queues[1].Do([][]byte{[]byte("x")})
		if n := d.Interrupts(0); n != 1 {
			t.Errorf("%d configuration interrupts, want 1", n)
		}
	}
}

func TestEmergencyWrite(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev)
	for _, b := range []byte("oops") {
		d.Write(d.Config+cfgEmergWr, 4, uint64(b))
	}
	read(t, dev.Port(0), "oops")
}

// guest is a driver with MULTIPORT.
type guest struct {
	*virtiotest.Driver
	buffers []*virtiotest.Request
}

func startPorts(t *testing.T, dev *Device) *guest {
	g := &guest{Driver: virtiotest.New(t, dev).Start(all, 0)}
	g.fill()
	return g
}

// fill gives the device buffers for control messages.
func (g *guest) fill() {
	for len(g.buffers) < 16 {
		g.buffers = append(g.buffers, g.Queues[controlRx].Add(nil, 64))
	}
	g.Queues[controlRx].Kick()
}

func (g *guest) tell(port int, event, value uint16) {
	g.T.Helper()
	g.Queues[controlTx].Do([][]byte{newMessage(port, event, value)})
}

// expect takes the next control message.
func (g *guest) expect(port int, event, value uint16, more string) {
	g.T.Helper()
	m := g.Queues[controlRx].Wait(g.buffers[0]).Answer()
	g.buffers = g.buffers[1:]
	g.fill()
	if want := newMessage(port, event, value, []byte(more)...); !bytes.Equal(m, want) {
		g.T.Errorf("control message %v, want %v", m, want)
	}
}

func (g *guest) queues(port int) (rx, tx *virtiotest.Queue) {
	return g.Queues[2*port+2], g.Queues[2*port+3]
}

// handshake brings up a device with a terminal and the port "agent", as Linux does.
func handshake(t *testing.T, dev *Device) *guest {
	g := startPorts(t, dev)
	g.tell(0, eventDeviceReady, 1)
	g.expect(0, eventDeviceAdd, 1, "")
	g.expect(1, eventDeviceAdd, 1, "")
	g.tell(0, eventPortReady, 1)
	g.expect(0, eventConsolePort, 1, "")
	g.expect(0, eventResize, 0, "\x50\x00\x19\x00")
	g.expect(0, eventPortOpen, 1, "")
	g.tell(1, eventPortReady, 1)
	g.expect(1, eventPortName, 1, "agent")
	g.expect(1, eventPortOpen, 1, "")
	return g
}

func ports() *Device {
	dev := New(PortConfig{Name: "agent"})
	dev.Resize(80, 25)
	return dev
}

func TestNamedPort(t *testing.T) {
	dev := ports()
	g := handshake(t, dev)
	rx, tx := g.queues(1)
	p := dev.Port(1)
	write(t, p, "question")
	r := rx.Add(nil, 100)
	rx.Kick()
	g.Bus.Pause()
	if rx.UsedIndex() != 0 {
		t.Error("data came before the guest opened the port")
	}
	g.Bus.Resume()
	g.tell(1, eventPortOpen, 1)
	if got := string(rx.Wait(r).Answer()); got != "question" {
		t.Errorf("guest reads %q", got)
	}
	tx.Do([][]byte{[]byte("answer")})
	g.tell(1, eventPortOpen, 0)
	read(t, p, "answer")
	if n, err := p.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the guest closed: %d, %v; want EOF", n, err)
	}
	g.tell(1, eventPortOpen, 1)
	tx.Do([][]byte{[]byte("again")})
	read(t, p, "again")
}

func TestCloseComesAfterTheLastByte(t *testing.T) {
	dev := ports()
	g := handshake(t, dev)
	g.tell(1, eventPortOpen, 1)
	rx, tx := g.queues(1)
	p := dev.Port(1)
	write(t, p, "last words")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if got := string(rx.Do(nil, 100).Answer()); got != "last words" {
		t.Errorf("guest reads %q", got)
	}
	g.expect(1, eventPortOpen, 0, "")
	tx.Do([][]byte{[]byte("to nobody")}) // is taken all the same
	if _, err := p.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := p.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

func TestResizeTellsTerminalsOnly(t *testing.T) {
	dev := ports()
	g := handshake(t, dev)
	dev.Resize(100, 40)
	g.expect(0, eventResize, 0, "\x64\x00\x28\x00")
}

func TestASlowReaderHoldsTheGuestsBuffersNotItsCPU(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev).Start(all, 0)
	tx := d.Queues[1]
	chunk := strings.Repeat("x", 16<<10)
	var last *virtiotest.Request
	for range 8 {
		last = tx.Add([][]byte{[]byte(chunk)})
	}
	tx.Kick()
	d.Until("a full buffer", func() bool { return tx.UsedIndex() == limit/(16<<10) })
	d.Bus.Pause()
	d.Bus.Resume()
	if n := tx.UsedIndex(); n != limit/(16<<10) {
		t.Errorf("%d requests taken, want %d", n, limit/(16<<10))
	}
	for range 8 {
		read(t, dev.Port(0), chunk)
	}
	tx.Wait(last)
}

func TestASlowGuestHoldsTheWriter(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev).Start(all, 0)
	want := bytes.Repeat([]byte("0123456789abcdef"), 3*limit/16)
	done := make(chan error, 1)
	go func() {
		_, err := dev.Port(0).Write(want)
		done <- err
	}()
	var got []byte
	for len(got) < len(want) {
		got = append(got, d.Queues[0].Do(nil, 4096).Answer()...)
	}
	if err := <-done; err != nil || !bytes.Equal(got, want) {
		t.Errorf("write: %v; the bytes are the same: %v", err, bytes.Equal(got, want))
	}
}

func TestCloseOfTheDeviceGivesWhatIsLeftThenEOF(t *testing.T) {
	dev := New()
	d := virtiotest.New(t, dev).Start(all, 0)
	d.Queues[1].Do([][]byte{[]byte("bye")})
	if err := d.Fn.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(dev.Port(0)); string(b) != "bye" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestBytesUnderWayMigrate(t *testing.T) {
	dev := ports()
	g := handshake(t, dev)
	g.tell(1, eventPortOpen, 1)
	_, tx := g.queues(1)
	tx.Do([][]byte{[]byte("unread output")})
	write(t, dev.Port(1), "unread input")
	dev2 := New(PortConfig{Name: "agent"})
	g2 := &guest{Driver: g.Migrate(dev2)}
	read(t, dev2.Port(1), "unread output")
	rx2, _ := g2.queues(1)
	if got := string(rx2.Do(nil, 100).Answer()); got != "unread input" {
		t.Errorf("guest reads %q", got)
	}
	if v := g2.Read(g2.Config, 4); v != 25<<16|80 {
		t.Errorf("size %#x", v)
	}
}

func TestAFloodOfControlMessagesIsHeld(t *testing.T) {
	dev := ports()
	d := virtiotest.New(t, dev).Start(all, 0) // gives no buffers for answers
	q := d.Queues[controlTx]
	for range 10 * maxPending {
		q.PollHostile()
		if !q.Room(1) {
			break
		}
		q.Add([][]byte{newMessage(0, eventDeviceReady, 1)})
		q.Notify()
	}
	d.Bus.Pause()
	if n := len(dev.pending); n > maxPending+maxPorts {
		t.Errorf("%d messages wait", n)
	}
	d.Bus.Resume()
}

func FuzzDriver(f *testing.F) {
	f.Add([]byte{0, 0, 3, 0, 0, 3, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 3, 4, 8, 1, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		dev := New(PortConfig{Name: "agent"}, PortConfig{Console: true})
		for i := range 3 {
			go io.Copy(io.Discard, dev.Port(i))
		}
		dev.Port(1).Write(in)
		virtiotest.Garbage(t, dev, append([]byte{0xFF, 0xFF, 0xFF, 0xFF}, in...))
	})
}

var _ virtio.Device = (*Device)(nil)
