package model

import "sync"

// XCR0's bits for SSE and AVX state (SDM vol. 3A 2.6).
const xcr0AVX = 1<<1 | 1<<2

// Host is what the host's processor has and its kernel lets programs use.
var Host = sync.OnceValue(func() Set {
	s := Of(hostCPUID)
	if _, _, c, _ := cpuid(1, 0); c>>27&1 == 0 || xgetbv()&xcr0AVX != xcr0AVX {
		s.drop(number["avx"])
	}
	return s
})

// Engine is what the CPU engine can give its guests on this host.
var Engine = sync.OnceValue(func() (s Set) {
	host := Host()
	for i := range table {
		if e := table[i].engine; e == always || e == hosted && host.has(i) {
			s.set(i)
		}
	}
	return s
})

// hostCPUID is CPUID of this processor, zero for leaves that it has not.
func hostCPUID(leaf, sub uint32) [4]uint32 {
	if top, _, _, _ := cpuid(leaf&0x80000000, 0); leaf > top {
		return [4]uint32{}
	}
	if sub != 0 && leaf == 7 {
		if last, _, _, _ := cpuid(7, 0); sub > last {
			return [4]uint32{}
		}
	}
	a, b, c, d := cpuid(leaf, sub)
	return [4]uint32{a, b, c, d}
}

// cpuid executes CPUID.
func cpuid(leaf, sub uint32) (a, b, c, d uint32)

// xgetbv reads XCR0; the caller has seen CPUID's OSXSAVE.
func xgetbv() uint64
