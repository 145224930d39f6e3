#include "textflag.h"

// func cas128(p *uint8, old, new *[2]uint64) bool
TEXT ·cas128(SB), NOSPLIT, $0-25
	MOVQ p+0(FP), DI
	MOVQ old+8(FP), SI
	MOVQ new+16(FP), R8
	MOVQ 0(SI), AX
	MOVQ 8(SI), DX
	MOVQ 0(R8), BX
	MOVQ 8(R8), CX
	LOCK
	CMPXCHG16B (DI)
	SETEQ ret+24(FP)
	MOVQ AX, 0(SI)
	MOVQ DX, 8(SI)
	RET
