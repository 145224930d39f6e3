// Scalar floating point, x87, the maths library, conversions.
#include "rows.h"

#include <math.h>

static uint64_t nbody(void)
{
	double x[5] = { 0, 4.84, 8.34, 12.9, 15.4 }, y[5] = { 0, -1.16, 4.12, -15.1, -25.9 }, z[5] = { 0, -.10, -.4, -.22, .18 };
	double vx[5] = { 0, .6, -1.01, 1.08, .98 }, vy[5] = { 0, 2.81, 1.8, .87, .59 }, vz[5] = { 0 };
	static const double m[5] = { 39.5, .038, .011, .0017, .002 };
	for (int k = 0; k < 3000; k++) {
		for (int i = 0; i < 5; i++)
			for (int j = i + 1; j < 5; j++) {
				double dx = x[i] - x[j], dy = y[i] - y[j], dz = z[i] - z[j], d = dx * dx + dy * dy + dz * dz;
				double g = .001 / (d * sqrt(d));
				vx[i] -= dx * m[j] * g, vy[i] -= dy * m[j] * g, vz[i] -= dz * m[j] * g;
				vx[j] += dx * m[i] * g, vy[j] += dy * m[i] * g, vz[j] += dz * m[i] * g;
			}
		for (int i = 0; i < 5; i++)
			x[i] += .001 * vx[i], y[i] += .001 * vy[i], z[i] += .001 * vz[i];
	}
	return bits(x[1]) ^ bits(y[2]) ^ bits(z[3]);
}

static uint64_t __attribute__((optimize("no-tree-vectorize"))) mandelbrot(void)
{
	uint64_t h = 0;
	for (int py = 0; py < 40; py++)
		for (int px = 0; px < 60; px++) {
			double cr = px / 30.0 - 1.5, ci = py / 20.0 - 1, r = 0, i = 0;
			int n = 0;
			for (; n < 80 && r * r + i * i < 4; n++) {
				double t = r * r - i * i + cr;
				i = 2 * r * i + ci, r = t;
			}
			h += n * (px + 1);
		}
	return h;
}

static uint64_t single(void)
{
	float a = 1, b = opaque(0.999f), c = opaque(0.0013f);
	for (int i = 0; i < 150000; i++)
		a = a * b + c / (a + 1.5f);
	return bits(a);
}

static uint64_t x87(void)
{
	long double a = 1, b = opaque(0.9997), c = opaque(0.00013);
	for (int i = 0; i < 60000; i++)
		a = a * b + c / (a + 1.5L);
	return bits((double)a);
}

static uint64_t x87_functions(void)
{
	double s = 0;
	for (int i = 0; i < 3000; i++) {
		double v = i * .01 + .1, sine, log;
		__asm__("fsin" : "=t"(sine) : "0"(v));
		__asm__("fldln2\n\tfxch\n\tfyl2x" : "=t"(log) : "0"(v));
		s += sine + log;
	}
	return (uint64_t)(s * 1e6);
}

static uint64_t libm(void)
{
	double s = 0;
	for (int i = 1; i < 6000; i++) {
		double v = opaque(i * .013);
		s += sin(v) + exp(-v * .1) + log(v) + pow(v, .3) + atan(v);
	}
	return (uint64_t)(s * 1e6); // the library chooses by the processor: with FMA the last bits differ
}

static uint64_t conversions(void)
{
	uint64_t s = 17, h = 0;
	for (int i = 0; i < 100000; i++) {
		int64_t v = (int64_t)next(&s) >> 20;
		double d = (double)v * .5;
		float f = (float)d;
		h += (int64_t)d + (int32_t)(f * 1e-9f) + (uint32_t)lrint(d * 1e-9);
	}
	return h;
}

static uint64_t __attribute__((noinline)) compares(void)
{
	double a[256];
	uint64_t s = 23, h = 0;
	for (int i = 0; i < 256; i++)
		a[i] = (double)(next(&s) >> 40);
	for (int k = 0; k < 1600; k++) {
		double most = 0, limit = k * 10000.0;
		for (int i = 0; i < 256; i++) {
			if (a[i] > limit)
				h++;
			if (a[i] > most)
				most = a[i];
		}
		h += (uint64_t)most;
	}
	return h;
}

const struct row fp_rows[] = {
	{ "fp", "nbody", nbody },
	{ "fp", "mandelbrot", mandelbrot },
	{ "fp", "single", single },
	{ "fp", "x87", x87 },
	{ "fp", "x87-functions", x87_functions },
	{ "fp", "libm", libm },
	{ "fp", "conversions", conversions },
	{ "fp", "compares", compares },
	{ 0 },
};
