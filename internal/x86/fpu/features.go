package fpu

// A feature is an extension that the host may lack.
type feature uint8

const (
	mmxUnit feature = iota
	sse
	sse2
	sse3
	ssse3
	sse41
	sse42
	pclmul
	aes
	sha
)

// Features is the CPUID bits of the extensions that Compile serves on this host; a guest's CPUID must not show more of them.
// FXSAVE and XSAVE are code of this package and need no host support.
type Features struct {
	Leaf1ECX, Leaf1EDX uint32 // SSE3, PCLMULQDQ, SSSE3, SSE4.1, SSE4.2, AES, XSAVE; FPU, MMX, FXSR, SSE, SSE2
	Leaf7EBX           uint32 // SHA; FDP_EXCPTN_ONLY and the bit that says FCS and FDS read as zero, as this package keeps them
	LeafD1EAX          uint32 // XSAVEOPT, XSAVEC, XGETBV with ECX=1, XSAVES
}

// bits is where CPUID shows each feature (SDM vol. 2A CPUID): register 0 is leaf 1 ECX, 1 leaf 1 EDX, 2 leaf 7 EBX.
var bits = [...]struct {
	reg int
	bit uint
}{
	mmxUnit: {1, 23}, sse: {1, 25}, sse2: {1, 26}, sse3: {0, 0}, ssse3: {0, 9}, sse41: {0, 19}, sse42: {0, 20},
	pclmul: {0, 1}, aes: {0, 25}, sha: {2, 29},
}

var host = detect()

type hostFeatures [3]uint32

func (h hostFeatures) has(f feature) bool { return h[bits[f].reg]>>bits[f].bit&1 == 1 }

func detect() hostFeatures {
	var h, mine hostFeatures
	max, _, _, _ := cpuid(0, 0)
	_, _, h[0], h[1] = cpuid(1, 0)
	if max >= 7 {
		_, h[2], _, _ = cpuid(7, 0)
	}
	for _, b := range bits {
		mine[b.reg] |= 1 << b.bit
	}
	for i := range h {
		h[i] &= mine[i]
	}
	return h
}

// HostFeatures tells what this host can execute.
func HostFeatures() Features {
	return Features{
		Leaf1ECX:  host[0] | 1<<26,
		Leaf1EDX:  host[1] | 1<<0 | 1<<24,
		Leaf7EBX:  host[2] | 1<<6 | 1<<13,
		LeafD1EAX: 0xF,
	}
}

// cpuid executes CPUID.
func cpuid(leaf, sub uint32) (a, b, c, d uint32)
