package guest

import (
	"errors"
	"slices"
)

// maxFiles bounds a process's table of files: fs.nr_open's largest value.
const maxFiles = 1 << 20

// A File is one that a process has open.
type File struct {
	FD     int    `json:"fd"`
	Mode   string `json:"mode"` // r, w or rw
	Offset int64  `json:"offset"`
	Name   string `json:"name"`
	Device string `json:"device"`
	Inode  uint64 `json:"inode"`

	Socket *Socket `json:"socket,omitempty"` // what the file is, if it is one
}

// An openFile is a descriptor, and its struct file's address.
type openFile struct {
	fd   int
	addr uint64
}

// openFiles gives what a task has open; of one that has ended, nothing.
func (k *Kernel) openFiles(t object) ([]openFile, error) {
	at := t.uint("files")
	if at == 0 {
		return nil, nil
	}
	files, err := k.load("files_struct", at)
	if err != nil {
		return nil, err
	}
	table, err := k.load("fdtable", files.uint("fdt"))
	if err != nil {
		return nil, err
	}
	n := table.uint("max_fds")
	if n > maxFiles {
		return nil, errors.New("guest: the process's table of files is not believed")
	}
	raw := make([]byte, n*8)
	if err := k.space.ReadAt(raw, table.uint("fd")); err != nil {
		return nil, err
	}
	var all []openFile
	for fd := range int(n) {
		if p := le.Uint64(raw[fd*8:]); p >= kernelHalf {
			all = append(all, openFile{fd, p})
		}
	}
	return all, nil
}

// Files gives a process's open files by descriptor.
func (k *Kernel) Files(task uint64) ([]File, error) {
	t, err := k.load("task_struct", task)
	if err != nil {
		return nil, err
	}
	open, err := k.openFiles(t)
	if err != nil || open == nil {
		return nil, err
	}
	w := k.newWalker()
	root, _ := w.rootOf(t)
	all := []File{}
	for _, o := range open {
		f, err := w.load("file", o.addr)
		if err != nil {
			continue // closed meanwhile
		}
		const modeRead, modeWrite = 1, 2 // FMODE_READ, FMODE_WRITE
		mode := ""
		if f.uint("f_mode")&modeRead != 0 {
			mode = "r"
		}
		if f.uint("f_mode")&modeWrite != 0 {
			mode += "w"
		}
		d := File{FD: o.fd, Mode: mode, Offset: f.int("f_pos")}
		d.Name, d.Device, d.Inode = w.fileName(f, root)
		if s, ok := w.socket(f); ok {
			d.Socket = &s
		}
		all = append(all, d)
	}
	// What was closed while it was read may have become another's file.
	if t, err = k.load("task_struct", task); err != nil {
		return nil, err
	}
	now, err := k.openFiles(t)
	if err != nil || now == nil {
		return nil, err
	}
	was := map[int]uint64{}
	for _, o := range open {
		was[o.fd] = o.addr
	}
	is := map[int]uint64{}
	for _, o := range now {
		is[o.fd] = o.addr
	}
	return slices.DeleteFunc(all, func(f File) bool { return is[f.FD] != was[f.FD] }), nil
}
