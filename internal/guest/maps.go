package guest

import (
	"errors"
	"fmt"
)

// maxMaps bounds a process's mappings: vm.max_map_count is 65,530 by default.
const maxMaps = 1 << 18

// A Map is a range of a process's memory, as /proc/PID/maps has it.
type Map struct {
	Start  uint64 `json:"start"`
	End    uint64 `json:"end"`   // the first byte behind
	Perms  string `json:"perms"` // rwxp, or s for shared
	Offset uint64 `json:"offset"`
	Device string `json:"device"` // major:minor, hexadecimal
	Inode  uint64 `json:"inode"`
	Name   string `json:"name"` // of the file, or what the memory is for in brackets

	file uint64
}

// Maps gives the mappings of a process's memory, by address. Kernel threads and processes that have ended have none.
func (k *Kernel) Maps(task uint64) ([]Map, error) {
	var all []Map
	err := settled(func() error {
		all = nil
		t, err := k.load("task_struct", task)
		if err != nil {
			return err
		}
		at := t.uint("mm")
		if at == 0 {
			return nil
		}
		mm, err := k.load("mm_struct", at)
		if err != nil {
			return err
		}
		areas, err := k.areas(mm)
		if err != nil {
			return err
		}
		w := k.newWalker()
		root, _ := w.rootOf(t)
		all = make([]Map, 0, len(areas))
		last := uint64(0)
		for _, a := range areas {
			vma, err := k.load("vm_area_struct", a)
			if err != nil || vma.has("vm_mm") && vma.uint("vm_mm") != at {
				return errTorn
			}
			m := w.describeMap(vma, mm, root)
			if m.Start < last || m.End <= m.Start {
				return errTorn
			}
			all, last = append(all, m), m.End
		}
		if now, err := k.load("task_struct", task); err != nil || now.uint("mm") != at {
			return errTorn // it ended, or runs another program
		}
		return nil
	})
	return all, err
}

// areas gives the addresses of a process's vm_area_structs.
func (k *Kernel) areas(mm object) ([]uint64, error) {
	if mm.has("mm_mt.ma_root") { // 524e00b36e8c, v6.1
		return k.maple(mm.uint("mm_mt.ma_root"), maxMaps)
	}
	next, ok := k.structure("vm_area_struct").field("vm_next")
	if !ok {
		return nil, errors.New("guest: the kernel's struct mm_struct has neither a maple tree nor a list of mappings")
	}
	var all []uint64
	for p := mm.uint("mmap"); p != 0; {
		if len(all) >= maxMaps {
			return nil, fmt.Errorf("guest: more than %d mappings", maxMaps)
		}
		if p < kernelHalf {
			return nil, errTorn
		}
		all = append(all, p)
		var err error
		if p, err = k.space.Uint64(p + next.Off); err != nil {
			return nil, errTorn
		}
	}
	return all, nil
}

func (w *walker) describeMap(vma, mm object, root place) Map {
	m := Map{Start: vma.uint("vm_start"), End: vma.uint("vm_end"), Device: "00:00", file: vma.uint("vm_file")}
	flags := vma.uint("vm_flags")
	perms := []byte("---p")
	for i, c := range []byte("rwx") { // VM_READ, VM_WRITE, VM_EXEC
		if flags>>i&1 != 0 {
			perms[i] = c
		}
	}
	const mayShare = 0x80
	if flags&mayShare != 0 {
		perms[3] = 's'
	}
	m.Perms = string(perms)
	if m.file != 0 {
		m.Offset = vma.uint("vm_pgoff") << 12
		if f, err := w.load("file", m.file); err == nil {
			m.Name, m.Device, m.Inode = w.fileName(f, root)
		}
		return m
	}
	switch brk, start := mm.uint("brk"), mm.uint("start_brk"); {
	case m.Start <= brk && m.End >= start && start != 0: // fs/proc/task_mmu.c
		m.Name = "[heap]"
	case m.Start <= mm.uint("start_stack") && m.End >= mm.uint("start_stack"):
		m.Name = "[stack]"
	default:
		m.Name = w.special(vma, mm)
	}
	return m
}

// special names what the kernel itself has mapped: vm_special_mapping's name.
func (w *walker) special(vma, mm object) string {
	if ops := vma.uint("vm_ops"); ops != 0 && ops == w.address("special_mapping_vmops") {
		if s, err := w.load("vm_special_mapping", vma.uint("vm_private_data")); err == nil {
			return w.pointed(s, 64, "name")
		}
	}
	if vdso := mm.uint("context.vdso"); vdso != 0 && vdso == vma.uint("vm_start") {
		return "[vdso]"
	}
	return ""
}

// fileName is an open file's path as a process with the given root sees it, its device and inode.
func (w *walker) fileName(f object, root place) (name, device string, inode uint64) {
	mnt, dentry, node := f.uint("f_path.mnt", "__f_path.mnt"), f.uint("f_path.dentry", "__f_path.dentry"), f.uint("f_inode")
	// An overlay's mapping is of the file below, in a mount that nobody sees; the user's path is kept beside (def3ae83da02, v6.7). The flag
	// that tells so has moved from release to release: that no namespace has the mount tells too.
	if at, err := w.placeOf(mnt, dentry); err == nil && !w.mounted(at.mount) {
		if b, err := w.load("backing_file", f.addr); err == nil {
			at, _ := w.placeOf(b.uint("user_path.mnt"), b.uint("user_path.dentry"))
			if d, err := w.load("dentry", at.dentry); err == nil && w.mounted(at.mount) {
				mnt, dentry, node = b.uint("user_path.mnt"), at.dentry, d.uint("d_inode")
			}
		}
	}
	device = "00:00"
	if in, err := w.load("inode", node); err == nil {
		inode = in.uint("i_ino")
		if sb, err := w.load("super_block", in.uint("i_sb")); err == nil {
			dev := sb.uint("s_dev")
			device = fmt.Sprintf("%02x:%02x", dev>>20, dev&0xFFFFF)
			if name, ok := w.unnamed(dentry, sb, inode); ok {
				return name, device, inode
			}
		}
	}
	at, err := w.placeOf(mnt, dentry)
	if err != nil {
		return "", device, inode
	}
	name, _ = w.path(at, root)
	if d, err := w.load("dentry", dentry); err == nil && name != "/" {
		// d_unhashed: it has no place in the table of names any more.
		if d.has("d_hash.pprev") && d.uint("d_hash.pprev") == 0 {
			name += " (deleted)"
		}
	}
	return name, device, inode
}

// unnamed is how pipes, sockets and their like are called, which have no place in a directory.
func (w *walker) unnamed(dentry uint64, sb object, inode uint64) (string, bool) {
	t, err := w.load("file_system_type", sb.uint("s_type"))
	if err != nil {
		return "", false
	}
	switch kind := w.pointed(t, 64, "name"); kind {
	case "pipefs":
		return fmt.Sprintf("pipe:[%d]", inode), true
	case "sockfs":
		return fmt.Sprintf("socket:[%d]", inode), true
	case "nsfs":
		return fmt.Sprintf("ns:[%d]", inode), true
	case "anon_inodefs":
		l, err := w.dentry(dentry)
		return "anon_inode:" + l.name, err == nil
	}
	return "", false
}
