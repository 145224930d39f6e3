// Vector work.
#include "rows.h"

#include <immintrin.h>
#include <string.h>

enum { n = 64 };
static float ma[n][n] __attribute__((aligned(64))), mb[n][n] __attribute__((aligned(64))), mc[n][n] __attribute__((aligned(64)));

static void fill_matrices(void)
{
	for (int i = 0; i < n; i++)
		for (int j = 0; j < n; j++)
			ma[i][j] = (float)((i * 7 + j * 3) % 11) - 5, mb[i][j] = (float)((i * 5 + j) % 13) - 6;
}

static uint64_t check_matrix(void)
{
	uint64_t h = 0;
	for (int i = 0; i < n; i++)
		h = mix(h, bits(mc[i][(i * 29) % n]));
	return h;
}

static uint64_t matrix_sse2(void)
{
	fill_matrices();
	for (int r = 0; r < 4; r++)
		for (int i = 0; i < n; i++)
			for (int j = 0; j < n; j += 4) {
				__m128 s = _mm_setzero_ps();
				for (int k = 0; k < n; k++)
					s = _mm_add_ps(s, _mm_mul_ps(_mm_set1_ps(ma[i][k]), _mm_load_ps(&mb[k][j])));
				_mm_store_ps(&mc[i][j], s);
			}
	return check_matrix();
}

static uint64_t __attribute__((target("avx2,fma"))) matrix_avx2(void)
{
	fill_matrices();
	for (int r = 0; r < 8; r++)
		for (int i = 0; i < n; i++)
			for (int j = 0; j < n; j += 8) {
				__m256 s = _mm256_setzero_ps();
				for (int k = 0; k < n; k++)
					s = _mm256_fmadd_ps(_mm256_set1_ps(ma[i][k]), _mm256_load_ps(&mb[k][j]), s);
				_mm256_store_ps(&mc[i][j], s);
			}
	return check_matrix();
}

static uint8_t buf[1 << 16] __attribute__((aligned(64))), other[1 << 16] __attribute__((aligned(64)));

static void fill_buf(void)
{
	uint64_t s = 31;
	if (!buf[0])
		for (size_t i = 0; i < sizeof buf; i++)
			buf[i] = (next(&s) >> 13 & 63) + 64;
}

static inline __m128i rotate(__m128i v, int k) { return _mm_or_si128(_mm_slli_epi32(v, k), _mm_srli_epi32(v, 32 - k)); }

static uint64_t chacha(void)
{
	__m128i a = _mm_set1_epi32(0x61707865), b = _mm_set_epi32(1, 2, 3, 4), c = _mm_set_epi32(5, 6, 7, 8), d = _mm_set_epi32(9, 10, 11, 12);
#define quarter() \
	a = _mm_add_epi32(a, b), d = rotate(_mm_xor_si128(d, a), 16), c = _mm_add_epi32(c, d), b = rotate(_mm_xor_si128(b, c), 12), \
	a = _mm_add_epi32(a, b), d = rotate(_mm_xor_si128(d, a), 8), c = _mm_add_epi32(c, d), b = rotate(_mm_xor_si128(b, c), 7)
	for (int i = 0; i < 30000; i++) {
		quarter();
		b = _mm_shuffle_epi32(b, 0x39), c = _mm_shuffle_epi32(c, 0x4E), d = _mm_shuffle_epi32(d, 0x93);
	}
#undef quarter
	__m128i r = _mm_xor_si128(_mm_xor_si128(a, b), _mm_xor_si128(c, d));
	return _mm_cvtsi128_si64(r) ^ _mm_cvtsi128_si64(_mm_srli_si128(r, 8));
}

static uint64_t memchr_row(void)
{
	uint64_t h = 0;
	fill_buf();
	for (int r = 0; r < 400; r++) {
		const uint8_t *p = memchr(opaque(buf), 3 + r % 4, sizeof buf);
		h += p ? p - buf : 1;
	}
	return h;
}

static uint64_t strlen_row(void)
{
	uint64_t h = 0;
	fill_buf();
	memcpy(other, buf, sizeof buf);
	for (int r = 1; r <= 30; r++) {
		other[sizeof other - r * 1000] = 0;
		h += strlen((const char *)opaque(other));
	}
	for (int i = 0; i < 100000; i++)
		h += strlen((const char *)opaque(other) + sizeof other - 30000 - (i & 31));
	return h;
}

