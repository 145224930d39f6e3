package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/initramfs"
)

// netPhase is how long each measurement of the network lasts.
const netPhase = 3 * time.Second

// netTests are what the guest is told to do, and what the host does meanwhile.
var netTests = []struct {
	name, about, unit string
	per               float64 // of what is counted in a unit
	host              func(net.Listener) error
}{
	{"out", "TCP out of the guest", "MB/s", 1e6, hostTakes},
	{"in", "TCP into the guest", "MB/s", 1e6, hostGives},
	{"connect", "connections, one by one", "/s", 1, hostAnswers},
	{"connect16", "connections, 16 at once", "/s", 1, hostAnswers},
	{"udp", "datagrams of 1400 bytes there and back, 16 at once", "/s", 1, nil},
}

// network measures the network beside QEMU's slirp: the same kernel and initramfs, one guest of each side at a time, interleaved. Each is
// counted by the host's clock and by the CPU time of the VM's process.
func (b *bench) network() error {
	initrd, err := b.netFiles()
	if err != nil {
		return err
	}
	fmt.Printf("Kernel %s, 512 MiB, %d runs of each, interleaved, %v a measurement. The host's end is this program, whose CPU time is not counted.\n\n",
		b.kernel.Release, b.runs, netPhase)
	for _, cpus := range []int{1, 2} {
		us, them := newNetSeries("vitrine"), newNetSeries("QEMU, slirp")
		for range b.runs {
			if err := b.netRun(us, b.netOurs(initrd, cpus)); err != nil {
				return fmt.Errorf("vitrine, %d CPUs: %w", cpus, err)
			}
			if err := b.netRun(them, b.netQEMU(initrd, cpus)); err != nil {
				return fmt.Errorf("QEMU, %d CPUs: %w", cpus, err)
			}
		}
		fmt.Printf("### %d CPUs\n\n| | vitrine | slirp | ratio | vitrine, a CPU second | slirp, a CPU second | ratio |\n|---|---|---|---|---|---|---|\n", cpus)
		for i, t := range netTests {
			u, s := us[i], them[i]
			fmt.Printf("| %s | %s | %s | %.2f | %s | %s | %.2f |\n", t.about, u.wall.spread(), s.wall.spread(), u.wall.median()/s.wall.median(),
				u.cpu.spread(), s.cpu.spread(), u.cpu.median()/s.cpu.median())
		}
		fmt.Println()
	}
	return nil
}

// netAppend is the kernel's command line. The runtime of the guest's program would take what waits in the kernel for a loop and interrupt it.
const netAppend = "console=ttyS0 quiet panic=-1 no_timer_check GODEBUG=asyncpreemptoff=1 control="

func (b *bench) netOurs(initrd string, cpus int) []string {
	return []string{b.vitrine, "run", "-q", "--accel", "soft", "--cpus", strconv.Itoa(cpus), "--memory", "512M", "--net", "user",
		"--kernel", b.kernel.Path, "--initrd", initrd, "--append", netAppend}
}

func (b *bench) netQEMU(initrd string, cpus int) []string {
	return []string{b.qemu, "-accel", "tcg", "-cpu", "max", "-smp", strconv.Itoa(cpus), "-m", "512", "-nographic", "-no-reboot", "-nodefaults",
		"-serial", "stdio", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
		"-kernel", b.kernel.Path, "-initrd", initrd, "-append", netAppend}
}

// netSeries holds for each of netTests what was done in a second of the clock, and in a second of CPU time.
type netSeries []struct{ wall, cpu *series }

func newNetSeries(name string) netSeries {
	s := make(netSeries, len(netTests))
	for i, t := range netTests {
		s[i].wall, s[i].cpu = &series{name: name, unit: t.unit}, &series{name: name, unit: t.unit}
	}
	return s
}

// spread is the median with the smallest and the largest value.
func (s *series) spread() string {
	low, high := s.values[0], s.values[0]
	for _, v := range s.values {
		low, high = min(low, v), max(high, v)
	}
	return fmt.Sprintf("%.3g %s (%.3g–%.3g)", s.median(), s.unit, low, high)
}

