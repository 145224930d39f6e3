package model

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// Where a flag comes from, as the level that first has it.
const (
	extra  = iota // no level: only max, or by name
	base          // every x86-64 processor; cannot be taken away
	system        // concerns kernels, or speed only: in every level
	v2            // x86-64 psABI 1.0, table 3.1
	v3
)

// Whether the CPU engine has it.
const (
	never  = iota
	always // by its own means
	hosted // where the host's processor has it, which executes it
)

// Registers that CPUID fills.
const (
	eax = iota
	ebx
	ecx
	edx
)

// A flag is a feature bit of CPUID.
type flag struct {
	name      string // as in /proc/cpuinfo (Linux arch/x86/include/asm/cpufeatures.h), or as the SDM calls what Linux does not show
	leaf, sub uint32
	reg, bit  uint8
	level     uint8
	engine    uint8
	decode    decode.Features // instructions that it brings
	cr4       uint64          // bits of CR4 that it brings
	needs     string          // flags without which it makes no sense (SDM vol. 1 13.1, 14.3, 14.5.3, 14.7.1)
}

// table is every flag that is known, in CPUID's order (SDM vol. 2A CPUID, APM vol. 3 appendix E).
var table = [...]flag{
	// Leaf 1, EDX.
	{name: "fpu", leaf: 1, reg: edx, bit: 0, level: base, engine: always},
	{name: "vme", leaf: 1, reg: edx, bit: 1},
	{name: "de", leaf: 1, reg: edx, bit: 2, level: base, engine: always, cr4: x86.CR4DE},
	{name: "pse", leaf: 1, reg: edx, bit: 3, level: base, engine: always, cr4: x86.CR4PSE},
	{name: "tsc", leaf: 1, reg: edx, bit: 4, level: base, engine: always, cr4: x86.CR4TSD},
	{name: "msr", leaf: 1, reg: edx, bit: 5, level: base, engine: always},
	{name: "pae", leaf: 1, reg: edx, bit: 6, level: base, engine: always, cr4: x86.CR4PAE},
	{name: "mce", leaf: 1, reg: edx, bit: 7, level: base, engine: always, cr4: x86.CR4MCE},
	{name: "cx8", leaf: 1, reg: edx, bit: 8, level: base, engine: always},
	{name: "apic", leaf: 1, reg: edx, bit: 9, level: base, engine: always},
	{name: "sep", leaf: 1, reg: edx, bit: 11, level: base, engine: always},
	{name: "mtrr", leaf: 1, reg: edx, bit: 12, level: base, engine: always},
	{name: "pge", leaf: 1, reg: edx, bit: 13, level: base, engine: always, cr4: x86.CR4PGE},
	{name: "mca", leaf: 1, reg: edx, bit: 14, level: base, engine: always},
	{name: "cmov", leaf: 1, reg: edx, bit: 15, level: base, engine: always},
	{name: "pat", leaf: 1, reg: edx, bit: 16, level: base, engine: always},
	{name: "pse36", leaf: 1, reg: edx, bit: 17, level: base, engine: always},
	{name: "pn", leaf: 1, reg: edx, bit: 18},
	{name: "clflush", leaf: 1, reg: edx, bit: 19, level: base, engine: always},
	{name: "dts", leaf: 1, reg: edx, bit: 21},
	{name: "acpi", leaf: 1, reg: edx, bit: 22},
	{name: "mmx", leaf: 1, reg: edx, bit: 23, level: base, engine: always},
	{name: "fxsr", leaf: 1, reg: edx, bit: 24, level: base, engine: always, cr4: x86.CR4OSFXSR},
	{name: "sse", leaf: 1, reg: edx, bit: 25, level: base, engine: always, cr4: x86.CR4OSXMMEXCPT},
	{name: "sse2", leaf: 1, reg: edx, bit: 26, level: base, engine: always},
	{name: "ss", leaf: 1, reg: edx, bit: 27},
	{name: "ht", leaf: 1, reg: edx, bit: 28, level: system},
	{name: "tm", leaf: 1, reg: edx, bit: 29},
	{name: "pbe", leaf: 1, reg: edx, bit: 31},

	// Leaf 1, ECX.
	{name: "pni", leaf: 1, reg: ecx, bit: 0, level: v2, engine: hosted, decode: decode.FeatureSSE3},
	{name: "pclmulqdq", leaf: 1, reg: ecx, bit: 1, engine: hosted, decode: decode.FeaturePCLMUL},
	{name: "dtes64", leaf: 1, reg: ecx, bit: 2},
	{name: "monitor", leaf: 1, reg: ecx, bit: 3, decode: decode.FeatureMONITOR},
	{name: "ds_cpl", leaf: 1, reg: ecx, bit: 4},
	{name: "vmx", leaf: 1, reg: ecx, bit: 5, decode: decode.FeatureVMX},
	{name: "smx", leaf: 1, reg: ecx, bit: 6},
	{name: "est", leaf: 1, reg: ecx, bit: 7},
	{name: "tm2", leaf: 1, reg: ecx, bit: 8},
	{name: "ssse3", leaf: 1, reg: ecx, bit: 9, level: v2, engine: hosted, decode: decode.FeatureSSSE3, needs: "pni"},
	{name: "cid", leaf: 1, reg: ecx, bit: 10},
	{name: "sdbg", leaf: 1, reg: ecx, bit: 11},
	{name: "fma", leaf: 1, reg: ecx, bit: 12, level: v3, engine: hosted, decode: decode.FeatureFMA, needs: "avx"},
	{name: "cx16", leaf: 1, reg: ecx, bit: 13, level: v2, engine: always, decode: decode.FeatureCX16},
	{name: "xtpr", leaf: 1, reg: ecx, bit: 14},
	{name: "pdcm", leaf: 1, reg: ecx, bit: 15},
	{name: "pcid", leaf: 1, reg: ecx, bit: 17, level: system, engine: always, cr4: x86.CR4PCIDE},
	{name: "dca", leaf: 1, reg: ecx, bit: 18},
	{name: "sse4_1", leaf: 1, reg: ecx, bit: 19, level: v2, engine: hosted, decode: decode.FeatureSSE41, needs: "ssse3"},
	{name: "sse4_2", leaf: 1, reg: ecx, bit: 20, level: v2, engine: hosted, decode: decode.FeatureSSE42, needs: "sse4_1"},
	{name: "x2apic", leaf: 1, reg: ecx, bit: 21, level: system, engine: always},
	{name: "movbe", leaf: 1, reg: ecx, bit: 22, level: v3, engine: always, decode: decode.FeatureMOVBE},
	{name: "popcnt", leaf: 1, reg: ecx, bit: 23, level: v2, engine: always, decode: decode.FeaturePOPCNT},
	{name: "tsc_deadline_timer", leaf: 1, reg: ecx, bit: 24, level: system, engine: always},
	{name: "aes", leaf: 1, reg: ecx, bit: 25, engine: hosted, decode: decode.FeatureAES},
	{name: "xsave", leaf: 1, reg: ecx, bit: 26, level: v3, engine: always, decode: decode.FeatureXSAVE, cr4: x86.CR4OSXSAVE},
	{name: "avx", leaf: 1, reg: ecx, bit: 28, level: v3, engine: hosted, decode: decode.FeatureAVX, needs: "xsave"},
	{name: "f16c", leaf: 1, reg: ecx, bit: 29, level: v3, engine: hosted, decode: decode.FeatureF16C, needs: "avx"},
	{name: "rdrand", leaf: 1, reg: ecx, bit: 30, level: system, engine: always, decode: decode.FeatureRDRAND},
	{name: "hypervisor", leaf: 1, reg: ecx, bit: 31, level: base, engine: always},

	// Leaf 7, EBX.
	{name: "fsgsbase", leaf: 7, reg: ebx, bit: 0, level: system, engine: always, decode: decode.FeatureFSGSBASE, cr4: x86.CR4FSGSBASE},
	{name: "tsc_adjust", leaf: 7, reg: ebx, bit: 1, level: system, engine: always},
	{name: "sgx", leaf: 7, reg: ebx, bit: 2},
	{name: "bmi1", leaf: 7, reg: ebx, bit: 3, level: v3, engine: hosted, decode: decode.FeatureBMI1},
	{name: "hle", leaf: 7, reg: ebx, bit: 4},
	{name: "avx2", leaf: 7, reg: ebx, bit: 5, level: v3, engine: hosted, decode: decode.FeatureAVX2, needs: "avx"},
	{name: "fdp_excptn_only", leaf: 7, reg: ebx, bit: 6, level: system, engine: always},
	{name: "smep", leaf: 7, reg: ebx, bit: 7, level: system, engine: always, cr4: x86.CR4SMEP},
	{name: "bmi2", leaf: 7, reg: ebx, bit: 8, level: v3, engine: hosted, decode: decode.FeatureBMI2},
	{name: "erms", leaf: 7, reg: ebx, bit: 9, level: system, engine: always},
	{name: "invpcid", leaf: 7, reg: ebx, bit: 10, level: system, engine: always, decode: decode.FeatureINVPCID},
	{name: "rtm", leaf: 7, reg: ebx, bit: 11},
	{name: "cqm", leaf: 7, reg: ebx, bit: 12},
	{name: "zero_fcs_fds", leaf: 7, reg: ebx, bit: 13, level: system, engine: always},
	{name: "mpx", leaf: 7, reg: ebx, bit: 14},
	{name: "rdt_a", leaf: 7, reg: ebx, bit: 15},
	{name: "avx512f", leaf: 7, reg: ebx, bit: 16, needs: "avx2"},
	{name: "avx512dq", leaf: 7, reg: ebx, bit: 17, needs: "avx512f"},
	{name: "rdseed", leaf: 7, reg: ebx, bit: 18, level: system, engine: always, decode: decode.FeatureRDSEED},
	{name: "adx", leaf: 7, reg: ebx, bit: 19, engine: hosted, decode: decode.FeatureADX},
	{name: "smap", leaf: 7, reg: ebx, bit: 20, level: system, engine: always, decode: decode.FeatureSMAP, cr4: x86.CR4SMAP},
	{name: "avx512ifma", leaf: 7, reg: ebx, bit: 21, needs: "avx512f"},
	{name: "clflushopt", leaf: 7, reg: ebx, bit: 23, engine: always, decode: decode.FeatureCLFLUSHOPT},
	{name: "clwb", leaf: 7, reg: ebx, bit: 24, engine: always, decode: decode.FeatureCLWB},
	{name: "intel_pt", leaf: 7, reg: ebx, bit: 25},
	{name: "avx512pf", leaf: 7, reg: ebx, bit: 26, needs: "avx512f"},
	{name: "avx512er", leaf: 7, reg: ebx, bit: 27, needs: "avx512f"},
	{name: "avx512cd", leaf: 7, reg: ebx, bit: 28, needs: "avx512f"},
	{name: "sha_ni", leaf: 7, reg: ebx, bit: 29, engine: hosted, decode: decode.FeatureSHA},
	{name: "avx512bw", leaf: 7, reg: ebx, bit: 30, needs: "avx512f"},
	{name: "avx512vl", leaf: 7, reg: ebx, bit: 31, needs: "avx512f"},

	// Leaf 7, ECX.
	{name: "avx512vbmi", leaf: 7, reg: ecx, bit: 1, needs: "avx512f"},
	{name: "umip", leaf: 7, reg: ecx, bit: 2, level: system, engine: always, cr4: x86.CR4UMIP},
	{name: "pku", leaf: 7, reg: ecx, bit: 3, decode: decode.FeaturePKU},
	{name: "waitpkg", leaf: 7, reg: ecx, bit: 5},
	{name: "avx512_vbmi2", leaf: 7, reg: ecx, bit: 6, needs: "avx512f"},
	{name: "shstk", leaf: 7, reg: ecx, bit: 7},
	{name: "gfni", leaf: 7, reg: ecx, bit: 8},
	{name: "vaes", leaf: 7, reg: ecx, bit: 9, engine: hosted, decode: decode.FeatureVAES, needs: "avx aes"},
	{name: "vpclmulqdq", leaf: 7, reg: ecx, bit: 10, engine: hosted, decode: decode.FeatureVPCLMUL, needs: "avx pclmulqdq"},
	{name: "avx512_vnni", leaf: 7, reg: ecx, bit: 11, needs: "avx512f"},
	{name: "avx512_bitalg", leaf: 7, reg: ecx, bit: 12, needs: "avx512f"},
	{name: "tme", leaf: 7, reg: ecx, bit: 13},
	{name: "avx512_vpopcntdq", leaf: 7, reg: ecx, bit: 14, needs: "avx512f"},
	{name: "la57", leaf: 7, reg: ecx, bit: 16, level: system, engine: always, cr4: x86.CR4LA57},
	{name: "rdpid", leaf: 7, reg: ecx, bit: 22, engine: always, decode: decode.FeatureRDPID},
	{name: "bus_lock_detect", leaf: 7, reg: ecx, bit: 24},
	{name: "cldemote", leaf: 7, reg: ecx, bit: 25},
	{name: "movdiri", leaf: 7, reg: ecx, bit: 27},
	{name: "movdir64b", leaf: 7, reg: ecx, bit: 28},
	{name: "enqcmd", leaf: 7, reg: ecx, bit: 29},
	{name: "sgx_lc", leaf: 7, reg: ecx, bit: 30},

	// Leaf 7, EDX. What only says how to mitigate is left out, and so left alone.
	{name: "avx512_4vnniw", leaf: 7, reg: edx, bit: 2, needs: "avx512f"},
	{name: "avx512_4fmaps", leaf: 7, reg: edx, bit: 3, needs: "avx512f"},
	{name: "fsrm", leaf: 7, reg: edx, bit: 4, level: system, engine: always, needs: "erms"},
	{name: "uintr", leaf: 7, reg: edx, bit: 5},
	{name: "avx512_vp2intersect", leaf: 7, reg: edx, bit: 8, needs: "avx512f"},
	{name: "serialize", leaf: 7, reg: edx, bit: 14},
	{name: "tsxldtrk", leaf: 7, reg: edx, bit: 16},
	{name: "pconfig", leaf: 7, reg: edx, bit: 18},
	{name: "arch_lbr", leaf: 7, reg: edx, bit: 19},
	{name: "ibt", leaf: 7, reg: edx, bit: 20},
	{name: "amx_bf16", leaf: 7, reg: edx, bit: 22, needs: "amx_tile"},
	{name: "avx512_fp16", leaf: 7, reg: edx, bit: 23, needs: "avx512f"},
	{name: "amx_tile", leaf: 7, reg: edx, bit: 24},
	{name: "amx_int8", leaf: 7, reg: edx, bit: 25, needs: "amx_tile"},

	// Leaf 7, second part.
	{name: "sha512", leaf: 7, sub: 1, reg: eax, bit: 0, needs: "avx2"},
	{name: "sm3", leaf: 7, sub: 1, reg: eax, bit: 1, needs: "avx"},
	{name: "sm4", leaf: 7, sub: 1, reg: eax, bit: 2, needs: "avx2"},
	{name: "avx_vnni", leaf: 7, sub: 1, reg: eax, bit: 4, needs: "avx2"},
	{name: "avx512_bf16", leaf: 7, sub: 1, reg: eax, bit: 5, needs: "avx512f"},
	{name: "lass", leaf: 7, sub: 1, reg: eax, bit: 6},
	{name: "cmpccxadd", leaf: 7, sub: 1, reg: eax, bit: 7},
	{name: "fzrm", leaf: 7, sub: 1, reg: eax, bit: 10},
	{name: "fsrs", leaf: 7, sub: 1, reg: eax, bit: 11},
	{name: "fsrc", leaf: 7, sub: 1, reg: eax, bit: 12},
	{name: "fred", leaf: 7, sub: 1, reg: eax, bit: 17},
	{name: "lkgs", leaf: 7, sub: 1, reg: eax, bit: 18},
	{name: "amx_fp16", leaf: 7, sub: 1, reg: eax, bit: 21, needs: "amx_tile"},
	{name: "avx_ifma", leaf: 7, sub: 1, reg: eax, bit: 23, needs: "avx2"},
	{name: "lam", leaf: 7, sub: 1, reg: eax, bit: 26},

	// Leaf 0DH, second part.
	{name: "xsaveopt", leaf: 13, sub: 1, reg: eax, bit: 0, level: v3, engine: always, decode: decode.FeatureXSAVEOPT, needs: "xsave"},
	{name: "xsavec", leaf: 13, sub: 1, reg: eax, bit: 1, level: v3, engine: always, decode: decode.FeatureXSAVEC, needs: "xsave"},
	{name: "xgetbv1", leaf: 13, sub: 1, reg: eax, bit: 2, level: v3, engine: always, needs: "xsave"},
	{name: "xsaves", leaf: 13, sub: 1, reg: eax, bit: 3, decode: decode.FeatureXSAVES, needs: "xsavec"},
	{name: "xfd", leaf: 13, sub: 1, reg: eax, bit: 4, needs: "xsave"},

	// Leaf 80000001H, ECX.
	{name: "lahf_lm", leaf: 0x80000001, reg: ecx, bit: 0, level: v2, engine: always},
	{name: "cmp_legacy", leaf: 0x80000001, reg: ecx, bit: 1, level: system},
	{name: "svm", leaf: 0x80000001, reg: ecx, bit: 2, decode: decode.FeatureSVM},
	{name: "extapic", leaf: 0x80000001, reg: ecx, bit: 3},
	{name: "cr8_legacy", leaf: 0x80000001, reg: ecx, bit: 4},
	{name: "abm", leaf: 0x80000001, reg: ecx, bit: 5, level: v3, engine: hosted, decode: decode.FeatureLZCNT},
	{name: "sse4a", leaf: 0x80000001, reg: ecx, bit: 6},
	{name: "misalignsse", leaf: 0x80000001, reg: ecx, bit: 7},
	{name: "3dnowprefetch", leaf: 0x80000001, reg: ecx, bit: 8, level: system, engine: always},
	{name: "osvw", leaf: 0x80000001, reg: ecx, bit: 9},
	{name: "ibs", leaf: 0x80000001, reg: ecx, bit: 10},
	{name: "xop", leaf: 0x80000001, reg: ecx, bit: 11, needs: "avx"},
	{name: "skinit", leaf: 0x80000001, reg: ecx, bit: 12},
	{name: "wdt", leaf: 0x80000001, reg: ecx, bit: 13},
	{name: "lwp", leaf: 0x80000001, reg: ecx, bit: 15},
	{name: "fma4", leaf: 0x80000001, reg: ecx, bit: 16, needs: "avx"},
	{name: "tce", leaf: 0x80000001, reg: ecx, bit: 17},
	{name: "tbm", leaf: 0x80000001, reg: ecx, bit: 21},
	{name: "topoext", leaf: 0x80000001, reg: ecx, bit: 22, level: system},
	{name: "perfctr_core", leaf: 0x80000001, reg: ecx, bit: 23},
	{name: "perfctr_nb", leaf: 0x80000001, reg: ecx, bit: 24},
	{name: "bpext", leaf: 0x80000001, reg: ecx, bit: 26},
	{name: "ptsc", leaf: 0x80000001, reg: ecx, bit: 27},
	{name: "perfctr_llc", leaf: 0x80000001, reg: ecx, bit: 28},
	{name: "mwaitx", leaf: 0x80000001, reg: ecx, bit: 29},

	// Leaf 80000001H, EDX.
	{name: "syscall", leaf: 0x80000001, reg: edx, bit: 11, level: base, engine: always},
	{name: "nx", leaf: 0x80000001, reg: edx, bit: 20, level: base, engine: always},
	{name: "mmxext", leaf: 0x80000001, reg: edx, bit: 22},
	{name: "fxsr_opt", leaf: 0x80000001, reg: edx, bit: 25},
	{name: "pdpe1gb", leaf: 0x80000001, reg: edx, bit: 26, level: system, engine: always},
	{name: "rdtscp", leaf: 0x80000001, reg: edx, bit: 27, level: system, engine: always, decode: decode.FeatureRDTSCP},
	{name: "lm", leaf: 0x80000001, reg: edx, bit: 29, level: base, engine: always},
	{name: "3dnowext", leaf: 0x80000001, reg: edx, bit: 30},
	{name: "3dnow", leaf: 0x80000001, reg: edx, bit: 31},
}