static uint64_t blend(void)
{
	const __m128i zero = _mm_setzero_si128();
	__m128i sum = zero;
	fill_buf();
	for (int r = 0; r < 64; r++)
		for (size_t i = 0; i < sizeof buf; i += 16) {
			__m128i v = _mm_load_si128((const __m128i *)(buf + i)), w = _mm_load_si128((const __m128i *)(buf + (i ^ 0x8000)));
			__m128i lo = _mm_mullo_epi16(_mm_unpacklo_epi8(v, zero), _mm_set1_epi16(77 + r));
			__m128i hi = _mm_mullo_epi16(_mm_unpackhi_epi8(w, zero), _mm_set1_epi16(278 - r));
			__m128i m = _mm_packus_epi16(_mm_srli_epi16(lo, 8), _mm_srli_epi16(hi, 8));
			sum = _mm_add_epi64(sum, _mm_sad_epu8(m, _mm_max_epu8(v, w)));
		}
	return _mm_cvtsi128_si64(sum) + _mm_cvtsi128_si64(_mm_srli_si128(sum, 8));
}

static uint64_t __attribute__((target("avx2"))) blend_avx2(void)
{
	__m256i sum = _mm256_setzero_si256();
	fill_buf();
	for (int r = 0; r < 128; r++)
		for (size_t i = 0; i < sizeof buf; i += 32) {
			__m256i v = _mm256_load_si256((const __m256i *)(buf + i)), w = _mm256_load_si256((const __m256i *)(buf + (i ^ 0x8000)));
			__m256i m = _mm256_blendv_epi8(v, w, _mm256_cmpgt_epi8(v, _mm256_set1_epi8(64 + r % 60)));
			sum = _mm256_add_epi64(sum, _mm256_sad_epu8(m, _mm256_shuffle_epi8(w, v)));
		}
	__m128i s = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
	return _mm_cvtsi128_si64(s) + _mm_extract_epi64(s, 1);
}

static uint64_t __attribute__((target("aes,sse4.1"))) aes(void)
{
	__m128i k = _mm_set_epi64x(0x1234567890ABCDEF, 0x0FEDCBA098765432), v = k;
	for (int i = 0; i < 60000; i++) {
		v = _mm_aesenc_si128(v, k);
		if ((i & 15) == 15)
			v = _mm_aesenclast_si128(v, k), k = _mm_aeskeygenassist_si128(k, 5);
	}
	return _mm_cvtsi128_si64(v) ^ _mm_extract_epi64(v, 1);
}

static uint64_t __attribute__((target("pclmul,sse4.1"))) pclmul(void)
{
	__m128i p = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), v = _mm_set1_epi64x(77);
	fill_buf();
	for (int r = 0; r < 20; r++)
		for (size_t i = 0; i < sizeof buf; i += 16) {
			__m128i x = _mm_clmulepi64_si128(v, p, 0x00), y = _mm_clmulepi64_si128(v, p, 0x11);
			v = _mm_xor_si128(_mm_xor_si128(x, y), _mm_load_si128((const __m128i *)(buf + i)));
		}
	return _mm_cvtsi128_si64(v) ^ _mm_extract_epi64(v, 1);
}

static uint64_t __attribute__((target("sha,sse4.1"))) sha(void)
{
	__m128i a = _mm_set1_epi32(0x6a09e667), b = _mm_set1_epi32(0x510e527f), m = _mm_set_epi32(1, 2, 3, 4), w = m;
	for (int i = 0; i < 30000; i++) {
		__m128i t = _mm_sha256rnds2_epu32(a, b, m);
		a = b, b = t;
		m = _mm_sha256msg2_epu32(_mm_sha256msg1_epu32(m, w), b);
		w = _mm_add_epi32(w, m);
	}
	return _mm_cvtsi128_si64(a) ^ _mm_cvtsi128_si64(b);
}

static uint64_t saxpy(void)
{
	static float x[4096], y[4096];
	for (int i = 0; i < 4096; i++)
		x[i] = i % 17, y[i] = i % 5;
	for (int r = 0; r < 300; r++)
		for (int i = 0; i < 4096; i += 4)
			_mm_storeu_ps(y + i, _mm_add_ps(_mm_loadu_ps(y + i), _mm_mul_ps(_mm_set1_ps(.5f), _mm_loadu_ps(x + i))));
	return bits(y[1234]) ^ bits(y[4095]);
}

const struct row simd_rows[] = {
	{ "simd", "matrix-sse2", matrix_sse2 },
	{ "simd", "matrix-avx2-fma", matrix_avx2, "fma" },
	{ "simd", "saxpy", saxpy },
	{ "simd", "chacha", chacha },
	{ "simd", "memchr", memchr_row },
	{ "simd", "strlen", strlen_row },
	{ "simd", "blend-sse2", blend },
	{ "simd", "blend-avx2", blend_avx2, "avx2" },
	{ "simd", "aes", aes, "aes" },
	{ "simd", "pclmul", pclmul, "pclmul" },
	{ "simd", "sha", sha, "sha" },
	{ 0 },
};
