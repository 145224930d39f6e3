package mmu

import (
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// MaxInstruction is how many bytes an instruction has at most (SDM vol. 2A 2.3.11).
const MaxInstruction = 15

// Code is up to MaxInstruction bytes from the instruction that a processor is about to execute, as far as they are mapped.
func Code(ram *mem.Memory, r *x86.Regs) []byte {
	s := NewSpace(r.CR0, r.CR3, r.CR4, r.EFER)
	if s.Mode == PAE {
		s.PDPTE, _ = LoadPDPTE(ram, r.CR3)
	}
	linear := r.RIP
	if r.EFER&x86.EFERLMA == 0 || r.Seg[x86.CS].Access&x86.SegLong == 0 {
		linear = uint64(uint32(r.Seg[x86.CS].Base + r.RIP))
	}
	code := make([]byte, 0, MaxInstruction)
	for len(code) < MaxInstruction {
		at := linear + uint64(len(code))
		t, _, ok := s.Walk(ram, at, 0)
		if !ok {
			break
		}
		p := make([]byte, min(MaxInstruction-len(code), int(mem.PageSize-at%mem.PageSize)))
		if ram.ReadAt(p, t.Phys) != nil {
			break
		}
		code = append(code, p...)
	}
	return code
}
