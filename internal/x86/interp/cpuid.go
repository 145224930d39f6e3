package interp

import (
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// What CPUID says. Only what works is offered: each feature bit below is one that the SDM's chapters on it were followed for.
//
// The vendor is GenuineIntel because native_calibrate_tsc() believes leaf 15H of no other (Linux v4.7, aa297292d708), and the model is an
// in-order Atom because arch/x86/kernel/cpu/common.c lists it as not speculating (cpu_vuln_whitelist, Linux v4.15 on), which spares guests retpolines and page-table
// isolation that would protect nothing here.

const (
	vendor    = "GenuineIntel"
	brand     = "Vitrine soft CPU"
	signature = 6<<8 | 1<<16 | 0xC<<4 | 10 // family 6, model 1CH, stepping 10

	// CrystalHz is the core crystal clock of leaf 15H, and the LAPIC timer's clock.
	CrystalHz = 1_000_000_000

	xcr0Bits = fpu.CompX87 | fpu.CompSSE
)

// Leaf 1 EDX, by bit number.
const leaf1EDX = 1<<0 | // FPU
	1<<2 | // DE
	1<<3 | // PSE
	1<<4 | // TSC
	1<<5 | // MSR
	1<<6 | // PAE
	1<<7 | // MCE, with no banks: Linux complains of a processor without
	1<<8 | // CX8
	1<<9 | // APIC
	1<<11 | // SEP
	1<<12 | // MTRR
	1<<13 | // PGE
	1<<14 | // MCA
	1<<15 | // CMOV
	1<<16 | // PAT
	1<<17 | // PSE-36
	1<<19 | // CLFSH
	1<<23 | // MMX
	1<<24 | // FXSR
	1<<25 | // SSE
	1<<26 // SSE2

// Leaf 1 ECX.
const leaf1ECX = 1<<0 | // SSE3
	1<<1 | // PCLMULQDQ
	1<<9 | // SSSE3
	1<<13 | // CX16
	1<<17 | // PCID
	1<<19 | // SSE4.1
	1<<20 | // SSE4.2
	1<<21 | // x2APIC
	1<<22 | // MOVBE
	1<<23 | // POPCNT
	1<<24 | // TSC deadline
	1<<25 | // AES
	1<<26 | // XSAVE
	1<<30 | // RDRAND
	1<<31 // a hypervisor

// Those of leaf 1 that are package fpu's to execute.
const (
	fpuEDX = 1<<23 | 1<<25 | 1<<26
	fpuECX = 1<<0 | 1<<1 | 1<<9 | 1<<19 | 1<<20 | 1<<25
	fpu7   = 1 << 29
)

// Leaf 7 EBX, ECX.
const (
	leaf7EBX = 1<<0 | // FSGSBASE
		1<<1 | // TSC_ADJUST
		1<<6 | // FDP_EXCPTN_ONLY
		1<<7 | // SMEP
		1<<9 | // enhanced REP MOVSB and STOSB
		1<<10 | // INVPCID
		1<<13 | // FCS and FDS are zero
		1<<18 | // RDSEED
		1<<20 | // SMAP
		1<<23 | // CLFLUSHOPT
		1<<24 | // CLWB
		1<<29 // SHA
	leaf7ECX = 1<<2 | // UMIP
		1<<16 | // LA57
		1<<22 // RDPID
)

// Leaf 80000001H.
const (
	leafExtECX = 1<<0 | // LAHF in 64-bit mode
		1<<8 // PREFETCHW
	leafExtEDX = 1<<11 | // SYSCALL
		1<<20 | // NX
		1<<26 | // 1 GiB pages
		1<<27 | // RDTSCP
		1<<29 // long mode
)

// features is what the decoder knows of the above.
const features = decode.AllFeatures &^ (decode.FeatureBMI1 | decode.FeatureLZCNT | decode.FeatureADX | decode.FeatureVMX | decode.FeatureSVM |
	decode.FeatureMONITOR | decode.FeaturePKU | decode.FeatureXSAVES)

// hostFeatures is features without what the host cannot execute.
func hostFeatures() decode.Features {
	f := decode.Features(features)
	h := fpu.HostFeatures()
	for _, r := range [...]struct {
		has bool
		f   decode.Features
	}{
		{h.Leaf1ECX>>0&1 != 0, decode.FeatureSSE3}, {h.Leaf1ECX>>1&1 != 0, decode.FeaturePCLMUL}, {h.Leaf1ECX>>9&1 != 0, decode.FeatureSSSE3},
		{h.Leaf1ECX>>19&1 != 0, decode.FeatureSSE41}, {h.Leaf1ECX>>20&1 != 0, decode.FeatureSSE42}, {h.Leaf1ECX>>25&1 != 0, decode.FeatureAES},
		{h.Leaf7EBX>>29&1 != 0, decode.FeatureSHA},
	} {
		if !r.has {
			f &^= r.f
		}
	}
	return f
}

// cpuid is CPUID with these EAX and ECX.
func (c *CPU) cpuid(leaf, sub uint32) (a, b, cx, d uint32) {
	const maxLeaf, maxExt, maxHyper = 0x16, 0x80000008, 0x40000000
	switch {
	case leaf >= 0x40000000 && leaf < 0x50000000:
		if leaf == maxHyper {
			return maxHyper, word("Vitr"), word("ineV"), word("itri")
		}
		return 0, 0, 0, 0
	case leaf >= 0x80000000 && leaf > maxExt || leaf > maxLeaf && leaf < 0x80000000:
		leaf = maxLeaf // as Intel's do: the highest basic leaf
	}
	n := uint32(len(c.vm.cpus))
	id := uint32(c.ID)
	hf := fpu.HostFeatures()
	switch leaf {
	case 0:
		return maxLeaf, word(vendor), word(vendor[8:]), word(vendor[4:])
	case 1:
		cx = leaf1ECX &^ (fpuECX &^ hf.Leaf1ECX)
		d = leaf1EDX &^ (fpuEDX &^ hf.Leaf1EDX)
		if c.cr4&x86.CR4OSXSAVE != 0 {
			cx |= 1 << 27
		}
		if base, ok := c.rdmsr(msrAPICBase); ok && base&(1<<11) == 0 {
			d &^= 1 << 9 // SDM vol. 3A 10.4.3: a LAPIC that is disabled is not there
		}
		if n > 1 {
			d |= 1 << 28 // HTT: EBX bits 23-16 count
		}
		return signature, 8<<8 | min(pow2(n), 255)<<16 | id<<24, cx, d
	case 2:
		return 0x00FF0001, 0, 0, 0 // caches are leaf 4's
	case 4:
		return c.cacheLeaf(sub, n)
	case 6:
		return 1 << 2, 0, 0, 0 // ARAT: the LAPIC timer always runs
	case 7:
		if sub == 0 {
			return 0, leaf7EBX &^ (fpu7 &^ hf.Leaf7EBX), leaf7ECX, 0
		}
	case 0xB:
		// Two levels: one thread a core, all cores in one package.
		switch sub {
		case 0:
			return 0, 1, 1 << 8, id
		case 1:
			return uint32(bits.Len32(pow2(n) - 1)), n, 2<<8 | 1, id
		}
		return 0, 0, sub, id
	case 0xD:
		switch sub {
		case 0:
			return xcr0Bits, uint32(fpu.AreaSize(c.xcr0, false)), uint32(fpu.AreaSize(xcr0Bits, false)), 0
		case 1:
			return hf.LeafD1EAX & 7, uint32(fpu.AreaSize(c.xcr0, true)), 0, 0 // XSAVEOPT, XSAVEC, XGETBV with ECX=1
		}
	case 0x15:
		// TSC = crystal * EBX / EAX.
		den, num := ratio(TSCHz(), CrystalHz, (1<<32-1)/(CrystalHz/1000))
		return uint32(den), uint32(num), CrystalHz, 0
	case 0x16:
		mhz := uint32(TSCHz() / 1e6)
		return mhz, mhz, 100, 0
	case 0x80000000:
		return maxExt, 0, 0, 0
	case 0x80000001:
		cx, d = leafExtECX, leafExtEDX
		if c.mode != decode.Mode64 {
			d &^= 1 << 11 // SYSCALL is 64-bit mode's alone on Intel processors
		}
		return 0, 0, cx, d
	case 0x80000002, 0x80000003, 0x80000004:
		s := [48]byte{}
		copy(s[:], brand)
		p := string(s[(leaf-0x80000002)*16:][:16])
		return word(p), word(p[4:]), word(p[8:]), word(p[12:])
	case 0x80000006:
		return 0, 0, 256<<16 | 6<<12 | 64, 0 // L2: 256 KiB, 8 ways
	case 0x80000007:
		return 0, 0, 0, 1 << 8 // invariant TSC
	case 0x80000008:
		return mmu.PhysBits | 57<<8, 0, 0, 0
	}
	return 0, 0, 0, 0
}

// cacheLeaf is leaf 4: L1 data and instructions of 32 KiB, L2 of 256 KiB a core, L3 of 8 MiB for all. Guests size buffers by it.
func (c *CPU) cacheLeaf(sub, n uint32) (a, b, cx, d uint32) {
	rows := [...]struct{ kind, level, ways, sets, share uint32 }{
		{1, 1, 8, 64, 1}, {2, 1, 8, 64, 1}, {3, 2, 8, 512, 1}, {3, 3, 16, 8192, pow2(n)},
	}
	if int(sub) >= len(rows) {
		return 0, 0, 0, 0
	}
	r := rows[sub]
	return r.kind | r.level<<5 | 1<<8 | (r.share-1)<<14 | (min(pow2(n), 64)-1)<<26, 63 | (r.ways-1)<<22, r.sets - 1, 0
}

// pow2 is the power of two that is not below n.
func pow2(n uint32) uint32 { return 1 << bits.Len32(n-1) }

func word(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

// ratio is the fraction num/den nearest to a/b with num at most limit, by continued fractions. Linux multiplies the numerator by the
// crystal's kHz in 32 bits (native_calibrate_tsc), so it must be small; what is lost is below 1 in 10 million.
func ratio(a, b, limit uint64) (den, num uint64) {
	p0, q0, p1, q1 := uint64(0), uint64(1), uint64(1), uint64(0)
	for b != 0 {
		k := a / b
		p, q := k*p1+p0, k*q1+q0
		if p > limit {
			break
		}
		p0, q0, p1, q1 = p1, q1, p, q
		a, b = b, a%b
	}
	return q1, p1
}
