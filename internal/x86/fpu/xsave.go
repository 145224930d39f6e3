package fpu

import (
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// State components (SDM vol. 1 13.1).
const (
	CompX87 = 1 << 0
	CompSSE = 1 << 1
	CompAVX = 1 << 2
)

const (
	legacySize = 512
	xsaveBase  = 576     // legacy region and header
	compact    = 1 << 63 // XCOMP_BV: compacted format
)

// extended is the components after the header: CPUID leaf 0DH's facts. A new component is a row.
var extended = []struct {
	bit    uint64
	offset int // in standard format
	size   int
}{
	{CompAVX, 576, 256},
}

// SupportedXCR0 is the components that this package can save. What the guest's CPUID offers is the CPU model's to say.
const SupportedXCR0 = CompX87 | CompSSE | CompAVX

// AreaSize is how many bytes an XSAVE area with the components of mask has (CPUID.(EAX=0DH,ECX=0):EBX; compacted: ECX=1:EBX).
func AreaSize(mask uint64, compacted bool) int {
	n := xsaveBase
	for _, c := range extended {
		switch {
		case mask&c.bit == 0:
		case compacted:
			n += c.size
		default:
			n = c.offset + c.size
		}
	}
	return n
}

// Component is where the state component of that number, 2 or higher, is in the standard format, and its size in bytes (CPUID.(EAX=0DH)).
func Component(n uint32) (offset, size int) {
	for _, c := range extended {
		if c.bit == 1<<n {
			return c.offset, c.size
		}
	}
	return 0, 0
}

// OperandSize is how many bytes of Env.Mem the memory operand of in has: for those whose Args say 0.
// e must have RAX, RDX and XCR0.
func OperandSize(in *decode.Inst, e *Env) int {
	switch in.Op {
	case decode.FXSAVE, decode.FXRSTOR:
		return legacySize
	case decode.XSAVE, decode.XSAVEOPT, decode.XRSTOR:
		return AreaSize(rfbm(e), false)
	case decode.XSAVEC, decode.XSAVES, decode.XRSTORS:
		return AreaSize(rfbm(e), true)
	case decode.FNSTENV, decode.FLDENV:
		return envSize(in)
	case decode.FNSAVE, decode.FRSTOR:
		return envSize(in) + 80
	}
	return 0
}

// rfbm is the requested-feature bitmap.
func rfbm(e *Env) uint64 {
	return (uint64(uint32(e.RDX))<<32 | uint64(uint32(e.RAX))) & e.XCR0 & SupportedXCR0
}

// saveRestore returns what executes FXSAVE's and XSAVE's families.
func saveRestore(in *decode.Inst) Fn {
	wide := in.Mode == decode.Mode64 && in.Prefix&decode.RexW != 0
	xmms := 8
	if in.Mode == decode.Mode64 {
		xmms = 16
	}
	switch in.Op {
	case decode.FXSAVE:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			p := e.Mem[:legacySize]
			storeX87(s, p, wide)
			storeMXCSR(s, p)
			storeXMM(s, p, xmms)
			return x86.NoVector
		}
	case decode.FXRSTOR:
		return func(s *x86.FPU, e *Env) x86.Vector {
			p := e.Mem[:legacySize]
			if le.Uint32(p[24:])&^MXCSRMask != 0 {
				return x86.GP
			}
			loadX87(s, p, wide)
			s.MXCSR = le.Uint32(p[24:])
			loadXMM(s, p, xmms)
			return x86.NoVector
		}
	case decode.XSAVE:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			m := rfbm(e)
			saveStandard(s, e.Mem[:], m, m, wide, xmms)
			return x86.NoVector
		}
	case decode.XSAVEOPT:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			m := rfbm(e)
			saveStandard(s, e.Mem[:], m, m&inUse(s), wide, xmms)
			return x86.NoVector
		}
	case decode.XSAVEC, decode.XSAVES:
		return func(s *x86.FPU, e *Env) x86.Vector {
			e.NoStore = false
			saveCompact(s, e.Mem[:], rfbm(e), wide, xmms)
			return x86.NoVector
		}
	case decode.XRSTOR, decode.XRSTORS:
		supervisor := in.Op == decode.XRSTORS
		return func(s *x86.FPU, e *Env) x86.Vector {
			h := header{le.Uint64(e.Mem[legacySize:]), le.Uint64(e.Mem[legacySize+8:])}
			if supervisor && h.xcomp&compact == 0 || h.check(e.Mem[:], e.XCR0) != nil {
				return x86.GP
			}
			return restore(s, e.Mem[:], h, rfbm(e), wide, xmms)
		}
	}
	return nil
}

