package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// checks is what is looked at, in order. The kernel's log comes last: it tells what the others did to the kernel.
var checks = []struct {
	name string
	do   func(want map[string]string) error
}{
	{"cpus", checkCPUs},
	{"memory", checkMemory},
	{"compute", checkCompute},
	{"goroutines", checkGoroutines},
	{"faults", checkFaults},
	{"signals", checkSignals},
	{"processes", checkProcesses},
	{"program32", checkProgram32},
	{"time", checkTime},
	{"initrd", checkInitrd},
	{"log", checkLog},
}

func checkCPUs(want map[string]string) error {
	p, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if n, w := bytes.Count(p, []byte("\nprocessor"))+1, number(want, "cpus"); n != w {
		return fmt.Errorf("%d are online, want %d", n, w)
	}
	return nil
}

// checkMemory compares MemTotal with what the machine has: the kernel takes up to 64 MiB and a thirtieth for itself. Above 4 GiB it also looks
// that memory there is what processes get.
func checkMemory(want map[string]string) error {
	p, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	var kib uint64
	if _, err := fmt.Sscanf(string(p), "MemTotal: %d kB", &kib); err != nil {
		return err
	}
	has, w := int(kib>>10), number(want, "mib")
	if has > w || has < w-w/30-64 {
		return fmt.Errorf("%d MiB, want %d less a little", has, w)
	}
	if w <= 4096 {
		return nil
	}
	mem, err := unix.Mmap(-1, 0, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	high := 0
	for i := 0; i < len(mem); i += 1 << 20 {
		mem[i] = byte(i >> 20)
		var e [8]byte
		if _, err := f.ReadAt(e[:], int64(uintptr(unsafe.Pointer(&mem[i])))>>12*8); err != nil {
			return err
		}
		if frame := binary.LittleEndian.Uint64(e[:]) & (1<<55 - 1); frame >= 4<<30>>12 {
			high++
		}
	}
	if high == 0 {
		return errors.New("no page of a process is above 4 GiB")
	}
	for i := 0; i < len(mem); i += 1 << 20 {
		if mem[i] != byte(i>>20) {
			return fmt.Errorf("page %d has lost what was written to it", i>>20)
		}
	}
	return nil
}

// checkCompute prints what the host computes too; the test compares.
func checkCompute(map[string]string) error {
	compute(os.Stdout)
	return nil
}

// checkGoroutines makes garbage on all processors while they share counters, channels and a map.
func checkGoroutines(map[string]string) error {
	const workers, rounds = 8, 400
	var mu sync.Mutex
	var atomics atomic.Int64
	plain, seen := 0, map[int]int{}
	results := make(chan int)
	for w := range workers {
		go func() {
			keep := make([][]byte, 16)
			sum := 0
			for i := range rounds {
				b := bytes.Repeat([]byte{byte(i)}, 1+i*37%4096)
				keep[i%16] = b
				old := keep[i*7%16]
				if len(old) > 0 && old[0] != old[len(old)-1] {
					sum = -1 << 40
				}
				sum += i
				atomics.Add(1)
				mu.Lock()
				plain++
				seen[i]++
				mu.Unlock()
				if i%64 == w {
					runtime.GC()
				}
			}
			results <- sum
		}()
	}
	for range workers {
		if s := <-results; s != rounds*(rounds-1)/2 {
			return fmt.Errorf("a sum is %d, want %d", s, rounds*(rounds-1)/2)
		}
	}
	if plain != workers*rounds || atomics.Load() != workers*rounds || seen[rounds-1] != workers {
		return fmt.Errorf("counted %d, %d and %d, want %d, %d and %d", plain, atomics.Load(), seen[rounds-1], workers*rounds, workers*rounds, workers)
	}
	return nil
}

// checkFaults takes page faults, protection faults and divide errors, and goes on behind each.
func checkFaults(map[string]string) error {
	debug.SetPanicOnFault(true)
	page, err := unix.Mmap(-1, 0, 8<<12, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	var null *int
	zero := 0
	for _, f := range []struct {
		what, want string
		do         func()
	}{
		{"a load at 0", "invalid memory address", func() { _ = *null }},
		{"a store to a page for reading", "invalid memory address", func() { page[3<<12] = 1 }},
		{"a load at a non-canonical address", "invalid memory address", func() { _ = **(**int)(unsafe.Pointer(&[]uint64{1 << 62}[0])) }},
		{"a division by zero", "divide by zero", func() { zero = 1 / zero }},
	} {
		for range 20 {
			if err := attempt(func() error { f.do(); return nil }); err == nil || !strings.Contains(err.Error(), f.want) {
				return fmt.Errorf("%s: %v, want %q", f.what, err, f.want)
			}
		}
	}
	if err := unix.Mprotect(page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return err
	}
	page[3<<12] = 5
	if page[3<<12] != 5 || page[2<<12] != 0 {
		return errors.New("a page that was made writable is not")
	}
	return nil
}

// checkSignals sends itself signals, and preempts a goroutine that never calls anything.
func checkSignals(map[string]string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	defer signal.Stop(c)
	for i := range 50 {
		if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
			return err
		}
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			return fmt.Errorf("signal %d did not come", i)
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var stop atomic.Bool
	done := make(chan uint64)
	go func() {
		n := uint64(0)
		for !stop.Load() {
			n++
		}
		done <- n
	}()
	runtime.Gosched()
	time.Sleep(30 * time.Millisecond) // the loop has the only P now
	stop.Store(true)
	<-done
	return nil
}

// checkProcesses starts programs and hears from them through pipes.
func checkProcesses(map[string]string) error {
	for i := range 6 {
		out, err := exec.Command("/proc/self/exe", fmt.Sprint("child", i)).Output()
		var exit *exec.ExitError
		switch {
		case i == 5: // it dies by a signal
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				return fmt.Errorf("a program that kills itself: %v", err)
			}
		case i > 0 && (!errors.As(err, &exit) || exit.ExitCode() != i), i == 0 && err != nil:
			return fmt.Errorf("a program that exits with %d: %v", i, err)
		case string(out) != fmt.Sprint("child", i, "\n"):
			return fmt.Errorf("a program printed %q", out)
		}
	}
	return nil
}

// child is a program that checkProcesses starts, or "compute".
func child(name string) {
	if name == "compute" {
		compute(os.Stdout)
		return
	}
	fmt.Println(name)
	if name == "child5" {
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	os.Exit(int(name[len(name)-1] - '0'))
}

// checkProgram32 runs a 32-bit program, if this kernel can.
func checkProgram32(map[string]string) error {
	out, err := exec.Command("/hello32").CombinedOutput()
	var exit *exec.ExitError
	if errors.Is(err, unix.ENOEXEC) {
		fmt.Println("check: this kernel runs no 32-bit programs")
		return nil
	}
	if !errors.As(err, &exit) || exit.ExitCode() != 32 || string(out) != "a 32-bit program writes\n" {
		return fmt.Errorf("%q, %v, want exit status 32", out, err)
	}
	return nil
}

// checkTime looks that time goes on evenly, that sleeping takes as long as asked for, and that the kernel counts by the TSC.
func checkTime(map[string]string) error {
	last := time.Now()
	for range 20000 {
		now := time.Now()
		if now.Before(last) {
			return fmt.Errorf("time went back by %v", last.Sub(now))
		}
		last = now
	}
	var real unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &real); err != nil {
		return err
	}
	fmt.Printf("check: the time is %d\n", real.Sec)
	for _, d := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond} {
		began := time.Now()
		time.Sleep(d)
		if took := time.Since(began); took < d || took > d+3*time.Second {
			return fmt.Errorf("sleeping %v took %v", d, took)
		}
	}
	p, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	// On KVM Linux prefers its clock where the host's TSC may stop or change its rate (kvmclock_init).
	if err == nil && string(p) != "tsc\n" && string(p) != "kvm-clock\n" {
		err = fmt.Errorf("the clock source is %q, want tsc or kvm-clock", p)
	}
	return err
}

