package guest

import (
	"cmp"
	"path"
	"slices"

	"vitrine.dev/vitrine/internal/printable"
	"vitrine.dev/vitrine/internal/program"
)

// Bounds of what is kept of user programs.
const (
	maxKeptMaps     = 1024 // processes
	maxKeptPrograms = 64
)

// A users keeps what user functions are named by: maps until the next Refresh, programs for longer.
type users struct {
	maps     map[uint64][]Map // by task
	programs map[programKey]*program.File
}

type programKey struct {
	device string
	inode  uint64
	size   int64
}

// UserFunction names the function of a process's program or library at an address, and its file. The symbols come from the file's pages in the
// guest's page cache. ok is false where nothing is mapped from a file; the function is empty where the file has no symbol for it, or the
// pages that would tell are not in memory.
func (k *Kernel) UserFunction(o Owner, ip uint64) (function, file string, ok bool) {
	u := &k.users
	if u.maps == nil {
		u.maps, u.programs = map[uint64][]Map{}, map[programKey]*program.File{}
	}
	maps, known := u.maps[o.Task]
	if !known {
		if t, err := k.load("task_struct", o.Task); err == nil && int(t.int("tgid")) == o.PID {
			maps, _ = k.Maps(o.Task)
		}
		if len(u.maps) >= maxKeptMaps {
			clear(u.maps)
		}
		u.maps[o.Task] = maps
	}
	i, found := slices.BinarySearchFunc(maps, ip, func(m Map, a uint64) int { return cmp.Compare(m.Start, a) })
	if !found {
		i--
	}
	if i < 0 || ip >= maps[i].End {
		return "", "", false
	}
	m := maps[i]
	if m.file == 0 {
		return "", m.Name, m.Name != ""
	}
	if p := k.program(m); p != nil {
		if addr, ok := p.Addr(ip - m.Start + m.Offset); ok {
			fn, _ := p.Function(addr)
			function = printable.Text(program.Demangle(fn.Name))
		}
	}
	return function, path.Base(m.Name), true
}

// program reads what a mapping is of, once; nil where that cannot be done.
func (k *Kernel) program(m Map) *program.File {
	c, err := k.cached(m.file)
	if err != nil {
		return nil
	}
	key := programKey{m.Device, m.Inode, c.size}
	if p, ok := k.users.programs[key]; ok {
		return p
	}
	p, err := program.Read(c)
	if err != nil {
		p = nil
	}
	if len(k.users.programs) >= maxKeptPrograms {
		clear(k.users.programs)
	}
	k.users.programs[key] = p
	return p
}
