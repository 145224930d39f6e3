package kvm

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenSaysOneLine(t *testing.T) {
	b, err := Open()
	if b != nil {
		t.Logf("here: stock kernels: %v; TSC %d Hz", b.Stock(), b.TSCHz())
		if e := b.Stock(); e != nil && !errors.Is(e, ErrBroken) {
			t.Errorf("%v is not ErrBroken", e)
		}
	} else {
		t.Logf("here: %v", err)
	}
	if err != nil && (strings.Contains(err.Error(), "\n") || err.Error() == "") {
		t.Errorf("got %q", err)
	}
	if _, e := os.Stat("/dev/kvm"); e != nil && err == nil {
		t.Error("KVM is good without /dev/kvm")
	}
}

func TestWhyKVMCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(p, []byte(text), 0o600), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	vmx := write("vmx", "processor : 0\nflags\t\t: fpu vme vmx sse\n", 0o644)
	svm := write("svm", "flags : fpu svm\n", 0o644)
	none := write("none", "flags : fpu xsvm\n", 0o644)
	for _, c := range []struct {
		name, path, cpuinfo, want string
	}{
		{"absent, Intel", filepath.Join(dir, "absent"), vmx, "sudo modprobe kvm_intel"},
		{"absent, AMD", filepath.Join(dir, "absent"), svm, "sudo modprobe kvm_amd"},
		{"absent, and the processor cannot", filepath.Join(dir, "absent"), none, "shows no virtualization"},
		{"something else", none, none, "API version"},
		{"a directory", dir, none, "is a directory"},
	} {
		b, err := open(c.path, c.cpuinfo)
		if b != nil || err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q in one line", c.name, err, c.want)
		}
	}
	if err := explain(unix.ENODEV, "/dev/kvm", svm); !strings.Contains(err.Error(), "no driver (the processor can: sudo modprobe kvm_amd)") {
		t.Errorf("without a driver: %v", err)
	}
}

// TestPermissionComesWithItsCommand opens a device as nobody may.
func TestPermissionComesWithItsCommand(t *testing.T) {
	p := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	asNobody(t, func() { _, err = open(p, "/proc/cpuinfo") })
	if err == nil || !strings.Contains(err.Error(), "no permission for "+p) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want one line about permission", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root, to change the file's group")
	}
	if !strings.Contains(err.Error(), "--device") {
		t.Errorf("%v, want what a container needs", err)
	}
}

// asNobody calls fn on a thread that may touch no file of root's.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			unix.Setfsuid(65534)
			unix.Setfsgid(65534)
		}
		fn()
	}()
	<-done
}

func TestHowAUserGetsADevice(t *testing.T) {
	p := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(p, nil, 0o660); err != nil {
		t.Fatal(err)
	}
	if got := userPermission(p, "alice"); got != "sudo setfacl -m u:alice:rw "+p+", until the next boot" {
		t.Errorf("a device of root's group: %q", got)
	}
	const daemon = 1 // a group that a system has, if it has any
	if _, err := user.LookupGroupId(strconv.Itoa(daemon)); err != nil {
		t.Skip(err)
	}
	if err := os.Chown(p, -1, daemon); err != nil {
		t.Skip("only root gives files away: ", err)
	}
	if err := os.Chmod(p, 0o660); err != nil {
		t.Fatal(err)
	}
	if got := userPermission(p, "alice"); !strings.HasPrefix(got, "sudo usermod -aG ") || !strings.HasSuffix(got, " alice, then log in anew") {
		t.Errorf("a device of a group: %q", got)
	}
}
