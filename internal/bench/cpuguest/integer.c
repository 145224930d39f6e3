// Integer work.
#include "rows.h"

#include <stdlib.h>
#include <string.h>

static uint64_t alu(void)
{
	uint64_t a = 1, b = 2, c = 3;
	for (int i = 0; i < 700000; i++) {
		a = a * 5 + b;
		b = (b ^ a) >> 3 | c << 7;
		c += a - b;
	}
	return a ^ b ^ c;
}

static uint32_t crc_table[256];

static void fill_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t v = i;
		for (int k = 0; k < 8; k++)
			v = v & 1 ? v >> 1 ^ 0xEDB88320 : v >> 1;
		crc_table[i] = v;
	}
}

static uint8_t text[1 << 16];

static void fill_text(void)
{
	uint64_t s = 88172645463325252u;
	if (text[0])
		return;
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = "etaoin shrdlu\n.,"[next(&s) & 15];
}

static uint64_t crc(void)
{
	fill_text();
	if (!crc_table[1])
		fill_crc_table();
	uint32_t v = ~0u;
	for (int r = 0; r < 6; r++)
		for (size_t i = 0; i < sizeof text; i++)
			v = crc_table[(v ^ text[i]) & 255] ^ v >> 8;
	return v;
}

static void sort(uint32_t *a, long n)
{
	while (n > 16) {
		uint32_t p = a[n / 2];
		long i = 0, j = n - 1;
		for (;;) {
			while (a[i] < p)
				i++;
			while (a[j] > p)
				j--;
			if (i >= j)
				break;
			uint32_t t = a[i];
			a[i++] = a[j], a[j--] = t;
		}
		sort(a, i);
		a += i, n -= i;
	}
	for (long i = 1; i < n; i++) {
		uint32_t v = a[i];
		long j = i;
		for (; j > 0 && a[j - 1] > v; j--)
			a[j] = a[j - 1];
		a[j] = v;
	}
}

static uint64_t quick_sort(void)
{
	static uint32_t a[16384];
	uint64_t s = 42, h = 0;
	for (size_t i = 0; i < 16384; i++)
		a[i] = next(&s);
	sort(a, 16384);
	for (size_t i = 0; i < 16384; i += 61)
		h = mix(h, a[i]);
	return h;
}

static uint64_t division(void)
{
	uint64_t s = 7, h = 0;
	for (int i = 0; i < 60000; i++) {
		uint64_t n = next(&s), d = (next(&s) & 0xFFFFFFFFFF) | 1;
		h += n / d ^ n % d;
	}
	return h;
}

static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
	0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
	0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
	0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
	0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
	0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t ror(uint32_t v, int n) { return v >> n | v << (32 - n); }

static void sha_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], v[8];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(v, h, sizeof v);
	for (int i = 0; i < 64; i++) {
		uint32_t t = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) + (v[6] ^ (v[4] & (v[5] ^ v[6]))) + sha_k[i] + w[i];
		uint32_t u = (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) + ((v[0] & v[1]) | (v[2] & (v[0] | v[1])));
		v[7] = v[6], v[6] = v[5], v[5] = v[4], v[4] = v[3] + t, v[3] = v[2], v[2] = v[1], v[1] = v[0], v[0] = t + u;
	}
	for (int i = 0; i < 8; i++)
		h[i] += v[i];
}

static uint64_t sha256(void)
{
	uint32_t h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
	fill_text();
	for (size_t i = 0; i < sizeof text; i += 64)
		sha_block(h, text + i);
	return (uint64_t)h[0] << 32 | h[7];
}

static uint64_t bignum(void)
{
	enum { n = 64 };
	uint64_t a[n], b[n], r[2 * n] = { 0 }, s = 99, h = 0;
	for (int i = 0; i < n; i++)
		a[i] = next(&s), b[i] = next(&s);
	for (int k = 0; k < 100; k++) {
		for (int i = 0; i < n; i++) {
			unsigned __int128 c = 0;
			for (int j = 0; j < n; j++) {
				c += (unsigned __int128)a[i] * b[j] + r[i + j];
				r[i + j] = (uint64_t)c;
				c >>= 64;
			}
			r[i + n] += (uint64_t)c;
		}
		a[k % n] ^= r[n];
	}
	for (int i = 0; i < 2 * n; i++)
		h = mix(h, r[i]);
	return h;
}

static uint64_t hash_map(void)
{
	enum { size = 1 << 15 };
	static uint64_t keys[size], values[size];
	uint64_t s = 5, h = 0;
	memset(keys, 0, sizeof keys);
	for (int i = 0; i < 60000; i++) {
		uint64_t k = next(&s) % 20000 + 1, at = k * 0x9E3779B97F4A7C15u >> 49;
		while (keys[at] && keys[at] != k)
			at = (at + 1) & (size - 1);
		if (!keys[at])
			values[at] = 0;
		keys[at] = k;
		h += values[at]++;
	}
	return h;
}