// storeX87 writes the first 24 bytes and the registers of the legacy region (SDM vol. 1 table 10-2, 13.5.1).
func storeX87(s *x86.FPU, p []byte, wide bool) {
	le.PutUint16(p[0:], s.FCW)
	le.PutUint16(p[2:], s.FSW)
	p[4], p[5] = s.FTW, 0
	le.PutUint16(p[6:], s.FOP)
	if wide {
		le.PutUint64(p[8:], s.FIP)
		le.PutUint64(p[16:], s.FDP)
	} else {
		le.PutUint64(p[8:], uint64(uint32(s.FIP))|uint64(s.FCS)<<32)
		le.PutUint64(p[16:], uint64(uint32(s.FDP))|uint64(s.FDS)<<32)
	}
	for i := range 8 {
		r := s.R[(top(s)+i)&7]
		le.PutUint64(p[32+16*i:], r.Mant)
		le.PutUint64(p[40+16*i:], uint64(r.SE))
	}
}

func loadX87(s *x86.FPU, p []byte, wide bool) {
	s.FCW = le.Uint16(p[0:])&fcwValid | fcwFixed
	setFSW(s, le.Uint16(p[2:]))
	s.FTW = p[4]
	s.FOP = le.Uint16(p[6:]) & 0x7FF
	s.FIP, s.FDP, s.FCS, s.FDS = le.Uint64(p[8:]), le.Uint64(p[16:]), 0, 0
	if !wide {
		s.FIP, s.FDP = uint64(uint32(s.FIP)), uint64(uint32(s.FDP))
	}
	for i := range 8 {
		s.R[(top(s)+i)&7] = x86.F80{Mant: le.Uint64(p[32+16*i:]), SE: le.Uint16(p[40+16*i:])}
	}
}

func initX87(s *x86.FPU) {
	fninit(s)
	s.R = [8]x86.F80{}
}

func storeMXCSR(s *x86.FPU, p []byte) {
	le.PutUint32(p[24:], s.MXCSR)
	le.PutUint32(p[28:], MXCSRMask)
}

func storeXMM(s *x86.FPU, p []byte, n int) {
	for i := range n {
		le.PutUint64(p[160+16*i:], s.Vec[i][0])
		le.PutUint64(p[168+16*i:], s.Vec[i][1])
	}
}

func loadXMM(s *x86.FPU, p []byte, n int) {
	for i := range n {
		s.Vec[i][0], s.Vec[i][1] = le.Uint64(p[160+16*i:]), le.Uint64(p[168+16*i:])
	}
}

func initXMM(s *x86.FPU, n int) {
	for i := range n {
		s.Vec[i][0], s.Vec[i][1] = 0, 0
	}
}

// storeExtended writes one component after the header. p begins with it.
func storeExtended(s *x86.FPU, p []byte, bit uint64, n int) {
	if bit == CompAVX {
		for i := range n {
			le.PutUint64(p[16*i:], s.Vec[i][2])
			le.PutUint64(p[16*i+8:], s.Vec[i][3])
		}
	}
}

// loadExtended reads it; p nil means the initial state.
func loadExtended(s *x86.FPU, p []byte, bit uint64, n int) {
	if bit == CompAVX {
		for i := range n {
			s.Vec[i][2], s.Vec[i][3] = 0, 0
			if p != nil {
				s.Vec[i][2], s.Vec[i][3] = le.Uint64(p[16*i:]), le.Uint64(p[16*i+8:])
			}
		}
	}
}

// InUse is what XGETBV with ECX=1 says: the components of xcr0 that are not in their initial state, MXCSR counting as SSE's (SDM vol. 1 13.2, 13.6).
func InUse(s *x86.FPU, xcr0 uint64) uint64 {
	use := inUse(s)
	if s.MXCSR != mxcsrInit {
		use |= CompSSE
	}
	return use & xcr0
}

// inUse is XINUSE: the components that are not in their initial state. MXCSR does not count (SDM vol. 1 13.6).
func inUse(s *x86.FPU) uint64 {
	var m uint64
	if s.FCW != fcwInit || s.FSW != 0 || s.FTW != 0 || s.FOP != 0 || s.FIP != 0 || s.FDP != 0 || s.R != [8]x86.F80{} {
		m |= CompX87
	}
	for i := range s.Vec {
		v := &s.Vec[i]
		if v[0]|v[1] != 0 {
			m |= CompSSE
		}
		if v[2]|v[3] != 0 {
			m |= CompAVX
		}
	}
	return m
}

// saveStandard writes the components of write (a part of mask) and the header (SDM vol. 1 13.7, 13.9).
func saveStandard(s *x86.FPU, p []byte, mask, write uint64, wide bool, xmms int) {
	if write&CompX87 != 0 {
		storeX87(s, p, wide)
	}
	if mask&(CompSSE|CompAVX) != 0 {
		storeMXCSR(s, p)
	}
	if write&CompSSE != 0 {
		storeXMM(s, p, xmms)
	}
	for _, c := range extended {
		if write&c.bit != 0 {
			storeExtended(s, p[c.offset:c.offset+c.size], c.bit, xmms)
		}
	}
	bv := le.Uint64(p[legacySize:])
	le.PutUint64(p[legacySize:], bv&^mask|inUse(s)&mask)
}

