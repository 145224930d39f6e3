package guest

import "testing"

func TestSocketsAreNamedAsSSNamesThem(t *testing.T) {
	f := newFake(1 << 16)
	name := f.new("unix_address", map[string]uint64{"len": 7})
	f.next += 16
	copy(f.m.ram[f.where("unix_address", name, "name")-direct:], "\x01\x00\x00a\x00\x1b\x00")
	sock := func(fields map[string]uint64) uint64 { return f.new("sock", fields) }
	for _, c := range []struct {
		what string
		at   uint64
		want Socket
	}{
		{"a connection", sock(map[string]uint64{
			"__sk_common.skc_family": 2, "__sk_common.skc_state": 1, "__sk_common.skc_num": 80, "__sk_common.skc_dport": 0x3412, "__sk_common.skc_rcv_saddr": 0x0100007f,
			"__sk_common.skc_daddr": 0x0200007f, "sk_protocol": 6, "sk_type": 1,
		}), Socket{Protocol: "tcp", State: "ESTAB", Local: "127.0.0.1:80", Remote: "127.0.0.2:4660"}},
		{"a listening one", sock(map[string]uint64{
			"__sk_common.skc_family": 10, "__sk_common.skc_state": 10, "__sk_common.skc_num": 22, "sk_protocol": 6, "sk_type": 1, "sk_ack_backlog": 3, "sk_uid": 7,
		}), Socket{Protocol: "tcp6", State: "LISTEN", Local: "[::]:22", Remote: "[::]:*", Received: 3, UID: 7}},
		{"datagrams", sock(map[string]uint64{
			"__sk_common.skc_family": 2, "__sk_common.skc_state": 7, "sk_protocol": 17, "sk_type": 2, "sk_wmem_alloc.refs.counter": 1, "sk_backlog.rmem_alloc.counter": 768,
		}), Socket{Protocol: "udp", State: "UNCONN", Local: "0.0.0.0:*", Remote: "0.0.0.0:*", Received: 768}},
		{"raw packets", sock(map[string]uint64{"__sk_common.skc_family": 2, "__sk_common.skc_state": 7, "sk_protocol": 1, "sk_type": 3}),
			Socket{Protocol: "raw", State: "UNCONN", Local: "0.0.0.0:*", Remote: "0.0.0.0:*"}},
		{"a family that nobody knows", sock(map[string]uint64{"__sk_common.skc_family": 99, "__sk_common.skc_state": 77}),
			Socket{Protocol: "99", State: "UNKNOWN", Local: "*", Remote: "*"}},
	} {
		sk, err := f.load("sock", c.at)
		if err != nil {
			t.Fatal(err)
		}
		got := f.newWalker().describeSocket(sk)
		if got.Protocol != c.want.Protocol || got.State != c.want.State || got.Local != c.want.Local || got.Remote != c.want.Remote ||
			got.Received != c.want.Received || got.Unsent != c.want.Unsent || got.UID != c.want.UID {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
	}
	u, err := f.load("unix_sock", f.new("unix_sock", map[string]uint64{"addr": name}))
	if err != nil {
		t.Fatal(err)
	}
	if got := f.newWalker().unixName(u); got != "@a@?" {
		t.Errorf("an abstract name with an escape: %q, want %q", got, "@a@?")
	}
}
