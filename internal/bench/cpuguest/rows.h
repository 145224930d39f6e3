// A row is one measured piece of work. It runs for about a millisecond on real hardware and returns a value that says what it computed.
#ifndef ROWS_H
#define ROWS_H

#include <stddef.h>
#include <stdint.h>

typedef uint64_t (*work)(void);

struct row {
	const char *class, *name;
	work run;
	const char *needs; // a feature as __builtin_cpu_supports names it, or NULL
};

// Tables of the classes, each ended by an empty row.
extern const struct row integer_rows[], fp_rows[], simd_rows[], memory_rows[], kernel_rows[], code_rows[], program_rows[];

// next is a xorshift generator: the same numbers everywhere.
static inline uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

// mix folds v into a check value.
static inline uint64_t mix(uint64_t h, uint64_t v) { return (h ^ v) * 0x9E3779B97F4A7C15u + (h >> 29); }

// bits is a double's own, so that a check sees every one of them.
static inline uint64_t bits(double d)
{
	union { double d; uint64_t u; } x = { d };
	return x.u;
}

// opaque hides a value from the optimizer.
#define opaque(v) ({ __typeof__(1 ? (v) : (v)) opaque_v = (v); __asm__ volatile("" : "+r"(opaque_v)); opaque_v; })

// scratch is where the rows that need files may write, tools where the programs are.
extern const char *scratch, *tools;

void fail(const char *what);

#endif
