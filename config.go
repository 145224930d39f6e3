package vitrine

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86/model"
)

// Config says what to run. Its zero value, with a Command, runs the command in a guest of two processors whose root is the host's.
type Config struct {
	// Name is the guest's, and its host name; empty: one is made up.
	Name string
	// CPUs is how many processors the guest has, 1 to MaxCPUs; 0: 2, or 1 on a host of one.
	CPUs int
	// Memory is the guest's RAM in bytes, a multiple of 1 MiB; 0: DefaultMemory.
	Memory uint64
	// HugePages takes the memory from the host's pool of huge pages, all of it at once. Without it, pages are huge where the host lets shared memory
	// have such (transparent huge pages).
	HugePages bool
	// Accel is what runs the processors: Auto, KVM or Soft; empty: Auto.
	Accel string
	// CPU is which processor the guest sees: "max", "x86-64-v3" or "x86-64-v2", and after commas flags to add and take away, named as in
	// /proc/cpuinfo: "x86-64-v3,+aes,-fma". A flag that Accel cannot give is an error. Empty: max, all that it can. A Linux kernel runs on 4-level page tables
	// unless +la57 asks for 5.
	CPU string

	// KernelPath is a bzImage, a vmlinux ELF or a multiboot image; empty: one is found or fetched.
	KernelPath string
	// Initrd is the initial RAM disk, a comma-separated list of files. With one, or with a kernel that is not Linux, exactly that is
	// booted: the first serial port is Stdin and Stdout, Command must be empty, and the status is 0 when the guest powers off or
	// reboots, or what it writes to the debug-exit port.
	Initrd string
	// Append is added to the kernel's command line; it is all of it where exactly an image is booted.
	Append string
	// ModulesDir is the tree of modules that belongs to KernelPath: it has lib/modules/RELEASE, or is that directory; empty: looked for.
	ModulesDir string

	// Command is what runs in the guest; empty: a shell.
	Command []string
	// Idle runs neither: the guest is up for Machine.Exec until it is stopped.
	Idle bool
	// Dir is the command's working directory, shared with the guest read-only; empty: the root.
	Dir string
	// Env is the command's environment.
	Env []string
	// Root is which of the host's files the guest sees as its root: RootHost or RootHostAll; empty: RootHost.
	Root string
	// Volumes are further directories that the guest sees.
	Volumes []Volume
	// Disks are raw images, the guest's /dev/vda and on.
	Disks []Disk
	// Net is the guest's network: NetUser or NetNone; empty: NetUser.
	Net string
	// Ports are ports of the host behind which the guest listens.
	Ports []Port

	// Stdin, Stdout and Stderr are the command's, or the serial port's; nil: nothing. A Read of Stdin may outlive the machine.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Terminal gives the command a terminal of Rows by Cols in the guest; what it prints goes to Stdout.
	Terminal   bool
	Rows, Cols int

	// Keep leaves the guest in the registry when it has ended, with its status and logs, until it is removed.
	Keep bool
	// LogOutput writes what the command, or the serial port, writes to a log in the guest's directory instead of Stdout and Stderr.
	LogOutput bool

	// DebugExit adds the isa-debug-exit port 0xF4.
	DebugExit bool
	// BootTimeout ends a guest that is not ready for its command by then, or, where exactly an image is booted, has not ended;
	// 0: DefaultBootTimeout, or none where exactly an image is booted.
	BootTimeout time.Duration
	// Log gets lines for people: which accelerator, which kernel, progress. May be nil.
	Log func(line string)
	// Init is the program that becomes the guest's first process, and on the host the processes that serve its files and network: its main calls
	// GuestMain; empty: this one.
	Init string
	// Confine takes from the calling process, for good and before the guest runs, all rights that a running guest does not need: it cannot open a
	// file or start a program any more, its working directory is /, and started by root it is another user without capabilities. For
	// programs that do nothing but this.
	Confine bool
}

// A Volume is a directory of the host at its own path in the guest.
type Volume struct {
	Path     string
	Writable bool
}

// A Disk is a raw image.
type Disk struct {
	Path     string
	ReadOnly bool
}

// Values of Config.Accel.
const (
	Auto = "auto" // KVM where it serves, else the CPU engine
	KVM  = "kvm"
	Soft = "soft" // our own CPU engine
)

