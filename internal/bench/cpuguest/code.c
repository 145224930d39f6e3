// Code that is new, changes, or is large.
#define _GNU_SOURCE
#include "rows.h"

#include <string.h>
#include <sys/mman.h>

// function writes a function of 64 bytes: eax = edi*5 + v, between no-operations of several lengths.
static void function(uint8_t *p, uint32_t v)
{
	static const uint8_t code[] = {
		0x8D, 0x04, 0xBF, // lea eax, [rdi+rdi*4]
		0x05, 0, 0, 0, 0, // add eax, v
		0xC3, // ret
	};
	memset(p, 0x90, 64);
	for (int i = 0; i < 52; i += 4)
		memcpy(p + i, "\x0F\x1F\x40\x00", 4);
	memcpy(p + 52, code, sizeof code);
	memcpy(p + 56, &v, 4);
}

static uint8_t *executable(size_t n)
{
	uint8_t *p = mmap(NULL, n, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("executable memory");
	return p;
}

typedef uint32_t (*call)(uint32_t);

static uint64_t fresh(void)
{
	enum { n = 512 };
	static uint8_t *p;
	static uint32_t generation;
	uint64_t h = 0;
	if (!p)
		p = executable(n * 64);
	generation++;
	for (int i = 0; i < n; i++) {
		function(p + i * 64, i + generation);
		h += ((call)(p + i * 64))(i) - generation;
	}
	return h;
}

static uint64_t self_modifying(void)
{
	static uint8_t *p;
	uint64_t h = 0;
	if (!p)
		p = executable(4096), function(p, 1);
	for (uint32_t i = 0; i < 2000; i++) {
		memcpy(p + 56, &i, 4);
		h += ((call)p)(i);
	}
	return h;
}

// Data beside code that is called: a store into the page of running code that changes no instruction.
static uint64_t data_beside_code(void)
{
	static uint8_t *p;
	uint64_t h = 0;
	if (!p)
		p = executable(4096), function(p, 3);
	for (uint32_t i = 0; i < 40000; i++) {
		memcpy(p + 2048 + (i & 255) * 4, &i, 4);
		h += ((call)p)(i);
	}
	return h;
}

// A large body of code: 4,096 functions, called in an order that no cache of a few KiB holds.
static uint64_t large(void)
{
	enum { n = 4096 };
	static uint8_t *p;
	uint64_t s = 77, h = 0;
	if (!p) {
		p = executable(n * 64);
		for (int i = 0; i < n; i++)
			function(p + i * 64, i * 3);
	}
	for (int i = 0; i < 30000; i++)
		h += ((call)(p + (next(&s) & (n - 1)) * 64))(i);
	return h;
}

const struct row code_rows[] = {
	{ "code", "fresh", fresh },
	{ "code", "self-modifying", self_modifying },
	{ "code", "data-beside-code", data_beside_code },
	{ "code", "large", large },
	{ 0 },
};
