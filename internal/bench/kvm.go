package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"vitrine.dev/vitrine/internal/hv/soft"
	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/nested"
)

// The outer guest's names for what is measured with.
const (
	payload      = "/payload"
	insideWord   = "inside-kvm" // the argument that makes this program the one that measures in there
	kvmtoolName  = "lkvm"
	exitsInitrd  = payload + "/exits.cpio"
	innerKernel  = payload + "/bzImage"
	innerVmlinux = payload + "/vmlinux"
	innerKvmtool = payload + "/" + kvmtoolName
)

// firmware is what QEMU reads beside the kernel, where it has it.
var firmware = []string{
	"/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios-microvm.bin", "/usr/share/qemu/bios-microvm.bin", "/usr/share/qemu/qboot.rom",
	"/usr/share/qemu/pvh.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/kvmvapic.bin",
}

// kvm measures under a real KVM, in a Linux that QEMU emulates: this program and those it measures run in there.
func (b *bench) kvm() error {
	k, err := kernel.FetchSuite(b.ctx, kernel.SuiteOptions{Suite: "bookworm"})
	if err != nil {
		return err
	}
	j := &nested.Job{Kernel: k, MiB: 3072, Dir: payload, Env: []string{"PATH=" + payload, "HOME=/tmp"}, Output: os.Stdout,
		Commands: [][]string{{payload + "/bench", insideWord, strconv.Itoa(b.runs)}}}
	if j.Init, err = nested.BuildInit(b.ctx); err != nil {
		return err
	}
	put := func(name string, mode os.FileMode, data []byte) {
		j.Files = append(j.Files, initramfs.File{Path: name, Mode: mode, Data: data})
	}
	for name, pkg := range map[string]string{"bench": "internal/bench", "vitrine": "cmd/vitrine"} {
		exe, err := nested.Build(b.ctx, "vitrine.dev/vitrine/"+pkg)
		if err != nil {
			return err
		}
		put(payload+"/"+name, 0o755, exe)
	}
	vmlinux, err := nested.Vmlinux(k.Path)
	if err != nil {
		return err
	}
	put(innerVmlinux, 0o644, vmlinux)
	exits, err := exitsArchive(b.ctx, k)
	if err != nil {
		return err
	}
	put(exitsInitrd, 0o644, exits)
	for _, f := range append([]string{b.qemu}, firmware...) {
		if err := addProgram(j, f); err != nil {
			return err
		}
	}
	given := map[string]string{k.Path: innerKernel}
	if tool, err := exec.LookPath(kvmtoolName); err == nil {
		given[tool] = innerKvmtool
	} else {
		fmt.Printf("kvmtool is left out: there is no %s (a static one) in $PATH.\n\n", kvmtoolName)
	}
	for from, to := range given {
		files, err := nested.Tree(from, to)
		if err != nil {
			return err
		}
		j.Files = append(j.Files, files...)
	}
	ctx, cancel := context.WithTimeout(b.ctx, time.Hour)
	defer cancel()
	status, err := j.Run(ctx)
	if err == nil && status != 0 {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

// addProgram gives the outer guest a file at its own place, and the libraries that it is linked with. What is not there is left out.
func addProgram(j *nested.Job, path string) error {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	all := []string{path}
	out, _ := exec.Command("ldd", path).Output() // fails where it is no program
	for _, m := range regexp.MustCompile(`(?m)(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		all = append(all, m[1])
	}
	for _, f := range all {
		files, err := nested.Tree(f, f)
		if err != nil {
			return err
		}
		j.Files = append(j.Files, files...)
	}
	return nil
}

// exitsArchive is the root of the guest that measures its exits.
func exitsArchive(ctx context.Context, k *kernel.Kernel) ([]byte, error) {
	exe, err := nested.Build(ctx, "vitrine.dev/vitrine/internal/bench/exitguest")
	if err != nil {
		return nil, err
	}
	modules, missing, err := k.Modules.Closure([]string{"virtio_pci", "virtio_rng"})
	if err != nil || len(missing) > 0 {
		return nil, fmt.Errorf("modules %v: %w", missing, err)
	}
	return initramfs.Pack(exe, modules, initramfs.File{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1})
}

// A monitor is a virtual machine monitor under measurement.
type monitor struct {
	name string
	args func(initrd, words string) []string
	bare bool // it has no PCI bus to measure exits on

	cpu, rss, port, mmio, notify *series
}

// insideKVM measures in the outer guest.
func insideKVM(ctx context.Context, runs int) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	b := &bench{ctx: ctx, dir: dir, runs: runs}
	first, err := b.bootFiles()
	if err != nil {
		return err
	}
	const words = "console=ttyS0 quiet panic=-1 nokaslr" // a vmlinux by PVH, as QEMU boots it, knows none
	exits := fmt.Sprintf("%s iomem=relaxed exitguest.khz=%d", words, soft.TSCHz()/1000)
	sides := insideMonitors()
	var all [5][]*series
	for _, s := range sides {
		for i, of := range []struct {
			to   **series
			unit string
		}{{&s.cpu, "CPU s"}, {&s.rss, "MiB"}, {&s.port, "µs"}, {&s.mmio, "µs"}, {&s.notify, "µs"}} {
			*of.to = &series{name: s.name, unit: of.unit}
			if i < 2 || !s.bare {
				all[i] = append(all[i], *of.to)
			}
		}
		if _, _, err := b.untilReady(s.args(first, words)); err != nil { // fills caches
			return err
		}
	}
	for range runs {
		for _, s := range sides {
			cpu, rss, err := b.untilReady(s.args(first, words))
			if err != nil {
				return err
			}
			s.cpu.add(cpu)
			s.rss.add(rss)
			if s.bare {
				continue
			}
			if err := s.exits(ctx, exits); err != nil {
				return err
			}
		}
	}
	for i, title := range []string{"start to the guest's first user instruction", "VmRSS without guest RAM then", "a byte to a port",
		"a device's register read", "a queue notified"} {
		fmt.Printf("%s:\n\n", title)
		table(all[i]...)
		fmt.Println()
	}
	return nil
}

// exits takes what a guest says that its exits cost.
func (s *monitor) exits(ctx context.Context, words string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	args := s.args(exitsInitrd, words)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	m := regexp.MustCompile(`EXITS port (\d+) mmio (\d+) notify (\d+)`).FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s: %v: %s", s.name, err, bytes.TrimSpace(out))
	}
	for i, to := range []*series{s.port, s.mmio, s.notify} {
		ns, _ := strconv.ParseFloat(string(m[i+1]), 64)
		to.add(ns / 1000)
	}
	return nil
}

// insideMonitors are the monitors that are there.
func insideMonitors() []*monitor {
	qemu := func(machine string, more ...string) func(initrd, words string) []string {
		return func(initrd, words string) []string {
			return append([]string{"/usr/bin/qemu-system-x86_64", "-M", machine, "-accel", "kvm", "-cpu", "host", "-m", "512", "-smp", "1", "-nodefaults",
				"-no-user-config", "-no-reboot", "-nographic", "-serial", "stdio", "-kernel", innerVmlinux, "-initrd", initrd, "-append", words}, more...)
		}
	}
	vitrine := func(initrd, words string) []string {
		return []string{payload + "/vitrine", "run", "-q", "--accel", "kvm", "--cpus", "1", "--memory", "512M", "--kernel", innerKernel,
			"--initrd", initrd, "--append", words}
	}
	all := []*monitor{
		{name: "vitrine", args: vitrine},
		// Without vapic, for which QEMU reads and writes back the task register: TCG does not take its type from KVM for one that has an I/O bitmap.
		{name: "QEMU -M pc", args: qemu("pc", "-device", "virtio-rng-pci,disable-legacy=on", "-global", "apic-common.vapic=off")},
		{name: "QEMU -M microvm", args: qemu("microvm", "-device", "virtio-rng-device"), bare: true},
	}
	if _, err := os.Stat(innerKvmtool); err == nil {
		all = append(all, &monitor{name: "kvmtool", bare: true, args: func(initrd, words string) []string {
			return []string{innerKvmtool, "run", "--cpus", "1", "--mem", "512", "--network", "mode=none", "--console", "serial", "--kernel", innerKernel,
				"--initrd", initrd, "--params", words}
		}})
	}
	return all
}