// Values of Config.Root.
const (
	RootHost    = "host"     // what nobody on the host could read
	RootHostAll = "host-all" // all that the caller can read
)

// Limits and defaults.
const (
	MaxCPUs            = 64
	MinMemory          = 2 << 20
	MaxMemory          = 1 << 40
	DefaultMemory      = 1 << 30
	DefaultBootTimeout = 5 * time.Minute
)

// check fills in defaults and says what is wrong.
func (c *Config) check(hostCPUs int) error {
	if c.CPUs == 0 {
		c.CPUs = min(2, hostCPUs)
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.Accel == "" {
		c.Accel = Auto
	}
	if c.CPU == "" {
		c.CPU = model.Max
	}
	if c.Root == "" {
		c.Root = RootHost
	}
	if c.Log == nil {
		c.Log = func(string) {}
	}
	switch {
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return fmt.Errorf("--cpus %d: give 1 to %d", c.CPUs, MaxCPUs)
	case c.Memory < MinMemory || c.Memory > MaxMemory:
		return fmt.Errorf("--memory %s: give 2M to 1T", FormatSize(c.Memory))
	case c.Memory%(1<<20) != 0:
		return fmt.Errorf("--memory %d: give a multiple of 1M", c.Memory)
	case c.HugePages && c.Memory%mem.HugeSize != 0:
		return fmt.Errorf("--memory %s: with --hugepages give a multiple of 2M", FormatSize(c.Memory))
	case c.Accel != Auto && c.Accel != KVM && c.Accel != Soft:
		return fmt.Errorf("--accel %q: give auto, kvm or soft", c.Accel)
	case c.Root != RootHost && c.Root != RootHostAll:
		return fmt.Errorf("--root %q: give host or host-all", c.Root)
	case c.BootTimeout < 0:
		return fmt.Errorf("--boot-timeout %v: give a time above 0", c.BootTimeout)
	case c.Idle && len(c.Command) > 0:
		return fmt.Errorf("a guest that idles has no command")
	case c.Dir != "" && !filepath.IsAbs(c.Dir):
		return fmt.Errorf("--workdir %s: give an absolute path", c.Dir)
	case strings.ContainsRune(c.Append, 0):
		return fmt.Errorf("--append: it has a zero byte")
	}
	c.Disks = slices.Clone(c.Disks)
	for i, d := range c.Disks {
		var err error
		if c.Disks[i].Path, err = filepath.Abs(d.Path); err != nil {
			return fmt.Errorf("--disk %s: %w", d.Path, err)
		}
	}
	for _, v := range c.Volumes {
		if !filepath.IsAbs(v.Path) {
			return fmt.Errorf("--volume %s: give an absolute path", v.Path)
		}
	}
	if err := c.checkNet(); err != nil {
		return err
	}
	if c.Name != "" {
		return host.CheckName(c.Name)
	}
	return nil
}

// units of sizes, from small to large.
var units = []struct {
	suffix string
	shift  uint
}{{"K", 10}, {"M", 20}, {"G", 30}, {"T", 40}}

// FormatSize writes a number of bytes as ParseSize reads it.
func FormatSize(n uint64) string {
	for i := len(units) - 1; i >= 0; i-- {
		if u := units[i]; n != 0 && n%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d%s", n>>u.shift, u.suffix)
		}
	}
	return fmt.Sprint(n)
}

// ParseSize reads a size: a whole number, and K, M, G or T for powers of 1024, with or without "iB" or "B" behind. A number without a
// unit is MiB, as with QEMU's -m.
func ParseSize(s string) (uint64, error) {
	digits := strings.TrimRight(s, "kKmMgGtTiIbB")
	suffix := strings.ToUpper(s[len(digits):])
	shift := uint(20)
	known := suffix == ""
	for _, u := range units {
		if suffix == u.suffix || suffix == u.suffix+"B" || suffix == u.suffix+"IB" {
			shift, known = u.shift, true
		}
	}
	var n uint64
	for _, d := range digits {
		if d < '0' || d > '9' || n > 1<<40 {
			known = false
			break
		}
		n = n*10 + uint64(d-'0')
	}
	if !known || digits == "" || n > (1<<62)>>shift {
		return 0, fmt.Errorf("%q is not a size: give a number and M or G, like 512M", s)
	}
	return n << shift, nil
}
