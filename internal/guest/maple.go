package guest

import (
	"errors"
	"fmt"
)

// Kinds of maple nodes (include/linux/maple_tree.h), in bits 3 to 6 of a pointer to one.
const (
	mapleDense = iota
	mapleLeaf64
	mapleRange64
	mapleArange64
)

// Slots of a node of 256 bytes: parent, pivots, slots.
const (
	mapleNodeSize = 256
	rangeSlots    = 16
	arangeSlots   = 10
	maxMapleNodes = 1 << 17
)

// maple gives the entries of a maple tree in order (lib/maple_tree.c, v6.1): addresses; what is no address, as reserved ranges, is left out.
func (k *Kernel) maple(root uint64, limit int) ([]uint64, error) {
	if root == 0 {
		return nil, nil
	}
	if root&3 != 2 { // not an internal entry: a single one
		if root&3 == 0 && root >= kernelHalf {
			return []uint64{root}, nil
		}
		return nil, errTorn
	}
	w := mapleWalk{k: k, limit: limit}
	err := w.node(root, ^uint64(0), 0)
	return w.all, err
}

type mapleWalk struct {
	k     *Kernel
	all   []uint64
	nodes int
	limit int
}

var errMaple = errors.New("guest: maple tree is damaged")

// node walks a node that holds indices up to max.
func (w *mapleWalk) node(enode, max uint64, depth int) error {
	if w.nodes++; depth > 16 || w.nodes > maxMapleNodes {
		return errMaple
	}
	addr, kind := enode&^0xFF, int(enode>>3&15)
	if addr < kernelHalf {
		return errTorn
	}
	var raw [mapleNodeSize]byte
	if w.k.space.ReadAt(raw[:], addr) != nil {
		return errTorn
	}
	slots := rangeSlots
	switch kind {
	case mapleLeaf64, mapleRange64:
	case mapleArange64:
		slots = arangeSlots
	default:
		return fmt.Errorf("%w: node of kind %d", errMaple, kind)
	}
	for i := range slots {
		last := max
		if i < slots-1 {
			if last = le.Uint64(raw[8+8*i:]); last == 0 && i > 0 || last > max {
				last = max // no more pivots: this slot goes to the end
			}
		}
		e := le.Uint64(raw[8+8*(slots-1)+8*i:])
		switch {
		case kind == mapleLeaf64:
			if e&3 == 0 && e >= kernelHalf {
				if len(w.all) >= w.limit {
					return fmt.Errorf("guest: maple tree: more than %d entries", w.limit)
				}
				w.all = append(w.all, e)
			}
		case e != 0:
			if err := w.node(e, last, depth+1); err != nil {
				return err
			}
		}
		if last == max {
			break
		}
	}
	return nil
}