// netFiles writes an initramfs of the guest's program and the modules it needs.
func (b *bench) netFiles() (string, error) {
	guest := filepath.Join(b.dir, "netguest")
	build := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", guest, "./internal/bench/netguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	program, err := os.ReadFile(guest)
	if err != nil {
		return "", err
	}
	modules, missing, err := b.kernel.Modules.Closure([]string{"virtio_pci", "virtio_net"})
	if err != nil || len(missing) > 0 {
		return "", fmt.Errorf("modules %v: %w", missing, err)
	}
	files := []initramfs.File{
		{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Path: "init", Mode: 0o755, Data: program},
	}
	var list []string
	for _, m := range modules {
		list = append(list, m.Name+".ko")
		files = append(files, initramfs.File{Path: m.Name + ".ko", Mode: 0o644, Data: m.Data})
	}
	files = append(files, initramfs.File{Path: "modules.list", Mode: 0o644, Data: []byte(strings.Join(list, "\n"))})
	var out bytes.Buffer
	w := initramfs.NewWriter(&out)
	for _, f := range files {
		if err := w.Add(f); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	p := filepath.Join(b.dir, "net.cpio")
	return p, os.WriteFile(p, out.Bytes(), 0o600)
}

// netRun runs one guest through all measurements. Its command ends with the beginning of the kernel's command line's last word, the port.
func (b *bench) netRun(s netSeries, args []string) error {
	control, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer control.Close()
	args[len(args)-1] += strconv.Itoa(control.Addr().(*net.TCPAddr).Port)
	ctx, cancel := context.WithTimeout(b.ctx, 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); control.Close(); close(ended) }() // a guest that never calls ends the wait for it
	defer func() { cmd.Process.Kill(); <-ended }()
	c, err := control.Accept()
	if err != nil {
		return fmt.Errorf("the guest did not call: %s", &said)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	lines := bufio.NewScanner(c)
	if !lines.Scan() {
		return fmt.Errorf("the guest ended: %s", &said)
	}
	for i, t := range netTests {
		port, end, err := serve(t.host)
		if err != nil {
			return err
		}
		cpu, _, err := usage(cmd.Process.Pid)
		if err != nil {
			return err
		}
		start := time.Now()
		fmt.Fprintf(c, "%s %d %d\n", t.name, port, netPhase.Milliseconds())
		ok := lines.Scan()
		took := time.Since(start).Seconds()
		after, _, err := usage(cmd.Process.Pid)
		end()
		n, bad := strconv.ParseFloat(lines.Text(), 64)
		if !ok || bad != nil || err != nil {
			return fmt.Errorf("%s: the guest said %q; %s", t.name, lines.Text(), &said)
		}
		s[i].wall.add(n / t.per / took)
		s[i].cpu.add(n / t.per / (after - cpu))
	}
	return nil
}

// serve opens a port for a measurement: TCP for host, or, without one, UDP that sends everything back.
func serve(host func(net.Listener) error) (port int, end func(), err error) {
	if host == nil {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return 0, nil, err
		}
		go func() {
			p := make([]byte, 1<<16)
			for {
				n, from, err := c.ReadFromUDPAddrPort(p)
				if err != nil {
					return
				}
				c.WriteToUDPAddrPort(p[:n], from)
			}
		}()
		return c.LocalAddr().(*net.UDPAddr).Port, func() { c.Close() }, nil
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	go host(l)
	return l.Addr().(*net.TCPAddr).Port, func() { l.Close() }, nil
}

// hostTakes reads all of each connection.
func hostTakes(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		c.Close()
	}
}

// hostGives sends for a measurement's time on each connection.
func hostGives(l net.Listener) error {
	p := make([]byte, 256<<10)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		for end := time.Now().Add(netPhase); time.Now().Before(end); {
			if _, err := c.Write(p); err != nil {
				break
			}
		}
		c.Close()
	}
}

// hostAnswers answers a byte with a byte and ends, on each connection.
func hostAnswers(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			var p [1]byte
			if _, err := io.ReadFull(c, p[:]); err == nil {
				c.Write(p[:])
			}
			c.Close()
		}()
	}
}
