package interp

// The invariant of this file: layout names fields of CPU, of the widths that package jit expects.

import (
	"unsafe"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/jit"
)

// layout says where translated code finds a CPU's state.
var layout = jit.Layout{
	Status:     int32(unsafe.Offsetof(CPU{}.cc) + unsafe.Offsetof(lazyFlags{}.b)),
	StatusKind: int32(unsafe.Offsetof(CPU{}.cc) + unsafe.Offsetof(lazyFlags{}.kind)),
	Base:       regBase * 8,
	FS:         (regSeg + x86.FS) * 8,
	GS:         (regSeg + x86.GS) * 8,
	TLB:        int32(unsafe.Offsetof(CPU{}.tlb)),
	Poll:       int32(unsafe.Offsetof(CPU{}.poll)),
	Gen:        int32(unsafe.Offsetof(CPU{}.gen)),
	GlobalGen:  int32(unsafe.Offsetof(CPU{}.ggen)),
	Frame:      int32(unsafe.Offsetof(CPU{}.frame)),
	Vec:        int32(unsafe.Offsetof(CPU{}.fpu) + unsafe.Offsetof(x86.FPU{}.Vec)),
	MXCSR:      int32(unsafe.Offsetof(CPU{}.fpu) + unsafe.Offsetof(x86.FPU{}.MXCSR)),
}

// Package jit knows these sizes.
var (
	_ [jit.TLBEntries - tlbSize]struct{}
	_ [tlbSize - jit.TLBEntries]struct{}
	_ [32 - unsafe.Sizeof(tlbEntry{})]struct{}
)

// setJumps tells translated code where t is.
func setJumps(f *jit.Frame, t *jit.JumpTable) { f.SetJumps(unsafe.Pointer(t)) }

// enterNative runs translated code until it is left. vec says that it takes the vector registers for loaded.
func enterNative(c *CPU, code uintptr, vec bool) {
	c.setStatus(c.status())
	if vec {
		jit.EnterVec(unsafe.Pointer(c), code)
		return
	}
	jit.Enter(unsafe.Pointer(c), code)
}
