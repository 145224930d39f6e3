package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
)

type message interface {
	Marshal() []byte
}

func TestMessagesSurviveTheWire(t *testing.T) {
	cases := []struct {
		in  message
		out any // pointer to a zero value
	}{
		{Hello{Version: 3, Abilities: []string{"a", "", "c"}}, &Hello{}},
		{Setup{Hostname: "h", RootTag: "root", Tmpfs: []string{"/tmp"}, Shares: []Share{{"t", "/s", "/t", true}, {"", "/a", "/b", false}}}, &Setup{}},
		{Start{Args: []string{"a", "", "b\x00"}, Env: []string{"A=b"}, Dir: "/", Terminal: true, Size: Size{24, 80}, NoStdin: true}, &Start{}},
		{Credit{TypeStdout, 77}, &Credit{}},
		{Number(137), new(Number)},
		{Number(0), new(Number)},
		{Size{1, 0}, &Size{}},
	}
	for _, c := range cases {
		if err := c.out.(interface{ Unmarshal([]byte) error }).Unmarshal(c.in.Marshal()); err != nil {
			t.Errorf("%#v: %v", c.in, err)
			continue
		}
		if got := reflect.ValueOf(c.out).Elem().Interface(); !reflect.DeepEqual(got, c.in) {
			t.Errorf("got %#v, want %#v", got, c.in)
		}
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	b := appendUint(nil, 99, 5)
	b = appendString(b, 100, "later")
	b = binary.AppendUvarint(b, 101<<3|1)
	b = append(b, 1, 2, 3, 4, 5, 6, 7, 8)
	b = binary.AppendUvarint(b, 102<<3|5)
	b = append(b, 1, 2, 3, 4)
	b = append(b, Hello{Version: 9}.Marshal()...)
	var h Hello
	if err := h.Unmarshal(b); err != nil || h.Version != 9 {
		t.Fatalf("got %+v, %v", h, err)
	}
}

// recordedHello is what version 1 sends first: a change of it breaks guests that were started by it.
const recordedHello = "\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x08\x01\x12\x04exec"

func TestHelloIsWhatVersionOneRecorded(t *testing.T) {
	var b bytes.Buffer
	if err := NewConn(&b).Send(TypeHello, 0, Hello{1, []string{"exec"}}.Marshal()); err != nil {
		t.Fatal(err)
	}
	if b.String() != recordedHello {
		t.Errorf("got %q, want %q", b.String(), recordedHello)
	}
}

func TestHelloIsExchangedWithBothSidesSendingFirst(t *testing.T) {
	a, b := net.Pipe()
	got := make(chan Hello, 1)
	go func() {
		h, err := NewConn(b).Hello("two")
		if err != nil {
			t.Error(err)
		}
		got <- h
	}()
	h, err := NewConn(a).Hello("one")
	if err != nil || len(h.Abilities) != 1 || h.Abilities[0] != "two" {
		t.Errorf("got %+v, %v", h, err)
	}
	if h := <-got; h.Abilities[0] != "one" {
		t.Errorf("peer got %+v", h)
	}
}

func TestFramesAreBounded(t *testing.T) {
	hdr := []byte{1, 0, 64, 0, 1, 0, 0, 0, 0, 0, 0, 0} // 4 MiB + 1
	_, err := NewConn(bytes.NewBuffer(hdr)).Recv()
	if !errors.Is(err, ErrTooLong) {
		t.Errorf("got %v", err)
	}
	hdr[0] = 0 // 4 MiB announced, nothing sent: only what arrives is allocated
	c := NewConn(bytes.NewBuffer(hdr))
	if _, err := c.Recv(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if cap(c.in) > 4*MaxData {
		t.Errorf("%d bytes allocated for an empty frame", cap(c.in))
	}
}

func TestAFlowStopsAtItsWindow(t *testing.T) {
	f := NewFlow()
	for left := Window; left > 0; {
		left -= f.Take(MaxData)
	}
	took := make(chan int)
	go func() { took <- f.Take(100) }()
	select {
	case n := <-took:
		t.Fatalf("took %d beyond the window", n)
	default:
	}
	f.Add(7)
	if n := <-took; n != 7 {
		t.Errorf("took %d of 7", n)
	}
	go func() { took <- f.Take(100) }()
	f.Close()
	if n := <-took; n != 0 {
		t.Errorf("took %d after Close", n)
	}
}

func TestAQueueGivesBackWhatWasPutAndEnds(t *testing.T) {
	q := NewQueue()
	want := strings.Repeat("0123456789", 1000)
	go func() {
		for i := 0; i < len(want); i += 100 {
			q.Put([]byte(want[i : i+100]))
		}
		q.Close()
	}()
	var got []byte
	p := make([]byte, 77)
	for {
		n := q.Take(p)
		if n == 0 {
			break
		}
		got = append(got, p[:n]...)
	}
	if string(got) != want {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	q = NewQueue()
	q.Put(make([]byte, Window))
	q.Put([]byte{1})
	if !q.end || len(q.buf) != Window {
		t.Errorf("a queue took %d bytes of a peer without credit", len(q.buf))
	}
}

func FuzzRecv(f *testing.F) {
	f.Add([]byte(recordedHello))
	f.Add([]byte{1, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewConn(bytes.NewBuffer(b))
		for {
			fr, err := c.Recv()
			if err != nil {
				return
			}
			if len(fr.Payload) > len(b) {
				t.Fatalf("%d bytes of payload from %d", len(fr.Payload), len(b))
			}
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(Setup{Hostname: "h", Shares: []Share{{"t", "/s", "/t", true}}}.Marshal())
	f.Add(Start{Args: []string{"a"}, Size: Size{1, 2}}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		var st Start
		if st.Unmarshal(b) == nil {
			var again Start
			if err := again.Unmarshal(st.Marshal()); err != nil || !reflect.DeepEqual(st, again) {
				t.Fatalf("%#v became %#v, %v", st, again, err)
			}
		}
		_ = new(Hello).Unmarshal(b)
		_ = new(Setup).Unmarshal(b)
		_ = new(Credit).Unmarshal(b)
		_ = new(Number).Unmarshal(b)
	})
}
