// Package vitrine runs Linux virtual machines that one can see into.
//
// [Start] is where everything is put together: memory, what runs the processors, the board, its devices, the kernel, the registry of guests,
// and the socket by which tools look in.
package vitrine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/agent"
	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/machine/boot"
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/balloon"
	"vitrine.dev/vitrine/internal/machine/virtio/blk"
	"vitrine.dev/vitrine/internal/machine/virtio/rng"
	"vitrine.dev/vitrine/internal/transfer"
	"vitrine.dev/vitrine/internal/x86"
)

// GuestMain is what main calls first in a program that starts guests, or is their first process (see Config.Init). It returns at once, except in a guest
// and in the processes that serve one on the host, where it never does.
func GuestMain() {
	helper.Run(helpers)
	agent.Main()
	transfer.Main(os.Args)
}

// Start starts a guest and returns when it runs; Machine.Wait waits for its end. When ctx is done, the guest is ended at once.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	if err := cfg.check(runtime.NumCPU()); err != nil {
		return nil, err
	}
	accel, line, err := chooseBackend(cfg.Accel, openKVM)
	if err != nil {
		return nil, err
	}
	if err := setModel(accel, cfg.CPU); err != nil {
		return nil, err
	}
	cfg.Log(line)
	m := &Machine{cfg: cfg, began: time.Now(),
		up: make(chan struct{}), ended: make(chan struct{}), over: make(chan struct{}), done: make(chan struct{})}
	if err := m.start(ctx, accel); err != nil {
		m.clear()
		return nil, err
	}
	return m, nil
}

// start finds what is to be booted and sets it going.
func (m *Machine) start(ctx context.Context, accel backend) error {
	cfg := &m.cfg
	if err := m.openNetwork(); err != nil {
		return err
	}
	k, err := kernel.Find(ctx, kernel.Options{Path: cfg.KernelPath, ModulesDir: cfg.ModulesDir, Progress: cfg.Log})
	if err != nil {
		return err
	}
	image, err := boot.Open("kernel", k.Path)
	if err != nil {
		return err
	}
	defer image.Close()
	m.kernelPath = k.Path
	m.exactly = cfg.Initrd != "" || !isLinux(image)
	if m.exactly && len(cfg.Command) > 0 {
		return errors.New("a command runs only in a guest that Vitrine sets up: leave --initrd out, or give a Linux kernel")
	}
	if k.Release != "" {
		cfg.Log(fmt.Sprintf("kernel %s (%s)", k.Release, k.Source))
	}
	return m.build(ctx, accel, k, image)
}

// build puts the machine together and sets it going.
func (m *Machine) build(ctx context.Context, accel backend, k *kernel.Kernel, image *boot.Image) error {
	cfg := &m.cfg
	var err error
	if m.ram, err = newMemory(cfg); err != nil {
		return err
	}
	if words := m.pageWords(); words != "" && accel.Name() == KVM {
		cfg.Log(words)
	}
	if m.entry, err = host.Register(host.State{
		Name: cfg.Name, VMM: "vitrine", PID: os.Getpid(), Accelerator: accel.Name(), CPUs: cfg.CPUs, MemoryBytes: cfg.Memory,
		Kernel: k.Release, State: "starting", Started: m.began.UTC().Truncate(time.Second),
	}); err != nil {
		return err
	}
	if err := m.keep(); err != nil {
		return err
	}
	if err := m.openLogs(); err != nil {
		return err
	}
	m.keys = newKeyboard(nil)
	if m.exactly {
		m.console.next, m.keys = cfg.Stdout, newKeyboard(cfg.Stdin)
	}
	serial := machine.Serial{In: m.keys.r, Out: &m.console}
	if m.board, err = machine.New(machine.Config{
		RAM: m.ram, CPUs: cfg.CPUs, Backend: accel, TSCHz: accel.TSCHz(),
		Serial: [2]machine.Serial{serial}, DebugExit: cfg.DebugExit,
	}); err != nil {
		return err
	}
	if err := m.attach(); err != nil {
		return err
	}
	first, err := m.load(k, image)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	l, err := m.entry.Listen()
	if err != nil {
		return err
	}
	if err := m.helpersReady(); err != nil {
		l.Close()
		return err
	}
	m.api = control.Serve(l, m) // before this process may become another user: it answers its owner
	if err := m.confine(); err != nil {
		return err
	}
	if m.exactly {
		m.setState("running")
		close(m.up)
	}
	m.startCPU = cpuTime()
	go m.runBoard(ctx, first)
	go m.supervise()
	return nil
}

// openLogs makes the guest's logs in its directory.
func (m *Machine) openLogs() error {
	names := []string{host.ConsoleLog}
	if m.cfg.LogOutput && !m.exactly {
		names = append(names, host.OutputLog)
	}
	for _, name := range names {
		l, err := m.entry.OpenLog(name)
		if err != nil {
			return err
		}
		m.logs = append(m.logs, l)
	}
	m.console.log = m.logs[0]
	if m.cfg.LogOutput {
		m.cfg.Stdout, m.cfg.Stderr = nil, nil
		if !m.exactly {
			m.cfg.Stdout, m.cfg.Stderr = m.logs[1], m.logs[1]
		}
	}
	return nil
}

