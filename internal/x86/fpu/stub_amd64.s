#include "textflag.h"
#include "funcdata.h"

// Go code runs with all SIMD exceptions masked and round to nearest; status flags are nothing to it.
DATA goMXCSR<>+0(SB)/4, $0x1F80
GLOBL goMXCSR<>(SB), RODATA, $4

// The stubs' convention (stub_unsafe.go): SI, DI, R8, R10: operands; AX, CX, DX: general registers and flags, in and out;
// R9, R11 and SP are preserved; XMM0-4, MM0-7 and the flags are lost. A stub pushes at most 8 bytes, and leaves the upper halves of YMM registers zero.

#define LOAD(r) \
	MOVQ 0(r), SI  \
	MOVQ 8(r), DI  \
	MOVQ 16(r), R8 \
	MOVQ 24(r), AX \
	MOVQ 32(r), CX \
	MOVQ 40(r), DX \
	MOVQ 56(r), R10

// func invoke(stub uintptr, r *regs)
TEXT ·invoke(SB), NOSPLIT, $32-16
	MOVQ r+8(FP), R9
	LOAD(R9)
	MOVQ stub+0(FP), BX
	CALL BX
	MOVQ AX, 24(R9)
	MOVQ CX, 32(R9)
	RET

// func invokeFP(stub uintptr, r *regs)
TEXT ·invokeFP(SB), NOSPLIT, $32-16
	MOVQ r+8(FP), R9
	LDMXCSR 48(R9)
	LOAD(R9)
	MOVQ stub+0(FP), BX
	CALL BX
	STMXCSR 48(R9)
	MOVQ AX, 24(R9)
	MOVL 48(R9), AX
	ANDL $0xFFC0, AX
	CMPL AX, $0x1F80
	JEQ done
	LDMXCSR goMXCSR<>(SB)
done:
	RET

// func invokeX87(stub uintptr, r *regs, img *byte)
//
// The guest's own masks are in force. An unmasked exception stays pending in the status word, which FXSAVE stores without reporting it
// and FNINIT clears, so no signal comes of it.
TEXT ·invokeX87(SB), NOSPLIT, $32-24
	MOVQ r+8(FP), R9
	MOVQ img+16(FP), R11
	FXRSTOR64 (R11)
	LOAD(R9)
	MOVQ stub+0(FP), BX
	CALL BX
	FXSAVE64 (R11)
	MOVQ AX, 24(R9)
	MOVW 2(R11), AX
	TESTB $0x80, AX // ES
	JNE pending
	EMMS
	RET
pending:
	BYTE $0xDB; BYTE $0xE3 // FNINIT
	RET
