// Package decode reads x86-64 instructions, in 16-, 32- and 64-bit code, by a table.
package decode

// Mode is the size of code: what CS says (SDM vol. 3A 3.4.5).
type Mode uint8

// The sizes of code.
const (
	Mode16 Mode = 2
	Mode32 Mode = 4
	Mode64 Mode = 8
)

// Prefix is the set of prefixes an instruction carries.
type Prefix uint16

// The prefixes. OpSize, RepE and RepNE are set also where they are a mandatory prefix, and where VEX stands for one; RexB to RexW too, where VEX has them.
const (
	Lock   Prefix = 1 << iota
	RepE          // F3
	RepNE         // F2
	OpSize        // 66
	AdSize        // 67
	SegPfx        // a segment override; Inst.Seg has it
	RexB
	RexX
	RexR
	RexW
	Rex // any REX: SPL, BPL, SIL, DIL instead of AH, CH, DH, BH
	Vex // VEX, of two or three bytes
	VexL
)

// Kind is where an operand is.
type Kind uint8

// The kinds of operands.
const (
	None  Kind = iota
	GPR        // general register Reg, its low Size bytes
	High       // AH, CH, DH, BH: bits 8-15 of general register Reg (0-3)
	Mem        // Inst.Mem, Size bytes (0 where the instruction defines its own layout)
	Imm        // Inst.Imm
	Imm2       // Inst.Imm2: the second immediate of ENTER, the selector of a far pointer (Inst.Imm is its offset)
	Rel        // branch target: the next instruction's address plus Inst.Imm
	SReg       // segment register
	CReg       // control register
	DReg       // debug register
	XMM        // vector register; Size says how many of its bytes count: 32 is a YMM register
	MMX        // MMX register
	STReg      // ST(Reg)
)

// An Arg is an operand. Implicit operands (AL of MUL, rCX of LOOP, strings' rSI and rDI) are listed where the SDM writes them as operands,
// and otherwise known from Op.
type Arg struct {
	Kind  Kind
	Reg   uint8
	Size  uint8 // bytes: 1, 2, 4, 8, 10, 16, 32; 6 and 10 for far pointers; of gathers' Mem an element's; 0 where it varies (FXSAVE, FNSAVE …)
	Place Place
}

// Place is where in the instruction an operand is written: what a program that encodes it anew must know.
type Place uint8

// The places of operands.
const (
	Elsewhere Place = iota // implied, an immediate, a branch target, a moffs address
	InReg                  // ModRM.reg
	InRM                   // ModRM.rm, with what belongs to it
	InOpcode               // the opcode's low three bits
	InVvvv                 // VEX.vvvv
	InIs4                  // bits 4-7 of the immediate byte
)

// Register numbers of Memory with a meaning of their own.
const (
	NoReg = 0xFF // no base, no index
	RIP   = 0xFE // base: the next instruction's address
)

// A Memory is the memory operand: Seg:[Base + Index*Scale + Disp], cut to AddrSize.
type Memory struct {
	Seg         uint8 // x86.ES … x86.GS, the override or the default (SS for rSP and rBP bases)
	Base, Index uint8 // general registers, NoReg, RIP; Index is a vector register where Flags has VSIB
	Scale       uint8 // 1, 2, 4, 8
	Disp        int64
}

// An Inst is a decoded instruction.
type Inst struct {
	Op       Op
	Len      uint8 // bytes, 1 to 15
	Mode     Mode
	Size     uint8 // operand size in bytes: 1, 2, 4, 8
	AddrSize uint8 // address size in bytes: 2, 4, 8
	Seg      uint8 // segment of the memory operand or of a string source: override or default
	Prefix   Prefix
	Map      uint8 // opcode map: 0 one byte, 1 0F, 2 0F38, 3 0F3A; the same with VEX
	Opcode   uint8 // the last opcode byte
	Pfx      uint8 // mandatory prefix of a vector instruction, or VEX.pp as that: 0, 0x66, 0xF3, 0xF2
	ModRM    uint8 // where there is one
	Flags    Flags
	NArgs    uint8
	Args     [4]Arg // destination first
	Mem      Memory // of the one Mem operand
	Imm      int64  // sign- or zero-extended as the instruction does
	Imm2     int64
}

// Flags is what the table says of an instruction.
type Flags uint32

// The flags.
const (
	HasModRM    Flags = 1 << iota
	MemRead           // reads its memory operand (not LEA, NOP, PREFETCH)
	MemWrite          // writes its memory operand
	Lockable          // LOCK is allowed, with a memory destination
	Jump              // may set rIP other than to the next instruction: ends a block
	Cond              // conditional: may also go on behind
	EndBlock          // changes how the following code is read or run (MOV to CR, POPF, STI, WRMSR, IRET …): ends a block
	Privileged        // CPL 0 only
	X87               // needs CR0.EM=0, CR0.TS=0; and the x87 exception check where Wait is set
	Wait              // reports pending x87 exceptions first
	MMXUnit           // MMX: as X87, and resets TOP and the tags
	SSE               // needs CR4.OSFXSR=1, CR0.EM=0, CR0.TS=0
	Aligned           // the memory operand must be aligned to its size, 16 or 32 bytes, else #GP(0)
	Vec               // runs in package fpu: X87, MMXUnit or SSE instruction, or FXSAVE's family
	ReadsFlags        // reads status flags
	WritesFlags       // writes status flags
	String            // a string instruction: may carry REP
	SIMDExc           // may raise #XM
	AVX               // needs CR4.OSXSAVE=1, XCR0's SSE and AVX bits, CR0.TS=0; not in real and virtual-8086 mode
	VSIB              // Mem's index is a vector: one address an element
	ReadsDst          // of VEX: depends on the register that its first operand names too
	WritesNone        // of SSE, AVX and MMX: writes none of its explicit operands
	Lig               // VEX.L is ignored
)
