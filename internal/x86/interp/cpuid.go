package interp

import (
	"math/bits"

	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/mmu"
)

// What CPUID says. The feature bits are the model's (package model), the rest is here.
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
)

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
	m := &c.vm.model
	part := sub
	if leaf != 7 && leaf != 0xD { // whose ECX says nothing
		part = 0
	}
	r := m.CPUID(leaf, part)
	switch leaf {
	case 0:
		return maxLeaf, word(vendor), word(vendor[8:]), word(vendor[4:])
	case 1:
		cx, d = r[2], r[3]
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
		return 0, r[1], r[2], r[3]
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
		if !m.Has("xsave") {
			return 0, 0, 0, 0
		}
		switch sub {
		case 0:
			return uint32(c.vm.xcr0), uint32(fpu.AreaSize(c.xcr0, false)), uint32(fpu.AreaSize(c.vm.xcr0, false)), 0
		case 1:
			return r[0], uint32(fpu.AreaSize(c.xcr0, true)), 0, 0
		default:
			if sub < 64 && c.vm.xcr0>>sub&1 != 0 {
				off, size := fpu.Component(sub)
				return uint32(size), uint32(off), 0, 0
			}
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
		cx, d = r[2], r[3]
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
