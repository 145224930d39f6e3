package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/confine/confinetest"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/network"
	"vitrine.dev/vitrine/internal/network/user"
)

func TestMain(m *testing.M) {
	helper.Run(map[string]helper.Main{Kind: Main})
	confinetest.Child(map[string]confinetest.Rights{Kind: func(string) confine.Rights { return rights(confine.UserOf(os.Getpid())) }})
	os.Exit(m.Run())
}

// "open" is of a file in /etc, which all may read.
func TestTheHelperCanDoNothingButUseSocketsOfIP(t *testing.T) {
	confinetest.Check(t, Kind, "tcp", "udp", "connect", "bind", "open")
}

func start(t *testing.T, forwards ...user.Forward) (*Network, error) {
	n, err := Start(helper.Options{Guest: "test", Log: func(s string) { t.Log(s) }}, confine.UserOf(os.Getpid()), forwards)
	if err == nil {
		t.Cleanup(func() { n.Close() })
		if err := n.SetName("test"); err != nil {
			t.Fatal(err)
		}
	}
	return n, err
}

// arp is a request for the gateway's address.
func arp() []byte {
	f := make([]byte, 42)
	copy(f, "\xff\xff\xff\xff\xff\xff")
	copy(f[6:], user.GuestMAC[:])
	copy(f[12:], "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01")
	copy(f[22:], user.GuestMAC[:])
	copy(f[28:], user.Guest.AsSlice())
	copy(f[38:], user.Gateway.AsSlice())
	return f
}

func TestFramesAreAnsweredFromTheHelper(t *testing.T) {
	n, err := start(t)
	if err != nil {
		t.Fatal(err)
	}
	wake := make(chan struct{}, 1)
	n.Up(0, func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}, func() {})
	f := arp()
	if !n.Send([][]byte{f}, len(f), network.Offload{}) {
		t.Fatal("no room for a frame")
	}
	for end := time.After(10 * time.Second); ; {
		if got := n.Front(); got != nil {
			var b []byte
			for _, p := range got.Parts {
				b = append(b, p...)
			}
			if len(b) < 42 || b[21] != 2 || netip.AddrFrom4([4]byte(b[28:])) != user.Gateway {
				t.Errorf("got %x, want the gateway's answer", b)
			}
			return
		}
		select {
		case <-wake:
		case <-end:
			t.Fatal("no answer")
		}
	}
}

func TestAPortInUseIsSaidByTheHelper(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := netip.MustParseAddrPort(l.Addr().String())
	_, err = start(t, user.Forward{Host: taken, Guest: 80})
	if want := fmt.Sprintf("port %d of 127.0.0.1 is in use", taken.Port()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestAHelperThatDiesCutsTheGuestOff(t *testing.T) {
	n, err := start(t)
	if err != nil {
		t.Fatal(err)
	}
	n.Up(0, func() {}, func() {})
	unix.Kill(n.Helper.PID(), unix.SIGKILL)
	<-n.Helper.Done()
	f := make([]byte, network.MaxFrame)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		for range 1000 { // more than there is room for, if nobody reads
			if !n.Send([][]byte{f}, len(f), network.Offload{}) {
				time.Sleep(time.Millisecond) // it is not known yet
				break
			}
		}
		if n.Send([][]byte{f}, len(f), network.Offload{}) {
			return
		}
	}
	t.Error("the guest's frames wait for a helper that has ended")
}