// saveCompact is XSAVEC and XSAVES: the initial optimisation, and components without gaps (SDM vol. 1 13.10, 13.11).
func saveCompact(s *x86.FPU, p []byte, mask uint64, wide bool, xmms int) {
	use := InUse(s, mask)
	if use&CompX87 != 0 {
		storeX87(s, p, wide)
	}
	if use&CompSSE != 0 {
		storeMXCSR(s, p)
		storeXMM(s, p, xmms)
	}
	off := xsaveBase
	for _, c := range extended {
		if use&c.bit != 0 {
			storeExtended(s, p[off:off+c.size], c.bit, xmms)
		}
		if mask&c.bit != 0 {
			off += c.size
		}
	}
	le.PutUint64(p[legacySize:], use)
	le.PutUint64(p[legacySize+8:], mask|compact)
}

// A header is the first two words of an XSAVE header: XSTATE_BV and XCOMP_BV.
type header struct{ xstate, xcomp uint64 }

// check is the conditions under which XRSTOR raises #GP for its header (SDM vol. 1 13.8.1, 13.8.2).
func (h header) check(p []byte, xcr0 uint64) error {
	from := 16
	switch {
	case h.xcomp&compact == 0:
		if h.xstate&^xcr0 != 0 || h.xcomp != 0 {
			return fmt.Errorf("XSTATE_BV %#x, XCOMP_BV %#x: more than XCR0 %#x", h.xstate, h.xcomp, xcr0)
		}
		from = 8
	case h.xcomp&^compact&^xcr0 != 0 || h.xstate&^h.xcomp != 0 || h.xstate&compact != 0:
		return fmt.Errorf("XSTATE_BV %#x, XCOMP_BV %#x: not within XCR0 %#x", h.xstate, h.xcomp, xcr0)
	default:
		for _, b := range p[legacySize+16 : xsaveBase] {
			if b != 0 {
				return errors.New("reserved header bytes are not zero")
			}
		}
	}
	for _, b := range p[legacySize+from : legacySize+24] {
		if b != 0 {
			return errors.New("reserved header bytes are not zero")
		}
	}
	return nil
}

// restore loads the components of mask, or puts them in their initial state where the area does not have them.
func restore(s *x86.FPU, p []byte, h header, mask uint64, wide bool, xmms int) x86.Vector {
	compacted := h.xcomp&compact != 0
	have := h.xstate & mask
	mxcsr := s.MXCSR
	switch {
	case compacted && have&CompSSE != 0, !compacted && mask&(CompSSE|CompAVX) != 0:
		if mxcsr = le.Uint32(p[24:]); mxcsr&^MXCSRMask != 0 {
			return x86.GP
		}
	case compacted && mask&CompSSE != 0:
		mxcsr = mxcsrInit
	}
	s.MXCSR = mxcsr
	switch {
	case have&CompX87 != 0:
		loadX87(s, p, wide)
	case mask&CompX87 != 0:
		initX87(s)
	}
	switch {
	case have&CompSSE != 0:
		loadXMM(s, p, xmms)
	case mask&CompSSE != 0:
		initXMM(s, xmms)
	}
	next := xsaveBase
	for _, c := range extended {
		off := c.offset
		if compacted {
			off = next
			if h.xcomp&c.bit != 0 {
				next += c.size
			}
		}
		switch {
		case have&c.bit != 0:
			loadExtended(s, p[off:off+c.size], c.bit, xmms)
		case mask&c.bit != 0:
			loadExtended(s, nil, c.bit, xmms)
		}
	}
	return x86.NoVector
}

// AppendImage appends s to b as an XSAVE area in standard format with all components of xcr0 present, as KVM_GET_XSAVE gives it.
func AppendImage(b []byte, s *x86.FPU, xcr0 uint64) []byte {
	xcr0 &= SupportedXCR0
	n := len(b)
	b = append(b, make([]byte, AreaSize(xcr0, false))...)
	saveStandard(s, b[n:], xcr0, xcr0, true, 16)
	le.PutUint64(b[n+legacySize:], xcr0)
	return b
}

// LoadImage sets s from an XSAVE area in standard format. Components that the area does not have get their initial state.
func LoadImage(s *x86.FPU, p []byte) error {
	if len(p) < xsaveBase {
		return fmt.Errorf("fpu: XSAVE area of %d bytes: want %d or more", len(p), xsaveBase)
	}
	h := header{le.Uint64(p[legacySize:]), le.Uint64(p[legacySize+8:])}
	if h.xcomp != 0 {
		return fmt.Errorf("fpu: XSAVE area: XCOMP_BV %#x: not in standard format", h.xcomp)
	}
	if err := h.check(p, SupportedXCR0); err != nil {
		return fmt.Errorf("fpu: XSAVE area: %w", err)
	}
	if n := AreaSize(h.xstate, false); len(p) < n {
		return fmt.Errorf("fpu: XSAVE area of %d bytes: its components need %d", len(p), n)
	}
	if v := le.Uint32(p[24:]); v&^MXCSRMask != 0 {
		return fmt.Errorf("fpu: XSAVE area: reserved bits in MXCSR %#x", v)
	}
	restore(s, p, h, SupportedXCR0, true, 16)
	return nil
}
