#include "textflag.h"

// func enter(stub, state, code uintptr)
//
// The entry stub (stubs.go) saves RBP and RSP and gives them back. It may change all other registers: the wrapper that calls a function of this
// ABI restores g and X15 from where they belong.
TEXT ·enter(SB), NOSPLIT, $8-24
	MOVQ stub+0(FP), AX
	MOVQ state+8(FP), DI
	MOVQ code+16(FP), SI
	CALL AX
	RET

// func faultHandlerAddr() uintptr
TEXT ·faultHandlerAddr(SB), NOSPLIT, $0-8
	LEAQ ·faultHandler(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func urgentHandlerAddr() uintptr
TEXT ·urgentHandlerAddr(SB), NOSPLIT, $0-8
	LEAQ ·urgentHandler(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// Offsets in the kernel's struct ucontext (arch/x86/include/uapi/asm/sigcontext.h).
#define UC_RSP 160
#define UC_RIP 168

// faultHandler is the handler of signals that an instruction causes: DI signal, SI siginfo, DX ucontext. Translated code goes on at the exit for
// faults, with the registers as they were; all else is the Go runtime's.
TEXT ·faultHandler(SB), NOSPLIT|NOFRAME, $0
	MOVQ UC_RIP(DX), AX
	CMPQ AX, ·region+0(SB)
	JB chain
	CMPQ AX, ·region+8(SB)
	JAE chain
	MOVQ UC_RSP(DX), CX
	ADDQ ·region+16(SB), CX
	MOVL DI, 64(CX)
	MOVQ AX, 72(CX)
	MOVQ ·region+32(SB), AX
	MOVQ AX, UC_RIP(DX)
	RET
chain:
	LEAQ ·goHandlers(SB), AX
	MOVLQSX DI, CX
	MOVQ (AX)(CX*8), AX
	JMP AX

// urgentHandler is SIGURG's, by which the Go runtime asks a thread to stop soon: translated code is left at its next look at the poll word.
TEXT ·urgentHandler(SB), NOSPLIT|NOFRAME, $0
	MOVQ UC_RIP(DX), AX
	CMPQ AX, ·region+0(SB)
	JB chain
	CMPQ AX, ·region+8(SB)
	JAE chain
	MOVQ UC_RSP(DX), CX
	ADDQ ·region+24(SB), CX
	MOVL ·region+40(SB), AX
	LOCK
	ORL AX, (CX)
chain:
	LEAQ ·goHandlers(SB), AX
	MOVLQSX DI, CX
	MOVQ (AX)(CX*8), AX
	JMP AX
