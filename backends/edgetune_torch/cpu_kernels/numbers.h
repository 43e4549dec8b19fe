/* What the kernels share: bfloat16 numbers as 16 float32 ones, and exponents.

   Of a number and NaN, _mm512_max_ps and _mm512_min_ps return their second operand: what may be NaN
   comes second, so that it stays. */

#pragma once

#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };

typedef uint16_t number; /* a bfloat16 */

static inline __m512 widened(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline __m512 wide(const number *x) {
    return widened(_mm256_loadu_si256((const __m256i *)x));
}

static inline __m256i narrowed(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void put(number *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, narrowed(x)); }

/* Which lanes there are where `left` numbers are left. */
static inline __mmask16 lanes(long left) {
    return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
}

/* e^x for -104 <= x <= 89, to 2 ulp: 2^n times a polynomial in the rest. */
static inline __m512 exponential_within(__m512 x) {
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(y, n);
}

/* e^x for x <= 0; what is below float32's normal numbers is about their least. */
static inline __m512 exponential_below(__m512 x) {
    return exponential_within(_mm512_max_ps(_mm512_set1_ps(-87.0f), x));
}

/* 2^x for x <= 0, likewise. */
static inline __m512 power_below(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(1.535336188e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.339887440e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(9.618437357e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.550332471e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.402264791e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.931472029e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* e^x; beyond float32's range 0 or infinity. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
    return exponential_within(x);
}
