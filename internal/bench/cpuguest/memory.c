// Loads, stores and copies.
#include "rows.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static uint64_t chase(size_t bytes, int steps)
{
	static void **ring;
	static size_t made;
	size_t n = bytes / 64;
	if (made != bytes) {
		free(ring);
		ring = aligned_alloc(64, bytes);
		uint32_t *order = malloc(n * sizeof *order);
		if (!ring || !order)
			fail("memory");
		uint64_t s = 9;
		for (size_t i = 0; i < n; i++)
			order[i] = i;
		for (size_t i = n - 1; i > 0; i--) {
			size_t j = next(&s) % (i + 1);
			uint32_t t = order[i];
			order[i] = order[j], order[j] = t;
		}
		for (size_t i = 0; i < n; i++)
			ring[order[i] * 8] = &ring[order[(i + 1) % n] * 8];
		free(order);
		made = bytes;
	}
	void **p = ring;
	for (int i = 0; i < steps; i++)
		p = *p;
	return (p - ring) / 8;
}

static uint64_t chase_16k(void) { return chase(16 << 10, 300000); }
static uint64_t chase_1m(void) { return chase(1 << 20, 100000); }
static uint64_t chase_32m(void) { return chase(32 << 20, 20000); }

static uint8_t a[1 << 18] __attribute__((aligned(64))), b[1 << 18] __attribute__((aligned(64)));

static void fill(void)
{
	uint64_t s = 13;
	if (!a[1])
		for (size_t i = 0; i < sizeof a; i++)
			a[i] = next(&s) >> 30;
	a[1] = 1;
}

static uint64_t memcpy_4k(void)
{
	fill();
	for (int i = 0; i < 12000; i++)
		memcpy(opaque(b) + (i & 15) * 4096, opaque(a) + (i * 7 & 31) * 4096, 4096);
	return mix(b[77], b[4096 * 9 + 5]);
}

static uint64_t memcpy_small(void)
{
	fill();
	for (int i = 0; i < 60000; i++)
		memcpy(opaque(b) + (i & 1023) * 64, opaque(a) + (i * 7 & 1023) * 64 + 3, opaque(i & 63));
	return mix(b[77], b[4096 * 9 + 5]);
}

static uint64_t rep_movsb(void)
{
	fill();
	for (int i = 0; i < 3000; i++) {
		void *d = b + (i & 7) * 8192, *s = a + (i * 3 & 15) * 8192;
		size_t n = 8192;
		__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	}
	return mix(b[100], b[8192 * 5 + 1]);
}

static uint64_t rep_stosq(void)
{
	for (int i = 0; i < 6000; i++) {
		void *d = b + (i & 31) * 4096;
		size_t n = 512;
		__asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"((uint64_t)i) : "memory");
	}
	return mix(b[0], b[4096 * 5 + 1]);
}

static uint64_t __attribute__((optimize("no-tree-vectorize"))) scan(void)
{
	uint64_t h = 0;
	fill();
	for (int r = 0; r < 8; r++)
		for (size_t i = 0; i < sizeof a; i += 8) {
			uint64_t v;
			memcpy(&v, a + i, 8);
			h += v;
		}
	return h;
}

static uint64_t histogram(void)
{
	uint32_t count[256] = { 0 };
	uint64_t h = 0;
	fill();
	for (int r = 0; r < 3; r++)
		for (size_t i = 0; i < sizeof a; i++)
			count[a[i]]++;
	for (int i = 0; i < 256; i++)
		h = mix(h, count[i]);
	return h;
}

static uint64_t unaligned(void)
{
	uint64_t h = 0;
	fill();
	for (int r = 0; r < 3; r++)
		for (size_t i = 1; i + 16 < sizeof a; i += 9) {
			uint64_t v;
			memcpy(&v, opaque(a) + i, 8);
			h = (h ^ v) + 1;
			memcpy(b + i + 2, &h, 8);
		}
	return h;
}

static uint64_t malloc_row(void)
{
	void *p[256] = { 0 };
	uint64_t s = 21, h = 0;
	for (int i = 0; i < 15000; i++) {
		int at = next(&s) >> 11 & 255;
		size_t n = (next(&s) >> 9 & 1023) + 8;
		free(p[at]);
		p[at] = malloc(n);
		((volatile uint8_t *)p[at])[n - 1] = i;
		h += n;
	}
	for (int i = 0; i < 256; i++)
		free(p[i]);
	return h;
}

static uint64_t atomics(void)
{
	static atomic_uint_least64_t v, w;
	v = 0;
	w = 1;
	for (int i = 0; i < 40000; i++) {
		atomic_fetch_add(&v, i);
		uint64_t old = w;
		atomic_compare_exchange_strong(&w, &old, old * 3 + 1);
		atomic_exchange(&w, old + v);
	}
	return v ^ w;
}

static uint64_t byte_copy(void)
{
	fill();
	for (int r = 0; r < 2; r++)
		for (size_t i = 0; i < sizeof a; i++)
			((volatile uint8_t *)b)[i] = ((volatile uint8_t *)a)[i];
	return mix(b[9], b[sizeof b - 4]);
}

const struct row memory_rows[] = {
	{ "memory", "chase-16k", chase_16k },
	{ "memory", "chase-1m", chase_1m },
	{ "memory", "chase-32m", chase_32m },
	{ "memory", "memcpy-4k", memcpy_4k },
	{ "memory", "memcpy-small", memcpy_small },
	{ "memory", "rep-movsb", rep_movsb },
	{ "memory", "rep-stosq", rep_stosq },
	{ "memory", "scan", scan },
	{ "memory", "histogram", histogram },
	{ "memory", "unaligned", unaligned },
	{ "memory", "byte-copy", byte_copy },
	{ "memory", "malloc", malloc_row },
	{ "memory", "atomics", atomics },
	{ 0 },
};