// attach plugs the devices in.
func (m *Machine) attach() error {
	plug := func(d virtio.Device) error { return m.board.Attach(virtio.NewPCI(d, m.ram, m.board.MSI())) }
	m.balloon = balloon.New()
	if err := errors.Join(plug(rng.New()), plug(m.balloon)); err != nil {
		return err
	}
	for i, d := range m.cfg.Disks {
		raw, err := blk.OpenRaw(d.Path, d.ReadOnly)
		if err != nil {
			return err
		}
		if err := plug(blk.New(raw, m.cfg.CPUs, fmt.Sprintf("vitrine-%d", i))); err != nil {
			return err
		}
	}
	if err := m.attachNetwork(plug); err != nil {
		return err
	}
	if m.exactly {
		return nil
	}
	return m.attachAgent(plug)
}

// agentLine begins the command line of a guest that we set up. Only what is serious reaches the console, whose last lines are shown when the boot
// fails; a panic ends the machine at once instead of waiting for somebody to read it. no_timer_check: the timer is connected; Linux's test of that
// (timer_irq_works) takes a host that is busy for 40 ms for a board without one, which is why it skips it under every hypervisor it knows.
// cryptomgr.notests: Debian's 5.10 and 6.1 test every cipher's code at boot, 2 of 6 CPU seconds.
const agentLine = "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests"

// load puts the kernel into memory, with our agent where it is wanted, and gives the first processor's state.
func (m *Machine) load(k *kernel.Kernel, image *boot.Image) (*x86.State, error) {
	c := boot.Config{Kernel: image, CommandLine: m.cfg.Append, RSDP: m.board.RSDP(), Log: m.cfg.Log, FiveLevels: wantsFiveLevels(m.cfg.CPU)}
	c.CacheDir, _ = kernel.DefaultCacheDir() // without one, nothing is cached
	if m.exactly {
		initrd, err := boot.OpenInitrd(m.cfg.Initrd)
		if err != nil {
			return nil, err
		}
		for _, im := range initrd {
			defer im.Close()
		}
		c.Initrd = initrd
	} else {
		archive, err := m.initramfs(k)
		if err != nil {
			return nil, err
		}
		c.Initrd = []*boot.Image{boot.Bytes("our initramfs", archive)}
		c.CommandLine = strings.TrimSpace(agentLine + " " + m.cfg.Append)
	}
	m.commandLine = c.CommandLine
	first, _, err := boot.Load(m.ram, c)
	return first, err
}

// wanted are drivers that a guest of ours does without, if it must.
var wanted = []string{"virtio_rng", "virtio_balloon", "virtio_blk", "virtio_net"}

// initramfs packs our agent and the modules that it needs.
func (m *Machine) initramfs(k *kernel.Kernel) ([]byte, error) {
	drivers := slices.Clone(kernel.Required)
	needless := map[string]bool{"virtio_blk": len(m.cfg.Disks) == 0, "virtio_net": m.net == nil}
	for _, name := range wanted {
		if k.Modules.Has(name) && !needless[name] {
			drivers = append(drivers, name)
		}
	}
	var modules []initramfs.Module
	m.blind = !k.Modules.Known()
	if !m.blind { // else all may be built in; the guest will say what is not
		var missing []string
		var err error
		if modules, missing, err = k.Modules.Closure(drivers); err != nil {
			return nil, err
		}
		if len(missing) > 0 {
			return nil, fmt.Errorf("kernel %s has no driver %s, neither built in nor as a module: give the tree of its modules by --modules",
				k.Path, strings.Join(missing, ", "))
		}
	}
	program, libraries, err := initProgram(m.cfg.Init)
	if err != nil {
		return nil, err
	}
	return initramfs.Pack(program, modules, libraries...)
}

func (m *Machine) runBoard(ctx context.Context, first *x86.State) {
	m.exit, m.err = m.board.Run(ctx, first)
	m.crash = m.board.Failure()
	close(m.ended)
}

// isLinux tells whether a kernel is one that our agent can be added to. What is no kernel at all passes for one: the loader says what is wrong.
func isLinux(image *boot.Image) bool {
	head := make([]byte, 8192)
	n, _ := image.ReadAt(head, 0)
	if string(head[0x202:0x206]) == "HdrS" {
		return true
	}
	if string(head[:4]) != "\x7fELF" {
		// Multiboot 0.6.96, 3.1: the magic is in the first 8192 bytes, aligned to 4.
		for i := 0; i+4 <= n; i += 4 {
			if binary.LittleEndian.Uint32(head[i:]) == 0x1BADB002 {
				return false
			}
		}
		return true
	}
	// init/version-timestamp.c: linux_banner; every vmlinux has it in its read-only data.
	banner := []byte("Linux version ")
	r := bufio.NewReaderSize(io.NewSectionReader(image, 0, image.Size), 1<<20)
	for {
		p, err := r.Peek(1 << 20)
		if bytes.Contains(p, banner) {
			return true
		}
		if err != nil || len(p) <= len(banner) {
			return false
		}
		r.Discard(len(p) - len(banner) + 1)
	}
}
