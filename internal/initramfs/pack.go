package initramfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// ModuleList is the file that names the kernel modules to load, a path a line, in order; our agent reads it.
const ModuleList = "/vitrine/modules"

// A Module is a kernel module, decompressed.
type Module struct {
	Name string // as the kernel has it: virtio_pci
	Data []byte
}

// Pack makes the archive of a guest that runs init, the program, as /init: with the modules, in load order, the list of
// them, and more files.
func Pack(init []byte, modules []Module, more ...File) ([]byte, error) {
	size := len(init) + 64<<10
	for _, m := range modules {
		size += len(m.Data) + 512
	}
	for _, f := range more {
		size += len(f.Data) + 512
	}
	var out bytes.Buffer
	out.Grow(size)
	w := NewWriter(&out)
	files := []File{
		{Path: "dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1}, // the kernel opens it for /init
		{Path: "dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3},
		{Path: "init", Mode: 0o755, Data: init},
	}
	var list strings.Builder
	for _, m := range modules {
		path := "/vitrine/" + m.Name + ".ko"
		files = append(files, File{Path: path, Mode: 0o644, Data: m.Data})
		fmt.Fprintln(&list, path)
	}
	files = append(files, File{Path: ModuleList, Mode: 0o644, Data: []byte(list.String())})
	for _, f := range append(files, more...) {
		if err := w.Add(f); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