struct shape {
	uint64_t (*area)(const struct shape *, uint64_t);
	uint64_t a, b;
};

static uint64_t area_a(const struct shape *s, uint64_t x) { return s->a * x + s->b; }
static uint64_t area_b(const struct shape *s, uint64_t x) { return (s->a + x) ^ s->b; }
static uint64_t area_c(const struct shape *s, uint64_t x) { return s->a - (x >> 1) + s->b; }
static uint64_t area_d(const struct shape *s, uint64_t x) { return (s->b << 1) + x * s->a; }

static uint64_t virtual_calls(void)
{
	uint64_t (*const kinds[4])(const struct shape *, uint64_t) = { area_a, area_b, area_c, area_d };
	struct shape shapes[64];
	uint64_t s = 3, x = 1;
	for (int i = 0; i < 64; i++)
		shapes[i] = (struct shape){ kinds[next(&s) >> 20 & 3], i, i * 3 };
	for (int k = 0; k < 6000; k++)
		for (int i = 0; i < 64; i++)
			x = opaque(shapes[i].area)(&shapes[i], x);
	return x;
}

// A byte code whose program counts primes.
static uint64_t byte_code(void)
{
	enum { SET, ADDI, MUL, LT, MOD, JZ, JMP, END };
	static const int16_t program[] = {
		/*  0 */ SET, 0, 2, SET, 3, 0, // n = 2, primes = 0
		/*  6 */ SET, 1, 2, // d = 2
		/*  9 */ MUL, 4, 1, 1, LT, 5, 0, 4, JZ, 5, 25, // unless n < d*d, to 25
		/* 20 */ ADDI, 3, 1, JMP, 38, // a prime
		/* 25 */ MOD, 5, 0, 1, JZ, 5, 38, ADDI, 1, 1, JMP, 9, END,
		/* 38 */ ADDI, 0, 1, LT, 5, 0, 6, JZ, 5, 50, JMP, 6,
		/* 50 */ END,
	};
	int64_t r[8] = { [6] = 1500 };
	uint64_t steps = 0;
	for (const int16_t *p = program;; steps++) {
		switch (*p) {
		case SET: r[p[1]] = p[2]; p += 3; break;
		case ADDI: r[p[1]] += p[2]; p += 3; break;
		case MUL: r[p[1]] = r[p[2]] * r[p[3]]; p += 4; break;
		case LT: r[p[1]] = r[p[2]] < r[p[3]]; p += 4; break;
		case MOD: r[p[1]] = r[p[2]] % r[p[3]]; p += 4; break;
		case JZ: p = r[p[1]] == 0 ? program + p[2] : p + 3; break;
		case JMP: p = program + p[1]; break;
		default: return mix(r[3], steps);
		}
	}
}

static uint64_t __attribute__((noinline, noclone, optimize("no-optimize-sibling-calls,no-inline"))) fib(int n)
{
	return n < 2 ? (uint64_t)n : fib(n - 1) + fib(n - 2);
}

static uint64_t call_return(void) { return fib(opaque(24)); }

static uint64_t __attribute__((target("sse4.2"))) crc32_instruction(void)
{
	uint64_t v = ~0u;
	fill_text();
	for (int r = 0; r < 24; r++)
		for (size_t i = 0; i < sizeof text; i += 8) {
			uint64_t w;
			memcpy(&w, text + i, 8);
			v = __builtin_ia32_crc32di(v, w);
		}
	return v;
}

static uint64_t bit_counts(void)
{
	uint64_t s = 11, h = 0;
	for (int i = 0; i < 150000; i++) {
		uint64_t v = next(&s) | 1;
		h += __builtin_ctzl(v >> 3 | 1ul << 40) + __builtin_clzl(v);
		h ^= __builtin_bswap64(v) + (v << (h & 31));
	}
	return h;
}

const struct row integer_rows[] = {
	{ "integer", "alu", alu },
	{ "integer", "crc-table", crc },
	{ "integer", "quick-sort", quick_sort },
	{ "integer", "division-64", division },
	{ "integer", "sha256", sha256 },
	{ "integer", "bignum", bignum },
	{ "integer", "hash-map", hash_map },
	{ "integer", "virtual-calls", virtual_calls },
	{ "integer", "byte-code", byte_code },
	{ "integer", "call-return", call_return },
	{ "integer", "crc32-instruction", crc32_instruction, "sse4.2" },
	{ "integer", "bit-counts", bit_counts },
	{ 0 },
};
