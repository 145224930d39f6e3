package foreign

import (
	"bytes"

	"vitrine.dev/vitrine/internal/host/vmm"
)

// Where a kernel's banner is looked for. Linux's read-only data begin at a multiple of 2 MiB (X86_ALIGN_RODATA_BEGIN, arch/x86/kernel/vmlinux.lds.S), and
// with them what the first object that is linked (init/version.c) has: its banner.
const (
	slotSize   = 2 << 20
	bannerRoom = 1 << 10
	maxSlots   = 1 << 16 // 128 GiB of RAM
)

// Release is the version of the kernel that a guest runs, at a glance: some microseconds for each 2 MiB of RAM that it uses. It is empty where the glance does not
// tell, as where a former boot's kernel is in memory too; Target.Kernel finds out.
func Release(g *vmm.Guest) string {
	if g.Unseen != "" || g.Protected != "" {
		return ""
	}
	maps, err := Proc.Maps(g.PID)
	if err != nil {
		return ""
	}
	m := openMemory(Proc, g.PID)
	defer m.close()
	var ram []segment
	for _, r := range g.RAMIn(maps) {
		ram = append(ram, segment{size: r.Size(), host: r.Start})
	}
	if s, ok := Proc.Stat(g.PID); !ok || s.Started != g.Ticks {
		return ""
	}
	found := ""
	for _, s := range m.backed(Proc, ram, maps) {
		for o, slots := uint64(0), 0; o+slotSize <= s.size && slots < maxSlots; o, slots = o+slotSize, slots+1 {
			release := m.banner(&s, o)
			switch {
			case release == "" || release == found:
			case found == "":
				found = release
			default:
				return ""
			}
		}
	}
	return found
}

// banner is the release of the kernel whose read-only data begin at offset o of s, or empty.
func (m *memory) banner(s *segment, o uint64) string {
	if at, _, ok := m.next(&segment{base: s.base, size: min(s.size, o+bannerRoom), host: s.host, file: s.file, off: s.off}, o); !ok || at != o {
		return ""
	}
	var b [bannerRoom]byte
	if _, err := m.read(b[:], s, o); err != nil {
		return ""
	}
	return releaseIn(b[:])
}

// releaseIn finds the release in a banner, "Linux version 6.1.0 (…".
func releaseIn(b []byte) string {
	_, rest, ok := bytes.Cut(b, []byte("\x00Linux version "))
	if !ok {
		return ""
	}
	release, _, ok := bytes.Cut(rest, []byte(" ("))
	if !ok || len(release) == 0 || len(release) > 64 { // __NEW_UTS_LEN
		return ""
	}
	for _, c := range release {
		if c <= ' ' || c >= 0x7F {
			return ""
		}
	}
	return string(release)
}
