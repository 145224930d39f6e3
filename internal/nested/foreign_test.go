package nested

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// addProgram puts one of the host's programs into the outer guest, with the libraries that ldd names.
func (j *Job) addProgram(t *testing.T, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, err)
	}
	files := []string{path}
	if out, err := exec.Command("ldd", path).Output(); err == nil { // a static one has none
		for word := range strings.FieldsSeq(string(out)) {
			if filepath.IsAbs(word) {
				files = append(files, word)
			}
		}
	}
	for _, f := range files {
		j.addFile(t, f, f)
	}
}

// addFile puts a file of the host into the outer guest, what a link leads to for the link.
func (j *Job) addFile(t *testing.T, from, to string) {
	t.Helper()
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		t.Fatal(err)
	}
	files, err := Tree(from, to)
	if err != nil {
		t.Fatal(err)
	}
	j.Files = append(j.Files, files...)
}

// addQEMU puts QEMU, and what it needs for an ordinary PC, into the outer guest.
func (j *Job) addQEMU(t *testing.T) {
	t.Helper()
	j.addProgram(t, QEMU)
	for _, name := range []string{"bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "vgabios-stdvga.bin", "efi-e1000.rom", "efi-e1000e.rom"} {
		found := false
		for _, dir := range []string{"/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil && !found {
				j.addFile(t, filepath.Join(dir, name), filepath.Join("/usr/share/qemu", name))
				found = true
			}
		}
		if !found {
			missing(t, "QEMU's "+name+" is not found")
		}
	}
}

// TestOtherProgramsGuestsUnderNestedKVM looks into guests that QEMU runs on KVM.
func TestOtherProgramsGuestsUnderNestedKVM(t *testing.T) {
	j := newJob(t)
	j.add(t, "vitrine", "vitrine.dev/vitrine/cmd/vitrine")
	j.add(t, "cmd.test", "-c", "vitrine.dev/vitrine/cmd/vitrine")
	j.addTree(t, j.Kernel.Path, "bzImage")
	j.addQEMU(t)
	j.addProgram(t, "busybox")
	which := "TestOtherProgramsGuests/plain/^(ls|inspect|symbols|ps|stack|top|it_goes_on)$"
	if full {
		which = "TestOtherProgramsGuests"
	}
	j.Env = []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "VITRINE_TEST_PROGRAM=/payload/vitrine", "VITRINE_TEST_KERNEL=/payload/bzImage", "VITRINE_TEST_ACCEL=kvm"}
	j.Commands = [][]string{
		// Its guests have more memory than it has itself, and use little of that.
		{"/usr/bin/busybox", "sh", "-c", "echo 1 >/proc/sys/vm/overcommit_memory"},
		{"/payload/cmd.test", "-test.v", "-test.timeout=0", "-test.run", which},
	}
	if status, _ := j.run(t, 10*time.Minute); status != 0 {
		t.Errorf("status %d", status)
	}
}
