package agent

import (
	"io"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// firstHost is what a host of the protocol's first days sent, byte for byte: a hello that names no abilities, and a Start whose last
// field is 6. It stays as it is; today's code is not to make it anew.
const firstHost = "\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" + "\x08\x01" +
	"\x2a\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00" +
	"\x0a\x07/bin/sh" + "\x0a\x02-c" + "\x0a\x15echo old peer; exit 3" + "\x2a\x00" + "\x30\x01" + "\x1a\x00"

func TestAnAgentServesTheFirstHostsThereWere(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest, host := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "host")
	defer guest.Close()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD)
	defer func() { signal.Stop(signals); close(signals) }()
	ended := make(chan error, 1)
	go func() {
		conn := wire.NewConn(guest)
		_, err := conn.Hello(wire.AbilityUser)
		if err == nil {
			s := newServer(conn)
			go s.reap(signals)
			err = s.serve()
		}
		ended <- err
	}()
	if _, err := io.WriteString(host, firstHost); err != nil {
		t.Fatal(err)
	}
	// The agent's side is read as the first hosts read it: frames by number, fields beyond theirs skipped.
	conn := wire.NewConn(host)
	text, status := "", wire.Number(255)
	for done := false; !done; {
		f, err := conn.Recv()
		if err != nil {
			t.Fatal(err)
		}
		switch f.Type {
		case 1: // hello
			var h wire.Hello
			if err := h.Unmarshal(f.Payload); err != nil || h.Version != 1 {
				t.Errorf("hello %+v, %v; want version 1", h, err)
			}
		case 7: // stdout
			text += string(f.Payload)
		case 12: // exit
			if err := status.Unmarshal(f.Payload); err != nil {
				t.Fatal(err)
			}
			done = true
		case 4:
			t.Fatalf("failed: %q", f.Payload)
		}
	}
	if text != "old peer\n" || status != 3 {
		t.Errorf("got %q, status %d; want \"old peer\", 3", text, status)
	}
	host.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
