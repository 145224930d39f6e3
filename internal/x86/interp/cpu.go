//go:generate go run ./gen

// Package interp is the reference: it executes x86-64 instructions one at a time, as the SDM says.
//
// Code is decoded once into blocks of ops, each a handler and its operands; data goes through a software TLB. Both are
// caches only: dropping them at any instruction boundary changes nothing.
package interp

import (
	"sync/atomic"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/jit"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// A CPU is one processor. Its methods belong to the goroutine that runs it, save where they say otherwise.
type CPU struct {
	// What every instruction touches comes first; regs_unsafe.go relies on gpr being the first of all.
	gpr  [32]uint64    // the general registers, then the pseudo registers below
	cc   lazyFlags     // status flags, not yet computed
	tlb  *tlb          // data translations of the present privilege
	poll atomic.Uint32 // not zero: look at the reasons before the next block
	stop stop          // why a handler returned false, or a block's end nil

	gen, ggen uint64 // what jump cache entries of the present address space and privilege, and of its global pages, are tagged with

	frame jit.Frame // of translated code

	flags uint64 // RFLAGS, save the status flags, which are in cc
	rip   uint64 // RIP, between blocks; inside of one, RIP is gpr[regBase] plus the op's offset

	seg  [6]x86.Segment
	mode decode.Mode // size of code
	cpl  uint8
	long bool // IA-32e mode: EFER.LMA
	flat bool // 64-bit code: segment bases are zero, save those of FS and GS
	step bool // RFLAGS.TF is set or a breakpoint is armed: one instruction at a time

	fpu x86.FPU

	// System state.
	cr0, cr2, cr3, cr4, efer, xcr0 uint64
	ldtr, tr                       x86.Segment
	gdtr, idtr                     x86.Table
	dr                             [8]uint64
	msr                            msrs
	shadow                         bool // interrupts wait one instruction: STI, MOV or POP to SS
	nmiMasked                      bool
	halted                         bool

	space   mmu.Space // how the control registers translate addresses
	aligned bool      // alignment is checked: CR0.AM, RFLAGS.AC and CPL 3
	ext     uint32    // EXT bit of error codes raised now: 1 during the delivery of an event that no instruction asked for
	dbHits  uint64    // data and I/O breakpoints hit by the instruction being stepped
	dbHeld  uint64    // those of one that loaded SS, told behind the next instruction, or never if that faults
	tf      bool      // RFLAGS.TF was set before it
	noTrap  bool      // it loaded SS: no debug trap behind it

	// The fault that the last handler raised, when it returned false.
	fault fault

	// The machine around it.
	ID      int
	vm      *VM
	io      hv.IO
	ram     *mem.Memory
	tsc     tscClock
	mail    mailbox
	codes   codeCache // decoded blocks
	native  *native   // translated ones; nil: this CPU only interprets
	jc      jumpCache
	env     fpu.Env
	tlbs    tlbSet
	stats   counters
	sample  atomic.Pointer[sampling] // who waits for the registers
	builder builder

	features decode.Features // what the decoder knows, as CPUID says
	at       uint64          // RIP of the block that ran last
}

// Pseudo registers in CPU.gpr, so that every address is base + index<<scale + disp.
const (
	regZero = 16 // always 0: no base, no index
	regBase = 17 // RIP at offset 0 of the running block's page
	regSeg  = 18 // bases of ES … GS as 64-bit code sees them
	regEA   = 24 // a linear address computed by the op before
)

// stop says why a block ended early.
type stop uint8

const (
	stopNone  stop = iota
	stopFault      // CPU.fault is to be delivered
	stopJump       // go on at CPU.rip, after a completed instruction
	stopAgain      // go on at the instruction that stopped: a REP was interrupted
	stopRetry      // execute the instruction that stopped, which did nothing: its block died
)

// A fault is an exception on its way to delivery.
type fault struct {
	vec   x86.Vector
	code  uint32 // error code
	has   bool   // there is an error code
	trap  bool   // delivered with RIP behind the instruction
	soft  bool   // INT n, INT3, INTO
	len   uint8  // of the INT n, INT3, INTO or INT1: where its delivery faults, RIP is at the instruction
	intr  bool   // an external interrupt, not an exception
	canon bool   // #GP for a non-canonical address: #SS if it was a stack reference
}

// An op is one instruction of a block, or a part of one, ready to run.
type op struct {
	fn    handler
	imm   uint64 // immediate, sign- or zero-extended
	disp  uint64 // displacement; RIP-relative ones have the offset of the next instruction added
	ip    uint16 // offset of this instruction in its page
	next  uint16 // offset of the next instruction from the same page
	dst   uint8  // byte offset of a register in CPU.gpr
	src   uint8  // likewise
	mbase uint8  // byte offsets again
	index uint8
	scale uint8 // shift: 0 to 3
	aux   uint8
	mseg  uint8  // segment register of the memory operand
	size  uint8  // operand size in bytes
	inst  *whole // all of it, for what is rare; nil for the common
}

// whole is an instruction with all that the decoder knows of it.
type whole struct {
	decode.Inst
	vec *vecOp // instructions of package fpu
}

// A handler executes o. It returns false when the block cannot go on: c.stop says why, and c.fault holds an exception.
// A handler that returns false for an exception has changed nothing that the SDM says is unchanged.
type handler func(c *CPU, o *op) bool

// raise stops with an exception without an error code. It returns false, for a handler to return.
func (c *CPU) raise(vec x86.Vector) bool {
	c.fault = fault{vec: vec}
	c.stop = stopFault
	return false
}

// raiseCode stops with an exception with an error code. It returns false.
func (c *CPU) raiseCode(vec x86.Vector, code uint32) bool {
	c.fault = fault{vec: vec, code: code, has: true}
	c.stop = stopFault
	return false
}

// jumpTo ends the instruction with RIP set to rip. It returns false.
func (c *CPU) jumpTo(rip uint64) bool {
	c.rip = rip
	c.stop = stopJump
	return false
}

// ipOf is the address of o, nextIP that of the instruction behind it.
func (c *CPU) ipOf(o *op) uint64   { return c.maskIP(c.gpr[regBase] + uint64(o.ip)) }
func (c *CPU) nextIP(o *op) uint64 { return c.maskIP(c.gpr[regBase] + uint64(o.next)) }

func (c *CPU) maskIP(rip uint64) uint64 {
	if c.mode == decode.Mode64 {
		return rip
	}
	return rip & 0xFFFFFFFF
}
