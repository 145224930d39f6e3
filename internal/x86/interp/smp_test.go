package interp

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// sibling adds a CPU to c's VM, in c's state but for RIP and the stack.
func sibling(t *testing.T, c *CPU, rip uint64) *CPU {
	t.Helper()
	n := c.vm.NewCPU(len(c.vm.cpus), &noIO{})
	var s x86.State
	if err := c.State(&s); err != nil {
		t.Fatal(err)
	}
	s.RIP = rip
	s.GPR[x86.RSP] -= uint64(n.ID) * 0x1000
	if err := n.SetState(&s); err != nil {
		t.Fatal(err)
	}
	return n
}

// together runs the CPUs until all have halted, each on a thread of its own as the machine does.
func together(t *testing.T, cpus ...*CPU) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(len(cpus) + 2))
	var wg sync.WaitGroup
	for _, c := range cpus {
		wg.Go(func() {
			runtime.LockOSThread()
			for {
				switch exit := c.Run(); exit {
				case hv.Halted:
					return
				case hv.Kicked:
				default:
					t.Errorf("CPU %d: %v at RIP %#x, vector %d, CR2 %#x", c.ID, exit, c.rip, c.fault.vec, c.cr2)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		for _, c := range cpus {
			t.Errorf("CPU %d hangs: RIP %#x, poll %#x, running %v", c.ID, c.rip, c.poll.Load(), c.mail.running.Load())
		}
		t.FailNow()
	}
}

// TestCPUsMarkCodeAtOnceWithoutDeadlock lets two CPUs run code that dies and is decoded anew all the time, so that each waits for the other's TLB
// to forget about pages while it is asked the same.
func TestCPUsMarkCodeAtOnceWithoutDeadlock(t *testing.T) {
	// A ring of pages: each rewrites its own first byte, counts, and jumps to the next page; the last counts rounds down and halts.
	const pages, rounds = 32, 300
	c := flat(t, nil)
	for p := range uint64(pages) {
		at := mem.Addr(flatCode + p*0x1000)
		code := []byte{
			0xC6, 0x05, 0xF9, 0xFF, 0xFF, 0xFF, 0xC6, // mov byte [rip-7], 0xC6: its own first byte
			0xF0, 0x48, 0xFF, 0x04, 0x25, 0, 0, 0x30, 0, // lock inc qword [0x300000]
			0xE9, 0xEB, 0x0F, 0, 0, // jmp to the next page
		}
		if p == pages-1 {
			code = []byte{
				0xF0, 0x48, 0xFF, 0x04, 0x25, 0, 0, 0x30, 0,
				0xFF, 0xC9, // dec ecx
				0x0F, 0x85, 0, 0, 0, 0, // jnz first page
				0xF4,
			}
			rel := uint32(flatCode - int64(at) - 17&0xFFFFFFFF)
			for i := range 4 {
				code[13+i] = byte(rel >> (8 * i))
			}
		}
		if err := c.ram.WriteAt(code, at); err != nil {
			t.Fatal(err)
		}
	}
	c.gpr[x86.RCX] = rounds
	d := sibling(t, c, flatCode)
	together(t, c, d)
	if got := c.ram.Load64(0x300000); got != 2*pages*rounds {
		t.Errorf("LOCK INC counted %d of %d", got, 2*pages*rounds)
	}
}

// TestDirtyLogSeesEveryPageThatIsWritten: after TakeLog has handed a page out, the next write to it is seen, while the CPU runs on.
func TestDirtyLogSeesEveryPageThatIsWritten(t *testing.T) {
	c := flat(t, []byte{
		0x48, 0xFF, 0x04, 0x25, 0, 0, 0x30, 0, // inc qword [0x300000]
		0x80, 0x3C, 0x25, 0, 0, 0x31, 0, 0, // cmp byte [0x310000], 0
		0x74, 0xEE, // jz first
		0xF4,
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		together(t, c)
	}()
	const page = mem.Addr(0x300000)
	for c.ram.Load64(page) == 0 {
		runtime.Gosched()
	}
	c.ram.StartLog()
	for range 200 {
		c.ram.TakeLog(func(mem.Addr) {})
		before := c.ram.Load64(page)
		for c.ram.Load64(page) == before {
			runtime.Gosched()
		}
		seen := false
		// The count was written; its report follows the write, so a moment may pass.
		for end := time.Now().Add(10 * time.Second); !seen && time.Now().Before(end); {
			c.ram.TakeLog(func(a mem.Addr) { seen = seen || a == page })
		}
		if !seen {
			t.Fatal("a page was written and is not in the log")
		}
	}
	c.ram.StopLog()
	c.ram.Store16(0x310000, 1)
	<-done
}

// TestCodeWrittenFromOutsideIsSeen: a device writes over a loop that a CPU is running.
func TestCodeWrittenFromOutsideIsSeen(t *testing.T) {
	c := flat(t, []byte{0x48, 0xFF, 0xC0, 0xEB, 0xFB}) // 1: inc rax; jmp 1b
	time.AfterFunc(20*time.Millisecond, func() { c.ram.WriteAt([]byte{0xF4}, flatCode) })
	together(t, c)
	if c.gpr[x86.RAX] == 0 {
		t.Error("the loop never ran")
	}
}

// TestSampleTellsWhereACPURuns asks a looping CPU and a halted one.
func TestSampleTellsWhereACPURuns(t *testing.T) {
	c := flat(t, []byte{0x80, 0x3C, 0x25, 0, 0, 0x31, 0, 0, 0x74, 0xF6, 0xF4}) // 1: cmp byte [0x310000], 0; jz 1b; hlt
	var r x86.Regs
	if c.Sample(&r) {
		t.Error("a CPU outside of Run was sampled")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		together(t, c)
	}()
	for !c.Sample(&r) {
		runtime.Gosched()
	}
	if r.RIP != flatCode || r.GPR[x86.RSP] != flatStack {
		t.Errorf("sampled RIP %#x, RSP %#x; want %#x, %#x", r.RIP, r.GPR[x86.RSP], uint64(flatCode), uint64(flatStack))
	}
	c.ram.Store16(0x310000, 1)
	<-done
	if c.Sample(&r) {
		t.Error("a halted CPU was sampled")
	}
}

// TestKickIsNotLost kicks before Run and during it.
func TestKickIsNotLost(t *testing.T) {
	c := flat(t, []byte{0xEB, 0xFE})
	c.Kick()
	if got := c.Run(); got != hv.Kicked {
		t.Errorf("Run after Kick: %v", got)
	}
	time.AfterFunc(time.Millisecond, c.Kick)
	if got := c.Run(); got != hv.Kicked {
		t.Errorf("Run during Kick: %v", got)
	}
}
