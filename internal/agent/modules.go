package agent

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ModuleList is the file of the initramfs that names the kernel modules to load, a path a line, in order. That it is there
// also says that the initramfs is ours.
const ModuleList = "/vitrine/modules"

// loadModules loads what a list names, and deletes it: the initramfs is memory.
func loadModules(list string) error {
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	for path := range strings.Lines(string(text)) {
		path = strings.TrimSuffix(path, "\n")
		if path == "" {
			continue
		}
		if err := loadModule(path); err != nil && err != unix.EEXIST {
			return place("module "+path, err)
		}
		os.Remove(path)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}
