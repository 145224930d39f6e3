// Package fpu executes x87, MMX, SSE and AVX instructions, and saves and restores their registers.
//
// Arithmetic is done by the host's own processor: Compile writes the instruction, with fixed registers, into a page of stubs
// (stub_unsafe.go), and what it returns calls that stub under the guest's control words. So results, flags and the
// corners of NaNs, denormals and rounding are the processor's, and no value is ever widened or narrowed on the way.
// What only moves bits is plain Go (move.go), and so are the control instructions (control.go) and the images of memory (xsave.go).
package fpu

import (
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// MemSize is the longest memory operand in bytes: an XSAVE area with AVX has 832.
const MemSize = 1024

// An Env is all that an instruction may touch besides the register file. One serves a processor for its life.
//
// Before the call the interpreter checks CR0, CR4 and alignment, asks Pending where the instruction Waits, makes sure that a memory operand which will be written
// can be written (an Fn changes the registers at once), and loads the operand into Mem. After a call that returned NoVector it stores the
// first Args.Size bytes of Mem, unless NoStore says not to, and writes GPR to a general register operand.
// Legacy SSE instructions keep the upper halves of YMM registers, AVX ones of 128 bits clear that of their destination.
type Env struct {
	Mem     [MemSize]byte // the memory operand; FXSAVE's and XSAVE's must be loaded too, as they leave bytes alone
	NoStore bool          // out: an unmasked x87 exception kept a store from its memory operand

	GPR    uint64 // general register operand, in and out; of 4 bytes: zero-extended
	RFLAGS uint64 // in: FCMOV, FCOMI; out: status flags of FCOMI, COMISS, PTEST, PCMPxSTRx
	RAX    uint64 // in: PCMPESTRx's length, XSAVE's and XRSTOR's mask
	RDX    uint64 // in: likewise
	RCX    uint64 // in and out: PCMPxSTRI's index

	RIP     uint64 // offset of the instruction, becomes FIP
	MemAddr uint64 // offset of the memory operand, becomes FDP
	Real    bool   // CR0.PE=0 or RFLAGS.VM=1: the real-mode layout of FNSTENV
	XCR0    uint64 // what XSAVE and XRSTOR may touch

	img image   // the x87 state as the host loads it
	res x86.YMM // a result that may have to be dropped
}

// An Fn executes one decoded instruction. It returns NoVector, or the exception raised, with registers and memory then as the SDM says:
// unchanged but for MXCSR's flags under XM, and all unchanged under MF and GP. XM is UD where CR4.OSXMMEXCPT is clear.
// It allocates nothing, and may run in many processors at once, each with its own s and e.
type Fn func(s *x86.FPU, e *Env) x86.Vector

// ErrUnknown says that an instruction is none of this package's, or that the host cannot execute it: the guest gets #UD.
var ErrUnknown = errors.New("fpu: not an x87, MMX, SSE or AVX instruction of this host")

// Compile returns what executes in, which was decoded for a processor with no more vector extensions than the host has (package model's Engine). It is made once for each decoded instruction and then called often. Stubs are shared, so their number
// is bounded by the encodings there are, not by what the guest does.
func Compile(in *decode.Inst) (Fn, error) {
	if in.Prefix&decode.Vex != 0 {
		return compileVEX(in)
	}
	fn, err := compile(in)
	if err != nil {
		return nil, err
	}
	if !Waits(in) {
		return fn, nil
	}
	return func(s *x86.FPU, e *Env) x86.Vector {
		if Pending(s) {
			return x86.MF
		}
		return fn(s, e)
	}, nil
}

func compile(in *decode.Inst) (Fn, error) {
	if fn := control(in); fn != nil {
		return fn, nil
	}
	if fn := saveRestore(in); fn != nil {
		return fn, nil
	}
	if in.Map == 0 && in.Opcode >= 0xD8 && in.Opcode <= 0xDF {
		return compileX87(in)
	}
	r := lookup(in)
	if r == nil || r.need&^host != 0 {
		return nil, fmt.Errorf("%w: %v (map %d, prefix %#02x, opcode %#02x)", ErrUnknown, in.Op, in.Map, in.Pfx, in.Opcode)
	}
	if fn := move(in); fn != nil {
		return fn, nil
	}
	return compileSSE(in, r)
}

// Waits says that an instruction reports pending x87 exceptions before it does anything: all of MMX, and x87 but for the control
// instructions that are named FN….
func Waits(in *decode.Inst) bool {
	return in.Flags&(decode.Wait|decode.MMXUnit) != 0 && !loadsPI(in)
}

// loadsPI says that in is CVTPI2PD or CVTPI2PS from memory, which does not concern the MMX unit. The SDM says so of the first only;
// processors (Zen 5 was asked) do so for both.
func loadsPI(in *decode.Inst) bool {
	return (in.Op == decode.CVTPI2PS || in.Op == decode.CVTPI2PD) && in.Args[1].Kind == decode.Mem
}

// Pending says that an unmasked x87 exception waits to be reported as #MF by the next waiting instruction. Interpreters ask before they load a
// memory operand, as the report comes before a page fault (SDM vol. 3A 6.9).
func Pending(s *x86.FPU) bool { return s.FSW&^s.FCW&flagsX87 != 0 }
