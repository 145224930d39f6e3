package foreign

// The smallest VMM: one processor on KVM that jumps to itself. The invariant of this file: what a pointer handed to the kernel points to lives until the call returns.

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/host/vmm"
	"vitrine.dev/vitrine/internal/x86"
)

const victimVar = "VITRINE_TEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimVar) != "" {
		if err := victim(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// Where the victim's guest is, and what it has in RAX and RBX.
const (
	victimRIP = 0x1000
	victimRAX = 0x1234_5678
	victimRBX = 0x9abc_def0
)

func ioctl[T any](fd int, request uintptr, arg *T) (int, error) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	if e != 0 {
		return 0, fmt.Errorf("%#x: %w", request, e)
	}
	return int(n), nil
}

// victim runs until it is killed. Requests are those of include/uapi/linux/kvm.h.
func victim() error {
	runtime.LockOSThread()
	dev, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	vm, err := ioctl[byte](dev, 0xAE01, nil)
	if err != nil {
		return err
	}
	ram, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	copy(ram[victimRIP:], []byte{0xEB, 0xFE}) // jmp $
	region := struct {
		slot, flags      uint32
		base, size, host uint64
	}{size: uint64(len(ram)), host: uint64(uintptr(unsafe.Pointer(&ram[0])))}
	if _, err := ioctl(vm, 0x4020AE46, &region); err != nil {
		return err
	}
	cpu, err := ioctl[byte](vm, 0xAE41, nil)
	if err != nil {
		return err
	}
	size, err := ioctl[byte](dev, 0xAE04, nil)
	if err != nil {
		return err
	}
	if _, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	var special [312]byte
	if _, err := ioctl(cpu, 0x8138AE83, &special); err != nil {
		return err
	}
	clear(special[0:8])   // CS.base
	clear(special[12:14]) // CS.selector
	if _, err := ioctl(cpu, 0x4138AE84, &special); err != nil {
		return err
	}
	regs := [18]uint64{0: victimRAX, 1: victimRBX, 16: victimRIP, 17: x86.Fixed}
	if _, err := ioctl(cpu, 0x4090AE82, &regs); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if _, err := ioctl[byte](cpu, 0xAE80, nil); err != nil && !isEINTR(err) {
			return err
		}
	}
}

func isEINTR(err error) bool { return fmt.Sprint(err) == fmt.Sprintf("%#x: %v", 0xAE80, unix.EINTR) }

// startVictim starts one and gives what is found of it.
func startVictim(t testing.TB) vmm.Guest {
	t.Helper()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("no /dev/kvm")
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), victimVar+"=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Skipf("no victim on this host's KVM: %q, %v", line, err)
	}
	g, ok := vmm.Find(Proc, c.Process.Pid)
	if !ok || g.Accelerator != vmm.KVM || g.CPUs != 1 || g.VCPUs[0].FD < 0 {
		t.Fatalf("found %v %+v", ok, g)
	}
	return g
}

func TestRegistersArePeekedAndNothingStays(t *testing.T) {
	g := startVictim(t)
	process, err := unix.PidfdOpen(g.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	page, err := borrow(process, &g.VCPUs[0])
	if err != nil {
		t.Skipf("its page cannot be had: %v", err)
	}
	defer page.Unmap()
	p, err := openPeek(Proc, &g)
	if err != nil {
		t.Skipf("no peeking on this host: %v", err)
	}
	const samples = 100
	atWork := 0
	for range samples {
		var r x86.Regs
		running, err := p.read(0, &r)
		if running {
			atWork++
		}
		if err != nil || r.RIP != victimRIP || r.GPR[x86.RAX] != victimRAX || r.GPR[x86.RBX] != victimRBX || r.CPL() != 0 {
			t.Fatalf("%v: %+v", err, r)
		}
	}
	if atWork < samples*3/4 { // it is seen on its way into KVM, too
		t.Errorf("it was at work %d of %d times, and does nothing else", atWork, samples)
	}
	if !page.Kept() {
		t.Error("KVM was not asked to keep the registers")
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if added := page.Keep(); added == 0 {
		t.Error("KVM is still asked to keep the registers")
	} else {
		page.Forget(added)
	}
	if s, ok := Proc.Stat(g.PID); !ok || s.State == 't' || s.State == 'T' {
		t.Errorf("the VMM is in state %c", s.State)
	}
}

func TestTwoWhoPeekDoNotHinderEachOther(t *testing.T) {
	g := startVictim(t)
	peeks := [2]*peek{}
	for i := range peeks {
		var err error
		if peeks[i], err = openPeek(Proc, &g); err != nil {
			t.Skipf("no peeking on this host: %v", err)
		}
	}
	var r x86.Regs
	for i := range 20 {
		if _, err := peeks[i%2].read(0, &r); err != nil || r.RIP != victimRIP {
			t.Fatalf("%d: %v, at %#x", i, err, r.RIP)
		}
	}
	peeks[0].close() // takes back what both need
	if _, err := peeks[1].read(0, &r); err != nil || r.RIP != victimRIP {
		t.Errorf("after the other left: %v, at %#x", err, r.RIP)
	}
	peeks[1].close()
}

func TestAnEndedVMMIsSaidToHaveEnded(t *testing.T) {
	g := startVictim(t)
	p, err := openPeek(Proc, &g)
	if err != nil {
		t.Skipf("no peeking on this host: %v", err)
	}
	defer p.close()
	unix.Kill(g.PID, unix.SIGKILL)
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		var r x86.Regs
		if _, err := p.read(0, &r); err != nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatal("registers of a process that was killed")
		}
	}
}

func BenchmarkPeek(b *testing.B) {
	g := startVictim(b)
	p, err := openPeek(Proc, &g)
	if err != nil {
		b.Skip(err)
	}
	defer p.close()
	var r x86.Regs
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	for b.Loop() {
		if _, err := p.read(0, &r); err != nil {
			b.Fatal(err)
		}
	}
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op") // the rest is waiting for the VMM's thread
}
