// Package x86 is what an x86-64 processor is: its registers, modes, exceptions and feature bits.
// How instructions are read is in decode, how addresses are translated in mmu, what instructions do in interp and fpu.
package x86

// Register numbers of the general registers, as instructions encode them (SDM vol. 2A table 3-1).
const (
	RAX = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
)

// Segment register numbers, as instructions encode them.
const (
	ES = iota
	CS
	SS
	DS
	FS
	GS
)

// A Segment is a segment register with its hidden part (SDM vol. 3A 3.4.3).
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes, the granularity applied
	Access   uint16 // bits 0-7: descriptor bits 40-47 (type, S, DPL, P); bits 12-15: descriptor bits 52-55 (AVL, L, D/B, G)
}

// Bits of Segment.Access.
const (
	SegAccessed = 1 << 0
	SegWritable = 1 << 1 // data; of code: readable
	SegDown     = 1 << 2 // data: expand down; of code: conforming
	SegCode     = 1 << 3
	SegS        = 1 << 4 // code or data, not system
	SegDPLShift = 5
	SegPresent  = 1 << 7
	SegAVL      = 1 << 12
	SegLong     = 1 << 13
	SegBig      = 1 << 14 // D of code, B of stacks and data
	SegGran     = 1 << 15
)

// DPL is the descriptor's privilege level.
func (s *Segment) DPL() int { return int(s.Access>>SegDPLShift) & 3 }

// A Table is GDTR or IDTR.
type Table struct {
	Base  uint64
	Limit uint16
}

// F80 is an x87 register: 80 bits, never a float64.
type F80 struct {
	Mant uint64
	SE   uint16 // sign and exponent
}

// YMM is a vector register; XMM is its first two words.
type YMM [4]uint64

// FPU is the x87, MMX, SSE and AVX state.
type FPU struct {
	FCW, FSW, FOP uint16
	FTW           uint8  // a bit a physical register, 1 = not empty (FXSAVE's abridged form)
	FIP, FDP      uint64 // in 64-bit form; FCS and FDS below are used outside of it
	FCS, FDS      uint16
	R             [8]F80 // physical R0-R7, not stack relative: ST(i) is R[(TOP+i)&7], MMi is R[i].Mant
	MXCSR         uint32
	Vec           [16]YMM
}

// Regs is what a profiler and an introspection tool ask of a CPU.
type Regs struct {
	GPR                     [16]uint64 // indexed by RAX … R15
	RIP, RFLAGS             uint64
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER, XCR0              uint64
	Seg                     [6]Segment // indexed by ES … GS
	LDTR, TR                Segment
	GDTR, IDTR              Table
	KernelGSBase            uint64
	LSTAR                   uint64
}

// CPL is the current privilege level.
func (r *Regs) CPL() int { return int(r.Seg[SS].Access>>SegDPLShift) & 3 }

// An Event is an exception or interrupt whose delivery was under way.
type Event struct {
	Valid        bool
	Vector       uint8
	HasErrorCode bool
	ErrorCode    uint32
	Software     bool // INT n, INT3, INTO
}

// MPState is what a processor does between instructions.
type MPState uint8

// States of a processor (as KVM_MP_STATE_*).
const (
	Runnable MPState = iota
	WaitForSIPI
	Halted
)

// State is all of a processor's state between two Runs.
type State struct {
	Regs
	FPU       FPU
	DR        [8]uint64
	MSR       map[uint32]uint64 // every MSR that is not a field here
	TSC       uint64            // at the moment of the call
	TSCHz     uint64            // its rate; 0: the backend's own
	MP        MPState
	Pending   Event
	NMI       bool // an NMI is pending
	NMIMasked bool
	Shadow    bool   // the instruction after STI, or MOV/POP to SS: interrupts wait
	LAPIC     []byte // the register page, where the backend keeps the LAPIC; else empty
	XSAVE     []byte // components beyond FPU, in standard format; empty where there are none
}

// Bits of RFLAGS.
const (
	CF    = 1 << 0
	Fixed = 1 << 1 // always set
	PF    = 1 << 2
	AF    = 1 << 4
	ZF    = 1 << 6
	SF    = 1 << 7
	TF    = 1 << 8
	IF    = 1 << 9
	DF    = 1 << 10
	OF    = 1 << 11
	IOPL  = 3 << 12
	NT    = 1 << 14
	RF    = 1 << 16
	VM    = 1 << 17
	AC    = 1 << 18
	VIF   = 1 << 19
	VIP   = 1 << 20
	ID    = 1 << 21
)

// Status is the flags that arithmetic sets.
const Status = CF | PF | AF | ZF | SF | OF

// Bits of CR0.
const (
	CR0PE = 1 << 0
	CR0MP = 1 << 1
	CR0EM = 1 << 2
	CR0TS = 1 << 3
	CR0ET = 1 << 4
	CR0NE = 1 << 5
	CR0WP = 1 << 16
	CR0AM = 1 << 18
	CR0NW = 1 << 29
	CR0CD = 1 << 30
	CR0PG = 1 << 31
)

// Bits of CR4.
const (
	CR4VME        = 1 << 0
	CR4PVI        = 1 << 1
	CR4TSD        = 1 << 2
	CR4DE         = 1 << 3
	CR4PSE        = 1 << 4
	CR4PAE        = 1 << 5
	CR4MCE        = 1 << 6
	CR4PGE        = 1 << 7
	CR4PCE        = 1 << 8
	CR4OSFXSR     = 1 << 9
	CR4OSXMMEXCPT = 1 << 10
	CR4UMIP       = 1 << 11
	CR4LA57       = 1 << 12
	CR4FSGSBASE   = 1 << 16
	CR4PCIDE      = 1 << 17
	CR4OSXSAVE    = 1 << 18
	CR4SMEP       = 1 << 20
	CR4SMAP       = 1 << 21
	CR4PKE        = 1 << 22
)

// Bits of EFER.
const (
	EFERSCE = 1 << 0
	EFERLME = 1 << 8
	EFERLMA = 1 << 10
	EFERNXE = 1 << 11
)

// Vector is an exception's number (SDM vol. 3A table 6-1).
type Vector uint8

// The exceptions, by their names in the SDM.
const (
	DE Vector = 0
	DB Vector = 1
	// NMIVector is the non-maskable interrupt's.
	NMIVector Vector = 2
	BP        Vector = 3
	OFV       Vector = 4 // #OF; OF is the flag
	BR        Vector = 5
	UD        Vector = 6
	NM        Vector = 7
	// DF8 is #DF; DF is the flag.
	DF8 Vector = 8
	TS  Vector = 10
	NP  Vector = 11
	// SSV is #SS; SS is the register.
	SSV Vector = 12
	GP  Vector = 13
	// PFV is #PF; PF is the flag.
	PFV Vector = 14
	MF  Vector = 16
	// ACV is #AC; AC is the flag.
	ACV Vector = 17
	MC  Vector = 18
	XM  Vector = 19
	// NoVector says that no exception was raised.
	NoVector Vector = 0xFF
)

// Bits of a page fault's error code (SDM vol. 3A 4.7).
const (
	PFPresent = 1 << 0
	PFWrite   = 1 << 1
	PFUser    = 1 << 2
	PFRsvd    = 1 << 3
	PFFetch   = 1 << 4
)
