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
)

// A CPU is one processor. Its methods belong to the goroutine that runs it, save where they say otherwise.
type CPU struct {
	// What every instruction touches comes first.
	gpr  [16]uint64
	base uint64        // RIP of the running block's first instruction
	rip  uint64        // RIP, between blocks; inside of one, RIP is base plus the op's offset
	tlb  *tlb          // data translations of the present privilege
	exit uint8         // which of the block's links to follow
	poll atomic.Uint32 // not zero: look at the reasons below before the next block

	cc    lazyFlags // status flags, not yet computed
	flags uint64    // RFLAGS, save the status flags in cc

	seg  [6]x86.Segment
	mode decode.Mode // size of code
	cpl  uint8
	long bool // IA-32e mode: EFER.LMA
	flat bool // 64-bit mode: segment bases are zero, save FS and GS

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

	// The fault that the last handler raised, when it returned false.
	fault fault

	// The machine around it.
	ID    int
	io    hv.IO
	ram   *mem.Memory
	tsc   tscClock
	codes *codeCache // decoded blocks
	tlbs  tlbSet
	stats counters
}

// A fault is an exception on its way to delivery.
type fault struct {
	vec  x86.Vector
	code uint32 // error code
	has  bool   // there is an error code
	trap bool   // delivered with RIP behind the instruction
	soft bool   // INT n, INT3, INTO
}

// An op is one instruction of a block, ready to run.
type op struct {
	fn    handler
	imm   uint64 // immediate, sign- or zero-extended; or a branch's target as offset from the block's start
	disp  uint64 // displacement; of a RIP-relative operand with the offset of the next instruction from the block's start added
	next  uint16 // offset of the next instruction from the block's start
	ip    uint16 // offset of this one
	dst   uint8  // register numbers
	src   uint8
	mbase uint8
	index uint8
	scale uint8 // shift: 0 to 3
	mseg  uint8
	size  uint8
	aux   uint8
	inst  *decode.Inst // all of it, for what is rare
	vec   *vecOp       // instructions of package fpu
}

// A handler executes o. It returns false when the block cannot go on: c.fault holds an exception, or c.stop why.
// A handler that returns false for an exception has changed nothing that the SDM says is unchanged.
type handler func(c *CPU, o *op) bool
