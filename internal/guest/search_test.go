package guest

import (
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/mem"
)

// clocked is a fake kernel whose clock shows a time, in seconds.
func clocked(text, now uint64) *Kernel {
	f := newFake(1 << 16)
	f.Text = text
	f.symbol("tk_core", f.new("timekeeper", map[string]uint64{"xtime_sec": now})-8)
	return f.Kernel
}

func TestRemainsOfAnEarlierKernelAreNotBelieved(t *testing.T) {
	old, running := clocked(1, 1_700_000_000), clocked(2, 1_700_000_500)
	for _, found := range [][]*Kernel{{old, running}, {running, old}} {
		if k, err := latest(found); err != nil || k != running {
			t.Errorf("the kernel whose clock stands at an earlier time is chosen: %v, %v", k, err)
		}
	}
	if k, err := latest([]*Kernel{old, clocked(2, 1_700_000_000)}); err == nil {
		t.Errorf("of two with the same time, %#x is chosen", k.Text)
	}
	if _, err := latest(nil); err != ErrNoKernel {
		t.Errorf("of none: %v", err)
	}
}

func TestKernelWhoseClockIsRightRuns(t *testing.T) {
	now := uint64(time.Now().Unix())
	for _, c := range []struct {
		k    *Kernel
		want bool
	}{{clocked(1, now-2), true}, {clocked(1, now-100), false}, {clocked(1, now+100), false}, {newFake(1 << 16).Kernel, false}} {
		if got := c.k.isRunning(); got != c.want {
			t.Errorf("running: %v, want %v", got, c.want)
		}
	}
}

func TestVMCoreInfoMustAgreeWithThePageTables(t *testing.T) {
	m := &memory{ram: make([]byte, 1<<20)}
	// The root at 0x4000 maps ffffffff80000000 to physical 0, by a page of 1 GiB.
	put(m, 0x4000+8*511, 0x5000|ptePresent)
	put(m, 0x5000+8*510, ptePresent|pteLarge)
	for _, c := range []struct {
		info string
		want bool
	}{
		{"OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=ffffffff80004000\nNUMBER(phys_base)=0\n", true},
		{"OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=ffffffff80004000\nNUMBER(phys_base)=2097152\n", false},
		{"OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=ffffffff80006000\nNUMBER(phys_base)=-8192\n", false},
		{"OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=zero\n", false},
		{"RELEASE=6.1", false},
	} {
		if s, ok := parseVMCoreInfo([]byte(c.info)).space(m); ok != c.want || ok && s.root != 0x4000 {
			t.Errorf("%q: %v, want %v", c.info, ok, c.want)
		}
	}
}

// holey is memory of which some is known to be zero.
type holey struct {
	memory
	data [][2]uint64 // start and size
}

func (h *holey) NextData(a mem.Addr) (mem.Addr, uint64, bool) {
	for _, d := range h.data {
		if uint64(a) < d[0]+d[1] {
			start := max(uint64(a), d[0])
			return mem.Addr(start), d[0] + d[1] - start, true
		}
	}
	return 0, 0, false
}

func TestScanSeesAllThatIsNotZero(t *testing.T) {
	h := &holey{memory{ram: make([]byte, 12<<20)}, [][2]uint64{{0x1800, 10}, {4<<20 - 100, 200}, {9 << 20, 3 << 20}}}
	for _, target := range []Target{h, &h.memory} {
		pages := map[mem.Addr]int{}
		for a, size := range pieces(target, 0, ^mem.Addr(0)) {
			if a%mem.PageSize != 0 || size%mem.PageSize != 0 || size == 0 || size > 4<<20 {
				t.Errorf("a piece of %#x bytes at %#x", size, uint64(a))
			}
			for p := a; p < a+mem.Addr(size); p += mem.PageSize {
				pages[p]++
			}
		}
		for _, a := range []mem.Addr{0x1000, 4<<20 - 4096, 4 << 20, 9 << 20, 12<<20 - 4096} {
			if pages[a] != 1 {
				t.Errorf("%T: page %#x is seen %d times", target, uint64(a), pages[a])
			}
		}
	}
}

func FuzzSearch(f *testing.F) {
	f.Add([]byte("OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=ffffffff80004000\nNUMBER(phys_base)=0\n"), []byte(digits))
	form := allForms[5]
	image := build(testSymbols(4500, form), form)[3800:]
	f.Add(image[:len(image)/2], image[len(image)/2:])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		m := &memory{ram: make([]byte, 1<<20)}
		copy(m.ram, a)
		copy(m.ram[1<<19:], b)
		if k, err := Open(m); err == nil {
			t.Errorf("a kernel is found: %q", k.Banner)
		}
	})
}
