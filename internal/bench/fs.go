package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/initramfs"
)

// Where Debian keeps the file server that QEMU is used with, and a static shell.
const (
	virtiofsd = "/usr/lib/qemu/virtiofsd"
	busybox   = "/bin/busybox"
)

// smallFiles is how many files of one byte there are beside the large one, of largeMiB.
const (
	smallFiles = 2000
	largeMiB   = 256
)

// timed reads the large file, walks the small ones, reads them, and prints the guest's uptime before, between and after.
const timed = `t() { read -r up rest </proc/uptime; echo "$up"; }
a=$(t); $B dd if=large of=/dev/null bs=1M 2>/dev/null; b=$(t); $B find small -type f -newer large >/dev/null; c=$(t)
$B cat small/* >/dev/null; d=$(t); echo "TIMES $a $b $c $d"
`

// qemuInit mounts the shared directory and runs the same commands.
const qemuInit = `#!/busybox sh
B=/busybox; $B mkdir -p /proc /host; $B mount -t proc proc /proc
for m in $($B cat /modules.list); do $B insmod /$m; done
$B mount -t virtiofs host /host || echo FAILED; cd /host
` + timed + `$B poweroff -f
`

// files reads and walks a directory of the host through virtio-fs, timed by the guest's clock: ours by its server, QEMU's by virtiofsd.
func (b *bench) files() error {
	work, err := b.makeFiles()
	if err != nil {
		return err
	}
	if _, err := os.Stat(busybox); err != nil {
		return errors.New("busybox is missing: apt-get install busybox-static")
	}
	us, them := newFileSeries("vitrine"), newFileSeries("QEMU and virtiofsd")
	initrd, err := b.qemuFiles()
	if err != nil {
		return err
	}
	qemu := os.Getuid() == 0
	if _, err := os.Stat(virtiofsd); err != nil || !qemu {
		fmt.Printf("QEMU is left out: %s needs root and Debian 12's qemu-system-common.\n\n", virtiofsd)
		qemu = false
	}
	for range b.runs {
		cmd := exec.CommandContext(b.ctx, b.vitrine, "run", "-q", "--accel", "soft", "--cpus", "1", "--memory", "512M", "--", "sh", "-c", "B="+busybox+"\n"+timed)
		cmd.Dir = work
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("vitrine: %w: %s", err, out)
		}
		if err := us.add(out); err != nil {
			return err
		}
		if !qemu {
			continue
		}
		if out, err = b.qemuRead(work, initrd); err != nil {
			return err
		}
		if err := them.add(out); err != nil {
			return err
		}
	}
	fmt.Printf("1 CPU, 512 MiB, kernel %s, %d runs.\n\n", b.kernel.Release, b.runs)
	for i := range us {
		if qemu {
			table(us[i], them[i])
		} else {
			table(us[i])
		}
		fmt.Println()
	}
	return nil
}

// makeFiles makes the directory to be read.
func (b *bench) makeFiles() (string, error) {
	work := filepath.Join(b.dir, "files")
	if err := os.MkdirAll(filepath.Join(work, "small"), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(work, "large"), bytes.Repeat([]byte("0123456789abcdef"), largeMiB<<16), 0o644); err != nil {
		return "", err
	}
	for i := range smallFiles {
		if err := os.WriteFile(filepath.Join(work, "small", strconv.Itoa(i)), []byte("x"), 0o644); err != nil {
			return "", err
		}
	}
	return work, nil
}

// fileSeries are the large file, the walk and the small files.
type fileSeries [3]*series

func newFileSeries(name string) fileSeries {
	return fileSeries{
		{name: name + ", large file, sequential", unit: "MiB/s"},
		{name: name + ", find with stat", unit: "files/s"},
		{name: name + ", open and read small files", unit: "files/s"},
	}
}

// add takes the times that a guest printed.
func (s fileSeries) add(out []byte) error {
	_, rest, ok := strings.Cut(string(out), "TIMES ")
	f := strings.Fields(rest)
	if !ok || len(f) < 4 {
		return fmt.Errorf("the guest printed %q", out)
	}
	var t [4]float64
	for i := range t {
		var err error
		if t[i], err = strconv.ParseFloat(f[i], 64); err != nil {
			return err
		}
	}
	const tick = 0.01 // of the guest's clock as /proc/uptime prints it
	s[0].add(largeMiB / max(tick, t[1]-t[0]))
	s[1].add(smallFiles / max(tick, t[2]-t[1]))
	s[2].add(smallFiles / max(tick, t[3]-t[2]))
	return nil
}

// qemuFiles writes the initramfs for QEMU's side: busybox, the modules, the script.
func (b *bench) qemuFiles() (string, error) {
	modules, missing, err := b.kernel.Modules.Closure([]string{"virtio_pci", "virtiofs"})
	if err != nil || len(missing) > 0 {
		return "", fmt.Errorf("modules %v: %w", missing, err)
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	var list []string
	w := initramfs.NewWriter(&out)
	add := func(f initramfs.File) {
		if err == nil {
			err = w.Add(f)
		}
	}
	add(initramfs.File{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1})
	add(initramfs.File{Path: "busybox", Mode: 0o755, Data: shell})
	for _, m := range modules {
		add(initramfs.File{Path: m.Name + ".ko", Mode: 0o644, Data: m.Data})
		list = append(list, m.Name+".ko")
	}
	add(initramfs.File{Path: "modules.list", Mode: 0o644, Data: []byte(strings.Join(list, "\n"))})
	add(initramfs.File{Path: "init", Mode: 0o755, Data: []byte(qemuInit)})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return "", err
	}
	p := filepath.Join(b.dir, "files.cpio")
	return p, os.WriteFile(p, out.Bytes(), 0o600)
}

// qemuRead boots QEMU with the directory shared by virtiofsd and gives what its console said.
func (b *bench) qemuRead(work, initrd string) ([]byte, error) {
	socket := filepath.Join(b.dir, "virtiofsd.sock")
	os.Remove(socket)
	server := exec.CommandContext(b.ctx, virtiofsd, "--socket-path="+socket, "-o", "source="+work, "-o", "sandbox=chroot", "-o", "cache=auto")
	if err := server.Start(); err != nil {
		return nil, err
	}
	defer server.Wait()
	defer server.Process.Kill()
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	out, err := exec.CommandContext(b.ctx, b.qemu, "-accel", "tcg", "-cpu", "max", "-m", "512", "-nographic", "-no-reboot", "-nodefaults",
		"-serial", "stdio", "-object", "memory-backend-memfd,id=m,size=512M,share=on", "-numa", "node,memdev=m",
		"-chardev", "socket,id=c,path="+socket, "-device", "vhost-user-fs-pci,chardev=c,tag=host",
		"-kernel", b.kernel.Path, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("QEMU: %w: %s", err, out)
	}
	return out, nil
}
