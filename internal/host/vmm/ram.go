package vmm

import (
	"cmp"
	"slices"
	"strings"
)

// RAM gives the mappings of a VMM's process that hold its guest's RAM, in the order of the guest's addresses as far as that is told by the mappings. It
// is a guess until the guest's own kernel confirms it.
func (g *Guest) RAM(proc Proc) ([]Mapping, error) {
	maps, err := proc.Maps(g.PID)
	if err != nil {
		return nil, err
	}
	return g.RAMIn(maps), nil
}

// RAMIn is RAM among mappings that were read already.
func (g *Guest) RAMIn(maps []Mapping) []Mapping {
	var want []uint64
	if g.VMM == "qemu" {
		if want = qemuBackends(g.Args); len(want) == 0 {
			want = []uint64{qemuMemory(g.Args)}
		}
	}
	return findRAM(maps, want, g.kind.holes)
}

// minRAM is the smallest mapping that is taken for RAM.
const minRAM = 1 << 20

// findRAM finds mappings of the wanted sizes; without such, the largest that may be RAM, and what belongs to it.
func findRAM(maps []Mapping, want, holes []uint64) []Mapping {
	single := slices.DeleteFunc(slices.Clone(maps), func(m Mapping) bool { return !mayBeRAM(&m) })
	joined := join(single)
	var found []Mapping
	left, leftJoined := slices.Clone(single), slices.Clone(joined)
	for _, size := range want {
		m, ok := take(&left, size)
		if !ok {
			m, ok = take(&leftJoined, size)
		}
		if !ok {
			found = nil
			break
		}
		found = append(found, m)
	}
	if len(found) > 0 {
		return found
	}
	if len(joined) == 0 {
		return nil
	}
	bySize := func(a, b Mapping) int { return cmp.Compare(a.Size(), b.Size()) }
	// A thread's stack may touch RAM: neighbours count where no one of them is most of it.
	all := joined
	if l, j := slices.MaxFunc(single, bySize), slices.MaxFunc(joined, bySize); l.Size() >= j.Size()/4*3 {
		all = single
	}
	largest := slices.MaxFunc(all, bySize)
	if largest.Size() < minRAM {
		return nil
	}
	// All mappings of one file are RAM if one is.
	if largest.Inode != 0 {
		same := slices.DeleteFunc(slices.Clone(all), func(m Mapping) bool { return m.Inode != largest.Inode || m.Path != largest.Path })
		if len(same) > 1 {
			slices.SortFunc(same, func(a, b Mapping) int { return cmp.Compare(a.Offset, b.Offset) })
			return same
		}
	}
	// RAM that ends at a hole goes on above 4 GiB.
	for i, low := range all {
		if !slices.Contains(holes, low.Size()) {
			continue
		}
		rest := slices.Delete(slices.Clone(all), i, i+1)
		if len(rest) > 0 {
			if high := slices.MaxFunc(rest, bySize); high.Size() >= minRAM && high.Inode == 0 == (low.Inode == 0) {
				return []Mapping{low, high}
			}
		}
	}
	return []Mapping{largest}
}

// mayBeRAM leaves out what cannot be: a guest's RAM is read and written, never executed by its host.
func mayBeRAM(m *Mapping) bool {
	if m.Perms[:3] != "rw-" || strings.HasPrefix(m.Path, "[") && !strings.HasPrefix(m.Path, "[anon") {
		return false
	}
	for _, not := range []string{"anon_inode:", "/dev/kvm", "/dev/vfio", "/dev/dri", "/dev/nvidia", "/SYSV"} {
		if strings.HasPrefix(m.Path, not) {
			return false
		}
	}
	return true
}

// join makes one of neighbours that the kernel keeps apart (mbind, madvise, userfaultfd).
func join(all []Mapping) []Mapping {
	var joined []Mapping
	for _, m := range all {
		if n := len(joined); n > 0 {
			l := &joined[n-1]
			if l.End == m.Start && l.Perms == m.Perms && l.Inode == m.Inode && l.Path == m.Path && (m.Inode == 0 || l.Offset+l.Size() == m.Offset) {
				l.End = m.End
				continue
			}
		}
		joined = append(joined, m)
	}
	return joined
}

// take takes a mapping of the size out of all; or a larger one's part, which begins where huge pages may: the kernel joins neighbours.
func take(all *[]Mapping, size uint64) (Mapping, bool) {
	const huge = 2 << 20
	for _, exact := range []bool{true, false} {
		for i, m := range *all {
			at := m.Start
			if !exact && m.Start%huge != 0 {
				at = (m.Start + huge - 1) &^ (huge - 1)
			}
			if m.Size() == size || !exact && at < m.End && m.End-at >= size && m.End-at < 2*size {
				m.Offset += at - m.Start
				m.Start, m.End = at, at+size
				*all = slices.Delete(*all, i, i+1)
				return m, size > 0
			}
		}
	}
	return Mapping{}, false
}
