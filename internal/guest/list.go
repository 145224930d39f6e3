package guest

import (
	"errors"
	"fmt"
	"time"
)

// errTorn is for what changed while it was read, or never was whole.
var errTorn = errors.New("guest: changed while it was read")

// settled calls fn until what it reads did not change meanwhile. A running guest is caught in the middle of a change now and then; one that is
// caught each time lies, or changes faster than can be read.
func settled(fn func() error) error {
	var err error
	for try := range 20 {
		if err = fn(); !errors.Is(err, errTorn) {
			return err
		}
		if try > 4 {
			time.Sleep(time.Duration(try) * 50 * time.Microsecond)
		}
	}
	return err
}

// list gives the addresses of a list_head's nodes, without the head. Each must point back to the one before (include/linux/list.h); a
// node that list_del_rcu has just taken out does not.
func (k *Kernel) list(head uint64, limit int) ([]uint64, error) {
	var nodes []uint64
	p, err := k.space.Uint64(head)
	if err != nil {
		return nil, err
	}
	for prev := head; p != head; {
		if len(nodes) >= limit {
			return nodes, fmt.Errorf("guest: list at %#x: more than %d nodes", head, limit)
		}
		if p < kernelHalf {
			return nodes, errTorn
		}
		var node [16]byte
		if k.space.ReadAt(node[:], p) != nil || le.Uint64(node[8:]) != prev {
			return nodes, errTorn
		}
		nodes = append(nodes, p)
		prev, p = p, le.Uint64(node[:])
	}
	return nodes, nil
}

// entries gives the addresses of the structures of a list whose nodes are their field.
func (k *Kernel) entries(head uint64, name, field string, limit int) ([]uint64, error) {
	f, ok := k.structure(name).field(field)
	if !ok {
		return nil, fmt.Errorf("guest: the kernel's struct %s has no %s", name, field)
	}
	var all []uint64
	err := settled(func() (err error) {
		all, err = k.list(head, limit)
		return err
	})
	for i := range all {
		all[i] -= f.Off
	}
	return all, err
}

// tree gives the addresses of a red-black tree's nodes in order (include/linux/rbtree.h: parent and colour, right, left).
func (k *Kernel) tree(root uint64, limit int) ([]uint64, error) {
	top, err := k.space.Uint64(root)
	if err != nil {
		return nil, err
	}
	var nodes, path []uint64
	right := map[uint64]uint64{}
	for p := top; p != 0 || len(path) > 0; {
		for p != 0 {
			var node [24]byte
			if len(path) > 128 || p < kernelHalf || k.space.ReadAt(node[:], p) != nil {
				return nodes, errTorn
			}
			path = append(path, p)
			right[p] = le.Uint64(node[8:])
			p = le.Uint64(node[16:])
		}
		if len(nodes) >= limit {
			return nodes, fmt.Errorf("guest: tree at %#x: more than %d nodes", root, limit)
		}
		p = path[len(path)-1]
		path = path[:len(path)-1]
		nodes = append(nodes, p)
		p = right[p]
	}
	return nodes, nil
}
