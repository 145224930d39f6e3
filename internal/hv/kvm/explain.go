package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// explain says in a line why the device at path cannot be opened, and the command that changes that, where there is one.
func explain(err error, path, cpuinfo string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no %s here (%s)", path, absence(cpuinfo))
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s has no driver (%s)", path, absence(cpuinfo))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission for %s (%s)", path, permission(path))
	}
	return fmt.Errorf("%s: %w", path, err)
}

// absence tells whether the processor could, by the flags of Linux's cpuinfo.
func absence(cpuinfo string) string {
	text, err := os.ReadFile(cpuinfo)
	if err != nil {
		return "the processor is not known"
	}
	for line := range strings.Lines(string(text)) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, f := range strings.Fields(flags) {
			switch f {
			case "vmx":
				return "the processor can: sudo modprobe kvm_intel"
			case "svm":
				return "the processor can: sudo modprobe kvm_amd"
			}
		}
		break
	}
	return "the processor shows no virtualization: it is off in the firmware, or this is a virtual machine without nesting"
}

// permission is what gives this user the device: the group that has it, or an entry for the user alone.
func permission(path string) string {
	if os.Geteuid() == 0 {
		return "even to root: a container must be given the device, --device " + path + " with docker and podman"
	}
	name := "$USER"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return userPermission(path, name)
}

func userPermission(path, name string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil && st.Gid != 0 && st.Mode&0o060 == 0o060 {
		if g, err := user.LookupGroupId(strconv.Itoa(int(st.Gid))); err == nil {
			return fmt.Sprintf("sudo usermod -aG %s %s, then log in anew", g.Name, name)
		}
	}
	return fmt.Sprintf("sudo setfacl -m u:%s:rw %s, until the next boot", name, path)
}