// checkInitrd looks at a file that came behind the archive.
func checkInitrd(want map[string]string) error {
	p, err := os.ReadFile("/given")
	if err != nil {
		return err
	}
	if string(p) != want["given"]+"\n" {
		return fmt.Errorf("/given holds %q, want %q", p, want["given"])
	}
	return nil
}

// complaint matches lines of a kernel's log that a sound machine does not cause.
var complaint = regexp.MustCompile(`WARNING:|BUG:|Oops|Call Trace|soft lockup|hard LOCKUP|rcu.*(stall|starved)|unstable|TSC.*(warp|ADJUST)|unchecked MSR|` +
	`general protection|irq \d+: nobody cared|Unable to init|segfault|trap |firmware bug|\[Firmware Bug\]|ACPI (BIOS )?Error|not responding|hung_task|blocked for more`)

// expected matches the complaints that checkFaults causes.
var expected = regexp.MustCompile(`init\[\d+\]: segfault|traps: init\[`)

func checkLog(map[string]string) error {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return err
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	// Linux trusts the TSCs of several processors that are not Intel's only where they never change their rate (unsynchronized_tsc).
	varies := !bytes.Contains(cpuinfo, []byte("constant_tsc"))
	var bad []string
	for line := range strings.Lines(string(buf[:n])) {
		if varies && strings.Contains(line, "TSCs unsynchronized") {
			continue
		}
		if complaint.MatchString(line) && !expected.MatchString(line) {
			bad = append(bad, strings.TrimSpace(line))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("it has\n\t%s", strings.Join(bad, "\n\t"))
	}
	return nil
}
