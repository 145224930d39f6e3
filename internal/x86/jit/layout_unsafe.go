package jit

// The invariant of this file: enter_amd64.s has the offsets of Signal and FaultPC.

import "unsafe"

// Offsets in Frame.
const (
	frameSP       = int32(unsafe.Offsetof(Frame{}.hostSP))
	frameSaved    = int32(unsafe.Offsetof(Frame{}.saved))
	frameJumps    = int32(unsafe.Offsetof(Frame{}.jumps))
	frameHost     = int32(unsafe.Offsetof(Frame{}.host))
	frameBase     = int32(unsafe.Offsetof(Frame{}.base))
	frameVecEnter = int32(unsafe.Offsetof(Frame{}.vec))
	frameBlock    = int32(unsafe.Offsetof(Frame{}.Block))
	frameWord     = int32(unsafe.Offsetof(Frame{}.Word))
	frameMXCSR    = int32(unsafe.Offsetof(Frame{}.mxcsr))
	frameVecLive  = int32(unsafe.Offsetof(Frame{}.vecLive))
)

var (
	_ [unsafe.Offsetof(Frame{}.Signal) - 64]struct{}
	_ [64 - unsafe.Offsetof(Frame{}.Signal)]struct{}
	_ [unsafe.Offsetof(Frame{}.FaultPC) - 72]struct{}
	_ [72 - unsafe.Offsetof(Frame{}.FaultPC)]struct{}
)
