package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/initramfs"
)

// ready is what the guest's first program writes.
const ready = "FIRST-USER-INSTRUCTION"

// firstProgram is a static ELF program whose first instructions write ready to standard output, and which then sleeps.
func firstProgram() []byte {
	const base, head = 0x400000, 64 + 56
	code := []byte{
		0xB8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xBF, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8D, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16]
		0xBA, byte(len(ready) + 1), 0, 0, 0, // mov edx, len
		0x0F, 0x05, // syscall
		0xB8, 34, 0, 0, 0, // again: mov eax, 34 (pause)
		0x0F, 0x05, // syscall
		0xEB, 0xF7, // jmp again
	}
	code = append(code, make([]byte, 40-len(code))...)
	code = append(code, ready+"\n"...)
	binary.LittleEndian.PutUint32(code[13:], uint32(40-17))
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+head) // entry
	b = le.AppendUint64(b, 64)        // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read, execute
	size := uint64(head + len(code))
	for _, v := range []uint64{0, base, base, size, size, 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

// bootFiles writes an initramfs of the first program alone.
func (b *bench) bootFiles() (initrd string, err error) {
	var out bytes.Buffer
	w := initramfs.NewWriter(&out)
	for _, f := range []initramfs.File{
		{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Path: "init", Mode: 0o755, Data: firstProgram()},
	} {
		if err := w.Add(f); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	initrd = filepath.Join(b.dir, "first.cpio")
	return initrd, os.WriteFile(initrd, out.Bytes(), 0o600)
}

func (b *bench) boot() error {
	initrd, err := b.bootFiles()
	if err != nil {
		return err
	}
	const append = "console=ttyS0 quiet panic=-1"
	ours := []string{b.vitrine, "run", "-q", "--accel", "soft", "--cpus", "1", "--memory", "512M", "--kernel", b.kernel.Path, "--initrd", initrd, "--append", append}
	qemu := []string{b.qemu, "-accel", "tcg", "-cpu", "max", "-m", "512", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
		"-kernel", b.kernel.Path, "-initrd", initrd, "-append", append}
	us := &series{name: "vitrine", unit: "CPU s"}
	them := &series{name: version(b.qemu), unit: "CPU s"}
	memory := &series{name: "vitrine, VmRSS without guest RAM", unit: "MiB"}
	fmt.Printf("Kernel %s, 1 CPU, 512 MiB, %d runs of each, interleaved.\n\n", b.kernel.Release, b.runs)
	if _, _, err := b.untilReady(ours); err != nil { // fills the cache of decompressed kernels
		return err
	}
	for range b.runs {
		cpu, rss, err := b.untilReady(ours)
		if err != nil {
			return err
		}
		us.add(cpu)
		memory.add(rss)
		if cpu, _, err = b.untilReady(qemu); err != nil {
			return err
		}
		them.add(cpu)
	}
	table(us, them, memory)
	return nil
}

// untilReady runs a virtual machine until its guest says ready, and gives the CPU seconds its process has used by then, and its
// resident memory without shared memory, in MiB.
func (b *bench) untilReady(args []string) (cpu, rss float64, err error) {
	cmd := exec.CommandContext(b.ctx, args[0], args[1:]...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	in, _ := cmd.StdinPipe()
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	stop := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() })
	defer stop.Stop()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), ready) {
			return usage(cmd.Process.Pid)
		}
	}
	io.Copy(io.Discard, out)
	return 0, 0, fmt.Errorf("%s ended before its guest was ready: %s", filepath.Base(args[0]), complaint.String())
}

// usage reads a process's CPU time, of all its threads, and its memory from /proc.
func usage(pid int) (cpu, rss float64, err error) {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(stats) == 0 {
		return 0, 0, errors.New("no /proc/PID/task/*/schedstat here")
	}
	for _, s := range stats {
		b, _ := os.ReadFile(s)
		if f := strings.Fields(string(b)); len(f) > 0 {
			ns, _ := strconv.ParseFloat(f[0], 64)
			cpu += ns / 1e9
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	kib := func(key string) float64 {
		_, rest, _ := strings.Cut(string(status), key+":")
		f := strings.Fields(rest)
		if len(f) == 0 {
			return 0
		}
		v, _ := strconv.ParseFloat(f[0], 64)
		return v
	}
	return cpu, (kib("VmRSS") - kib("RssShmem")) / 1024, nil
}
