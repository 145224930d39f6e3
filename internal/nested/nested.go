// Package nested runs a command under a real KVM on a machine without one: QEMU's TCG emulates AMD's SVM with nested paging, so a
// Linux that it boots has a working kvm_amd.
//
// Time means little in there. An exit from the inner guest takes some tens of microseconds; integer code runs at about a quarter of the host's speed.
package nested

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/hv/soft"
	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/kernel/decompress"
)

// QEMU is the program that is run.
const QEMU = "qemu-system-x86_64"

// A Job is commands to run in the outer guest.
type Job struct {
	Kernel  *kernel.Kernel   // the outer guest's, with modules: a Debian 6.1 is known to be good
	Drivers []string         // beside kvm_amd
	Init    []byte           // the program in init, built
	Files   []initramfs.File // what the outer guest's root has, beside /dev, /proc, /sys, /tmp, /run
	// Commands are run in Dir with Env, in this order, until one fails. The first word of each is a path.
	Commands [][]string
	Dir      string
	Env      []string
	MiB      int       // the outer guest's memory
	CPUs     int       // 0 is 1
	CPU      string    // QEMU's -cpu; empty: DefaultCPU
	Output   io.Writer // what the command writes; standard output and error are one
}

// DefaultCPU is all that TCG can do, but for the fifth level of page tables, which only costs time, and XSAVE: TCG does not
// intercept XSETBV, so KVM does not learn the guest's XCR0, enters it with another one, and the guest loses registers.
const DefaultCPU = WithXSAVE + ",-xsave"

// WithXSAVE is for tests of XSAVE that do not depend on the guest's own XCR0.
const WithXSAVE = "max,-la57"

// words are the outer kernel's command line: all that is no use here is left out. The rate of the TSC, which is the host's in TCG, is told:
// on a busy host Linux measures a fraction of it. Its timer ticks always, and is not set anew for each event: an event that is lost while an inner
// guest runs, as was seen about once in ten minutes, would be the last.
const words = "nohz=off highres=off console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no5lvl nowatchdog noresume edd=off audit=0 apparmor=0 " +
	"cryptomgr.notests panic=-1 tsc_early_khz="

// Names of what the program in init finds: commands, a line each, words parted by NUL; environment, a line each; a directory.
const (
	CommandFile = "/nested/commands"
	EnvFile     = "/nested/env"
	DirFile     = "/nested/dir"
)

// Run boots the outer guest and gives the last command's status. An error means that there is none; it ends with the outer kernel's last words.
func (j *Job) Run(ctx context.Context) (status int, err error) {
	dir, err := os.MkdirTemp("", "nested")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := j.write(at("vmlinux"), at("initrd")); err != nil {
		return 0, fmt.Errorf("nested: %w", err)
	}
	cpu := j.CPU
	if cpu == "" {
		cpu = DefaultCPU
	}
	accel := "tcg,tb-size=512"
	if j.CPUs > 1 {
		accel += ",thread=multi"
	}
	q := exec.CommandContext(ctx, QEMU, "-accel", accel, "-machine", "pc,usb=off,vmport=off", "-cpu", cpu,
		"-smp", strconv.Itoa(max(j.CPUs, 1)), "-m", strconv.Itoa(j.MiB), "-nodefaults", "-no-reboot", "-display", "none",
		"-serial", "file:"+at("console"), "-serial", "stdio", "-serial", "file:"+at("status"),
		"-kernel", at("vmlinux"), "-initrd", at("initrd"), "-append", words+strconv.FormatUint(soft.TSCHz()/1000, 10))
	var complaints bytes.Buffer
	q.Stdout, q.Stderr = j.Output, &complaints
	err = q.Run()
	said, _ := os.ReadFile(at("status"))
	if code, ok := strings.CutPrefix(strings.TrimSpace(string(said)), "exit "); ok {
		return strconv.Atoi(code)
	}
	console, _ := os.ReadFile(at("console"))
	lines := strings.Split(strings.TrimSpace(string(console)), "\n")
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return 0, fmt.Errorf("nested: the outer guest did not say how its commands ended (%v)\n%s\n%s", err, complaints.Bytes(),
		strings.Join(lines[max(0, len(lines)-30):], "\n"))
}

// write makes the outer guest's kernel and root.
func (j *Job) write(vmlinux, initrd string) error {
	elf, err := Vmlinux(j.Kernel.Path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(vmlinux, elf, 0o600); err != nil {
		return err
	}
	modules, missing, err := j.Kernel.Modules.Closure(append([]string{"kvm_amd"}, j.Drivers...))
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("kernel %s has no %s", j.Kernel.Path, strings.Join(missing, ", "))
	}
	lines := func(path string, l ...string) initramfs.File {
		return initramfs.File{Path: path, Mode: 0o644, Data: []byte(strings.Join(l, "\n"))}
	}
	var commands []string
	for _, c := range j.Commands {
		commands = append(commands, strings.Join(c, "\x00"))
	}
	files := append([]initramfs.File{lines(CommandFile, commands...), lines(EnvFile, j.Env...), lines(DirFile, j.Dir)}, j.Files...)
	root, err := initramfs.Pack(j.Init, modules, files...)
	if err != nil {
		return err
	}
	return os.WriteFile(initrd, root, 0o600)
}

// Vmlinux is the ELF image in the bzImage at path, which QEMU boots by PVH.
func Vmlinux(path string) ([]byte, error) {
	image, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	elf, err := unpack(image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return elf, nil
}

// unpack gives the vmlinux in a bzImage (Linux Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length): QEMU boots that by
// PVH, and the decompressor need not be emulated.
func unpack(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	sectors := uint64(image[0x1F1])
	if sectors == 0 {
		sectors = 4
	}
	begin := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	end := begin + uint64(binary.LittleEndian.Uint32(image[0x24C:]))
	if end > uint64(len(image)) || end-begin < 4 {
		return nil, errors.New("the payload is not inside")
	}
	return decompress.All(image[begin:end-4], 256<<20) // its length follows it
}
