package kvm

import (
	"errors"
	"fmt"
	"math/bits"

	"vitrine.dev/vitrine/internal/mem"
)

// The log has two halves: what CPUs write is KVM's to know, what devices write is package mem's.

// StartDirtyLog implements [hv.DirtyLogger].
func (v *VM) StartDirtyLog() error {
	if err := v.setFlags(memLogDirty); err != nil {
		return err
	}
	v.ram.StartLog()
	v.logging = true
	return nil
}

// TakeDirtyLog implements [hv.DirtyLogger]. A page that both a CPU and a device wrote is told once.
func (v *VM) TakeDirtyLog(fn func(mem.Addr)) error {
	if !v.logging {
		return errors.New("kvm: no dirty log was started")
	}
	devices := map[mem.Addr]bool{}
	v.ram.TakeLog(func(a mem.Addr) { devices[a] = true })
	for i, r := range v.ram.Regions() {
		pages := r.Size / mem.PageSize
		bitmap := make([]uint64, (pages+63)/64)
		if err := dirtyBitmap(v.fd, uint32(i), bitmap); err != nil {
			return fmt.Errorf("kvm: dirty log: %w", err)
		}
		for w, word := range bitmap {
			for ; word != 0; word &= word - 1 {
				a := r.Base + mem.Addr(w*64+bits.TrailingZeros64(word))*mem.PageSize
				delete(devices, a)
				fn(a)
			}
		}
	}
	for a := range devices {
		fn(a)
	}
	return nil
}

// StopDirtyLog implements [hv.DirtyLogger].
func (v *VM) StopDirtyLog() error {
	v.ram.StopLog()
	v.logging = false
	return v.setFlags(0)
}

func (v *VM) setFlags(flags uint32) error {
	for i, r := range v.ram.Regions() {
		if err := showRegion(v.fd, uint32(i), flags, v.ram, r); err != nil {
			return fmt.Errorf("kvm: dirty log: %w", err)
		}
	}
	return nil
}
