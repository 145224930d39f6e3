// Netguest is the first program of the guests whose network is measured. It does as the host says over a TCP connection, with plain blocking
// system calls, so that what is measured is the kernel's way to the card and not a runtime's.
//
// Each line of the host is a measurement's name, a port of the host's, and how many milliseconds; the answer is a line with a count.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// host is where both QEMU's user networking and ours have the host.
var host = [4]byte{10, 0, 2, 2}

func main() {
	runtime.GOMAXPROCS(2 * parallel) // see raw_unsafe.go
	debug.SetGCPercent(-1)
	if err := run(); err != nil {
		fmt.Println("netguest:", err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// parallel is how many connections connections16 makes at once.
const parallel = 16

func run() error {
	if err := loadModules(); err != nil {
		return err
	}
	if err := up(); err != nil {
		return err
	}
	// What the kernel's command line has and the kernel does not know is the environment.
	port, err := strconv.Atoi(os.Getenv("control"))
	if err != nil {
		return fmt.Errorf("no port to connect to: %w", err)
	}
	fd, err := connect(port, unix.SOCK_STREAM)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	c := os.NewFile(fd, "control")
	lines := bufio.NewScanner(c)
	fmt.Fprintln(c, "ready")
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 3 {
			return fmt.Errorf("the host says %q", lines.Text())
		}
		port, _ := strconv.Atoi(f[1])
		amount, _ := strconv.Atoi(f[2])
		do := measurements[f[0]]
		if do == nil {
			return fmt.Errorf("the host says %q", lines.Text())
		}
		n, err := do(port, amount)
		if err != nil {
			fmt.Fprintln(c, "error", f[0], err)
			continue
		}
		fmt.Fprintln(c, n)
	}
	return lines.Err()
}

// loadModules loads what /modules.list names, in its order.
func loadModules() error {
	list, err := os.ReadFile("/modules.list")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		b, err := os.ReadFile("/" + name)
		if err != nil {
			return err
		}
		if err := unix.InitModule(b, ""); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// up gives the card its address.
func up() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	for _, s := range []struct {
		request uint
		addr    []byte
	}{{unix.SIOCSIFADDR, []byte{10, 0, 2, 15}}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
		if err := r.SetInet4Addr(s.addr); err != nil {
			return err
		}
		// The card is found by another thread of the kernel's.
		for range 500 {
			if err = unix.IoctlIfreq(fd, s.request, r); !errors.Is(err, unix.ENODEV) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("eth0: %w", err)
		}
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

var measurements = map[string]func(port, amount int) (int, error){
	"out": out, "in": in, "connect": connections, "connect16": connections16, "udp": datagrams,
}

// block is how much a program sends and takes at once.
const block = 128 << 10

// out sends for so many milliseconds and gives the bytes.
func out(port, ms int) (total int, err error) {
	fd, err := connect(port, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	defer end(fd)
	b := make([]byte, block)
	for stop := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(stop); {
		n, err := write(fd, b)
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

// in takes until the host's end and gives the bytes.
func in(port, _ int) (total int, err error) {
	fd, err := connect(port, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	defer end(fd)
	b := make([]byte, block)
	for {
		n, err := read(fd, b)
		if err != nil || n == 0 {
			return total, err
		}
		total += n
	}
}

// connections makes connections one after the other for so many milliseconds, says a byte on each, hears one and the end, and gives
// their number.
func connections(port, ms int) (total int, err error) {
	b := make([]byte, 16)
	for stop := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(stop); total++ {
		fd, err := connect(port, unix.SOCK_STREAM)
		if err != nil {
			return total, err
		}
		_, err = write(fd, b[:1])
		for n := 1; err == nil && n > 0; {
			n, err = read(fd, b)
		}
		end(fd)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// connections16 is connections, 16 at once.
func connections16(port, ms int) (int, error) {
	var all atomic.Int64
	var failed atomic.Value
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			n, err := connections(port, ms)
			all.Add(int64(n))
			if err != nil {
				failed.Store(err)
			}
		})
	}
	wg.Wait()
	err, _ := failed.Load().(error)
	return int(all.Load()), err
}

// datagrams keeps 16 datagrams under way to the host, which sends each back, for so many milliseconds, and gives how many came back.
func datagrams(port, ms int) (total int, err error) {
	fd, err := connect(port, unix.SOCK_DGRAM)
	if err != nil {
		return 0, err
	}
	defer end(fd)
	// After a loss all of them begin anew.
	if err := unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		return 0, err
	}
	b := make([]byte, 1400)
	send := 16
	for stop := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(stop); {
		for ; send > 0; send-- {
			if _, err := write(fd, b); err != nil {
				return total, err
			}
		}
		switch _, err := read(fd, b); {
		case err == nil:
			total++
			send = 1
		case errors.Is(err, unix.EAGAIN):
			send = 16
		default:
			return total, err
		}
	}
	return total, nil
}
