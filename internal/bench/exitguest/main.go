// Exitguest is the first process of a guest that measures what it costs to leave it: a byte to a port, a register of a device read, a queue notified.
// It says so on its console, in nanoseconds, and powers the machine off.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/initramfs"
)

// out writes a byte to a port; the thread needs the kernel's leave.
func out(port uint16, v uint8)

// rdtsc reads the time stamp counter.
func rdtsc() uint64

func main() {
	if err := measure(); err != nil {
		fmt.Println("exitguest:", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// port is the one that firmware writes its progress to: nothing listens, but a monitor has it.
const port = 0x80

// batch is how many exits are timed together; the median of batches is told.
const (
	batch   = 100
	batches = 41
)

func measure() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}} {
		os.MkdirAll(m.at, 0o755)
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := load(); err != nil {
		return err
	}
	khz, err := word("exitguest.khz=")
	if err != nil {
		return err
	}
	dev, err := find()
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if _, _, e := unix.Syscall(unix.SYS_IOPERM, port, 1, 1); e != 0 {
		return fmt.Errorf("ioperm: %w", e)
	}
	kinds := []struct {
		name  string
		do    func()
		ticks []uint64
	}{
		{name: "port", do: func() { out(port, 0) }},
		{name: "mmio", do: func() { dev.status() }},
		{name: "notify", do: func() { dev.notify() }},
		{name: "nothing", do: func() {}},
	}
	for range batches {
		for i := range kinds {
			k := &kinds[i]
			began := rdtsc()
			for range batch {
				k.do()
			}
			k.ticks = append(k.ticks, rdtsc()-began)
		}
	}
	fmt.Print("EXITS")
	for _, k := range kinds {
		slices.Sort(k.ticks)
		fmt.Printf(" %s %.0f", k.name, float64(k.ticks[batches/2])*1e6/float64(khz)/batch)
	}
	fmt.Println()
	return nil
}

// word is a number on the kernel's command line.
func word(key string) (uint64, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	for _, w := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(w, key); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s on the command line", key)
}

// load loads the modules that the archive lists.
func load() error {
	list, err := os.ReadFile(initramfs.ModuleList)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// find maps the virtio entropy device, which its driver has set up.
func find() (*device, error) {
	all, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		return nil, err
	}
	for _, dir := range all {
		id := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return strings.TrimSpace(string(b))
		}
		if id("vendor") == "0x1af4" && id("device") == "0x1044" {
			return open(dir)
		}
	}
	return nil, fmt.Errorf("no virtio entropy device among %d devices", len(all))
}
