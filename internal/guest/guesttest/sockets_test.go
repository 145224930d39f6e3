package guesttest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/guest"
)

// socketStates are /proc/net's numbers of the states that truth.sh brings sockets into.
var socketStates = map[string]string{"01": "ESTAB", "07": "UNCONN", "0A": "LISTEN"}

// compareSockets compares with /proc/net: what a process has open is there too, with the same words.
func compareSockets(t *testing.T, k *guest.Kernel, said said) {
	all, err := k.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6"} {
		var got, want []string
		for _, s := range all {
			if s.Protocol == protocol {
				got = append(got, fmt.Sprintf("%d %s %s %s %d %d", s.Inode, s.State, s.Local, s.Remote, s.Unsent, s.Received))
				if len(s.Holders) != 1 || s.Holders[0].Comm != "perl" {
					t.Errorf("%s %s is held by %v, want perl", s.Protocol, s.Local, s.Holders)
				}
			}
		}
		for line := range strings.Lines(said["net/"+protocol]) {
			f := strings.Fields(line)
			if f[0] == "sl" || f[9] == "0" { // a header, or nobody's
				continue
			}
			sent, received, _ := strings.Cut(f[4], ":")
			state := socketStates[f[3]]
			if n := number(t, sent); protocol[:3] == "tcp" && state == "LISTEN" {
				sent = "7" // /proc/net shows none
				if n != 0 {
					t.Errorf("%d bytes to be sent by one that listens", n)
				}
			}
			want = append(want, fmt.Sprintf("%s %s %s %s %d %d", f[9], state, endpointOf(t, f[1]), endpointOf(t, f[2]), number(t, sent), number(t, received)))
		}
		slices.Sort(got)
		slices.Sort(want)
		same(t, strings.Join(got, "\n"), strings.Join(want, "\n"))
		if least := map[string]int{"tcp": 3, "udp": 1}[protocol[:3]]; len(want) < least {
			t.Errorf("the guest has %d sockets of %s, want %d", len(want), protocol, least)
		}
	}
	names := map[string]string{}
	for _, s := range all {
		if s.Protocol == "unix" && s.Local != "*" {
			names[fmt.Sprint(s.Inode)] = s.Local
		}
	}
	for line := range strings.Lines(said["net/unix"]) {
		if f := strings.Fields(line); len(f) == 8 && f[0] != "Num" && names[f[6]] != f[7] {
			t.Errorf("socket %s has the name %q, the guest says %q", f[6], names[f[6]], f[7])
		}
	}
	if len(names) < 2 {
		t.Errorf("%d unix sockets have names: %v", len(names), names)
	}
	// Their structures are known to a module alone: the agent's connection to the host.
	if !slices.ContainsFunc(all, func(s guest.Socket) bool { return s.Protocol == "vsock" && strings.HasPrefix(s.Remote, "2:") }) {
		t.Error("no connection to the host (vsock) is seen")
	}
}

func number(t *testing.T, s string) uint64 {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// endpointOf is an address of /proc/net: words of 4 bytes in the processor's order, and a port.
func endpointOf(t *testing.T, s string) string {
	host, port, _ := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.LittleEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, _ := netip.AddrFromSlice(raw)
	text := a.String()
	if a.Is6() {
		text = "[" + text + "]"
	}
	if n := number(t, port); n != 0 {
		return fmt.Sprintf("%s:%d", text, n)
	}
	return text + ":*"
}
