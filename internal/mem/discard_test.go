package mem

import "testing"

func TestDiscardGivesWholePagesBack(t *testing.T) {
	m, err := New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for a := Addr(0); a < 4<<20; a += PageSize {
		m.Store64(a, uint64(a)+1)
	}
	resident := func() uint64 {
		t.Helper()
		n, err := m.Resident()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := resident(); n != 4<<20 {
		t.Errorf("%d bytes are resident, want all", n)
	}
	m.StartLog()
	given, err := m.Discard(0x10100, 0x3000)
	if err != nil || given != 0x2000 {
		t.Errorf("gave back %#x, %v, want the 2 whole pages", given, err)
	}
	if n, want := resident(), uint64(4<<20-0x2000); n != want && m.Huge() == HugeOff {
		t.Errorf("%d bytes are resident, want %d", n, want)
	}
	for _, c := range []struct {
		at   Addr
		want uint64
	}{{0x10000, 0x10001}, {0x11000, 0}, {0x12000, 0}, {0x13000, 0x13001}} {
		if v := m.Load64(c.at); v != c.want {
			t.Errorf("%#x at %#x, want %#x", v, c.at, c.want)
		}
	}
	var log []Addr
	m.TakeLog(func(a Addr) { log = append(log, a) })
	if len(log) != 2 || log[0] != 0x11000 || log[1] != 0x12000 {
		t.Errorf("the log has %#x, want the pages that changed", log)
	}
	if given, err := m.Discard(0x20100, 0x1000); given != 0 || err != nil {
		t.Errorf("%d bytes, %v of a range without a whole page", given, err)
	}
	if _, err := m.Discard(4<<20-PageSize, 2*PageSize); err == nil {
		t.Error("a range beyond RAM is given back")
	}
}

func TestShmemSettingIsRead(t *testing.T) {
	for text, want := range map[string]Huge{
		"always within_size advise [never] deny force\n": HugeOff,
		"always within_size [advise] never deny force":   HugeAsked,
		"[always] within_size advise never deny force":   HugeAlways,
		"always [within_size] advise never deny force":   HugeAlways,
		"always within_size advise never [deny] force":   HugeOff,
		"always within_size advise never deny [force]":   HugeAlways,
		"": HugeOff,
	} {
		if got := parseShmem(text); got != want {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
}

func TestAPoolThatIsTooSmallIsAnError(t *testing.T) {
	if m, err := NewPooled(1 << 40); err == nil {
		m.Close()
		t.Error("a TiB of huge pages")
	}
	if _, err := NewPooled(3 << 20); err == nil {
		t.Error("a size that is no multiple of a huge page")
	}
}
