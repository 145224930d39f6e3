/*
 * What a processor leaves in MXCSR under unmasked SIMD exceptions: the signal handler's view. Recorded as simdexc.txt by
 *   gcc -O1 -o simdexc simdexc.c && ./simdexc >simdexc.txt
 * Columns: instruction's bytes (XMM1, XMM2), MXCSR before, XMM1 high and low, XMM2 high and low, 1 if #XM was raised, MXCSR after, XMM1 after.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

static volatile unsigned seen;
static volatile int hit;
static int length;

static void handler(int sig, siginfo_t *i, void *c)
{
	ucontext_t *u = c;

	seen = u->uc_mcontext.fpregs->mxcsr;
	hit = 1;
	u->uc_mcontext.fpregs->mxcsr = 0x1f80;
	u->uc_mcontext.gregs[REG_RIP] += length;
}

static uint64_t x = 88172645463325252ull;
static uint64_t rnd(void) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; return x; }

static uint64_t operand(int dbl)
{
	static const uint64_t d[] = { 0x7fefffffffffffff, 0x7fe0000000000000, 0x0010000000000000, 0x0010000000000003, 3, 0x3fe0000000000000,
		0x3ff0000000000000, 0x47efffffe0000000, 0x37f0000000000000, 0x36a8000000000001, 0x8010000000000001, 0, 0x7ff0000000000000, 0x7ff0000000000001 };
	static const uint32_t s[] = { 0x7f7fffff, 0x7f000000, 0x00800000, 0x00800003, 3, 0x3f000000, 0x3f800000, 0x80800001, 0x007fffff, 0x7f800001, 0 };

	if (rnd() % 3 == 0)
		return dbl ? rnd() & ~(0x7ffull << 52) | (1000 + rnd() % 48) << 52 : rnd() & 0xbfffffffbfffffff;
	if (dbl)
		return d[rnd() % (sizeof d / 8 - (rnd() % 4 != 0) * 2)];
	return s[rnd() % (sizeof s / 4 - (rnd() % 4 != 0) * 2)] | (uint64_t)s[rnd() % (sizeof s / 4 - 2)] << 32;
}

int main(void)
{
	static const struct { unsigned char b[4]; int n, dbl; } op[] = {
		{ {0xf2,0x0f,0x58,0xca}, 4, 1 }, { {0xf2,0x0f,0x59,0xca}, 4, 1 }, { {0xf2,0x0f,0x5c,0xca}, 4, 1 }, { {0xf2,0x0f,0x5e,0xca}, 4, 1 },
		{ {0xf2,0x0f,0x5a,0xca}, 4, 1 }, { {0x66,0x0f,0x5a,0xca}, 4, 1 }, { {0xf3,0x0f,0x58,0xca}, 4, 0 }, { {0xf3,0x0f,0x59,0xca}, 4, 0 },
		{ {0xf3,0x0f,0x5e,0xca}, 4, 0 }, { {0x0f,0x58,0xca}, 3, 0 }, { {0x0f,0x59,0xca}, 3, 0 }, { {0x0f,0x5e,0xca}, 3, 0 },
		{ {0x66,0x0f,0x59,0xca}, 4, 1 }, { {0x66,0x0f,0x5e,0xca}, 4, 1 }, { {0x66,0x0f,0x7c,0xca}, 4, 1 }, { {0xf2,0x0f,0x7c,0xca}, 4, 0 },
		{ {0xf2,0x0f,0x7d,0xca}, 4, 0 }, { {0x66,0x0f,0x7d,0xca}, 4, 1 }, { {0xf2,0x0f,0xd0,0xca}, 4, 0 }, { {0x66,0x0f,0xd0,0xca}, 4, 1 },
		{ {0x0f,0x51,0xca}, 3, 0 }, { {0xf2,0x0f,0x51,0xca}, 4, 1 }, { {0x66,0x0f,0x5d,0xca}, 4, 1 }, { {0x0f,0x5f,0xca}, 3, 0 },
		{ {0x66,0x0f,0xe6,0xca}, 4, 1 }, { {0x0f,0x5b,0xca}, 3, 0 }, { {0x66,0x0f,0x5b,0xca}, 4, 0 }, { {0x0f,0x5a,0xca}, 3, 0 },
	};
	struct sigaction sa = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	unsigned char *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	sigaction(SIGFPE, &sa, 0);
	for (int k = 0; k < sizeof op / sizeof *op; k++) {
		length = op[k].n;
		memcpy(code, op[k].b, length);
		code[length] = 0xc3;
		for (int i = 0; i < 60; i++) {
			uint64_t a[2] = { operand(op[k].dbl), operand(op[k].dbl) }, b[2] = { operand(op[k].dbl), operand(op[k].dbl) }, o[2];
			unsigned m = (rnd() & 0x1f80) | (rnd() % 3 ? 0 : rnd() & 0x6000) | (rnd() % 4 ? 0 : 0x8000) | (rnd() % 4 ? 0 : 0x40), after, std = 0x1f80;

			hit = 0;
			asm volatile("ldmxcsr %2\n movups (%3),%%xmm1\n movups (%4),%%xmm2\n call *%5\n stmxcsr %0\n movups %%xmm1,(%1)\n ldmxcsr %6"
				: "=m"(after) : "r"(o), "m"(m), "r"(a), "r"(b), "r"(code), "m"(std) : "xmm1", "xmm2", "memory");
			for (int j = 0; j < length; j++)
				printf("%02x", op[k].b[j]);
			printf(" %04x %016lx %016lx %016lx %016lx %d %04x %016lx %016lx\n", m, a[1], a[0], b[1], b[0], hit, hit ? seen : after, o[1], o[0]);
		}
	}
}
