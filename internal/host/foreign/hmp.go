package foreign

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// What QEMU's human monitor prints of a machine. It is made for people, but has looked the same since QEMU 2.10.

// maxCPUs bounds what is taken from an answer.
const maxCPUs = 4096

// parseRegisters reads "info registers -a" (target/i386/cpu-dump.c): the registers of each processor, and whether it is halted.
func parseRegisters(text string) (all []x86.Regs, halted []bool) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "CPU#") {
			if len(all) == maxCPUs {
				break
			}
			all, halted = append(all, x86.Regs{}), append(halted, false)
			continue
		}
		if len(all) == 0 {
			if line == "" {
				continue
			}
			all, halted = append(all, x86.Regs{}), append(halted, false) // older ones name no processor where there is one
		}
		r := &all[len(all)-1]
		name, rest, _ := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		if i := slices.Index(hmpSegments, name); i >= 0 {
			parseSegment(r, i, rest)
			continue
		}
		for name, value := range fields(line) {
			if name == "HLT" {
				halted[len(halted)-1] = value == "1"
			}
			if to := hmpRegister(r, name); to != nil {
				if v, err := strconv.ParseUint(value, 16, 64); err == nil {
					*to = v
				}
			}
		}
	}
	return all, halted
}

// fields gives the "NAME=VALUE" and "NAME =VALUE" of a line.
func fields(line string) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		for {
			name, rest, ok := strings.Cut(line, "=")
			if !ok {
				return
			}
			value, after, _ := strings.Cut(rest, " ")
			name = strings.TrimSpace(name)
			name = name[strings.LastIndexByte(name, ' ')+1:]
			if !yield(name, value) {
				return
			}
			line = after
		}
	}
}

// hmpGPRs are in the order of x86.RAX to R15.
var hmpGPRs = []string{"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"}

// hmpSegments are in the order of x86.ES to GS, then the others.
var hmpSegments = []string{"ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR", "GDT", "IDT"}

func hmpRegister(r *x86.Regs, name string) *uint64 {
	if i := slices.Index(hmpGPRs, name); i >= 0 {
		return &r.GPR[i]
	}
	switch name {
	case "RIP":
		return &r.RIP
	case "RFL":
		return &r.RFLAGS
	case "CR0":
		return &r.CR0
	case "CR2":
		return &r.CR2
	case "CR3":
		return &r.CR3
	case "CR4":
		return &r.CR4
	case "EFER":
		return &r.EFER
	}
	return nil
}

// parseSegment reads "0010 base limit flags …", or of a table " base limit".
func parseSegment(r *x86.Regs, i int, text string) {
	var v [4]uint64
	f := strings.Fields(text)
	for j := range min(len(f), len(v)) {
		v[j], _ = strconv.ParseUint(f[j], 16, 64)
	}
	// The flags are a descriptor's upper word.
	s := x86.Segment{Selector: uint16(v[0]), Base: v[1], Limit: uint32(v[2]), Access: uint16(v[3]>>8) & 0xF0FF}
	switch {
	case i < len(r.Seg):
		r.Seg[i] = s
	case hmpSegments[i] == "LDT":
		r.LDTR = s
	case hmpSegments[i] == "TR":
		r.TR = s
	case hmpSegments[i] == "GDT":
		r.GDTR = x86.Table{Base: v[0], Limit: uint16(v[1])}
	case hmpSegments[i] == "IDT":
		r.IDTR = x86.Table{Base: v[0], Limit: uint16(v[1])}
	}
}

// firmware is where it ends below 4 GiB, in ROM.
const firmware = 0xFE00_0000

// A span is a run of RAM as QEMU has it: addresses of the guest, and the block of RAM and the place in it.
type span struct {
	base  mem.Addr
	size  uint64
	block string
	off   uint64
}

// maxSpans bounds what is taken from an answer.
const maxSpans = 4096

// parseMemoryTree reads "info mtree -f" (softmmu/memory.c, mtree_print_flatview): the RAM that processor 0 sees. ROM is RAM here: the guest's kernel
// may read it. Neighbours that are one block are one.
func parseMemoryTree(text string) []span {
	var all []span
	inView := false
	for line := range strings.Lines(text) {
		t := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(t, "FlatView"):
			if len(all) > 0 {
				return all
			}
			inView = false
		case strings.HasPrefix(t, `AS "memory"`):
			inView = true
		case inView && len(all) < maxSpans:
			if s, ok := parseSpan(t); ok {
				if n := len(all); n > 0 && s.follows(&all[n-1]) {
					all[n-1].size += s.size
				} else if n == 0 || s.base >= all[n-1].base+mem.Addr(all[n-1].size) {
					all = append(all, s)
				}
			}
		}
	}
	return all
}

func (s *span) follows(t *span) bool {
	return s.block == t.block && t.base+mem.Addr(t.size) == s.base && t.off+t.size == s.off
}

// parseSpan reads "0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000 KVM".
func parseSpan(line string) (s span, ok bool) {
	where, rest, ok1 := strings.Cut(line, " (prio 0, ") // devices' memory has a higher one
	from, to, ok2 := strings.Cut(where, "-")
	kind, name, ok3 := strings.Cut(rest, "): ")
	if !ok1 || !ok2 || !ok3 {
		return s, false
	}
	if kind != "ram" && kind != "rom" {
		return s, false
	}
	first, err1 := strconv.ParseUint(from, 16, 64)
	last, err2 := strconv.ParseUint(to, 16, 64)
	if err1 != nil || err2 != nil || last < first || last >= 1<<52 {
		return s, false
	}
	s.base, s.size = mem.Addr(first), last-first+1
	s.block = strings.TrimSuffix(name, " KVM")
	if i := strings.LastIndex(s.block, " @"); i >= 0 {
		off, err := strconv.ParseUint(strings.TrimSpace(s.block[i+2:]), 16, 64)
		if err != nil {
			return s, false
		}
		s.off, s.block = off, s.block[:i]
	}
	return s, s.size%pageSize == 0 && first%pageSize == 0 && s.off+s.size >= s.off && (first>>32 != 0 || last < firmware)
}

// parseHostAddress reads "Host virtual address for 0x0 (pc.ram) is 0x7f4bafe00000" (monitor/hmp-cmds-target.c).
func parseHostAddress(text string) (uint64, error) {
	_, v, ok := strings.Cut(strings.TrimSpace(text), " is 0x")
	at, err := strconv.ParseUint(v, 16, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("QMP: gpa2hva: %q", strings.TrimSpace(text))
	}
	return at, nil
}
