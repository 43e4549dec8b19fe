/* RMSNorm, SwiGLU's gate and rotation on bfloat16 numbers, forward and back, for processors with
   AVX512-BF16: what torch's text does in ten passes over memory is one here. Numbers are rounded to
   bfloat16 where the text rounds them; sums and exponentials differ from its in their last bits.
   A call computes parts first..last-1 of the work and returns 0. */

#include "numbers.h"

static __m512 rounded(__m512 x) { return widened(narrowed(x)); }

static __m512 inverse_rms(const number *x, long size, float eps) {
    __m512 one = _mm512_setzero_ps(), two = _mm512_setzero_ps();
    for (long c = 0; c < size; c += 2 * LANES) {
        __m512 a = wide(x + c), b = wide(x + c + LANES);
        one = _mm512_fmadd_ps(a, a, one);
        two = _mm512_fmadd_ps(b, b, two);
    }
    float mean = _mm512_reduce_add_ps(_mm512_add_ps(one, two)) / (float)size + eps;
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(mean)));
}

/* Rows first..last-1 of x (T, size) normalised; size is a multiple of 32. */
int normed(const number *x, const float *weight, float eps, number *out, long size, long first,
            long last) {
    for (long t = first; t < last; t++) {
        const number *row = x + t * size;
        __m512 inverse = inverse_rms(row, size, eps);
        for (long c = 0; c < size; c += LANES) {
            __m512 unit = _mm512_mul_ps(wide(row + c), inverse);
            put(out + t * size + c, _mm512_mul_ps(unit, _mm512_loadu_ps(weight + c)));
        }
    }
    return 0;
}

/* The gradient of the rows' x for that of what they became. */
int normed_back(const number *x, const float *weight, float eps, const number *grad, number *out,
                 long size, long first, long last) {
    for (long t = first; t < last; t++) {
        const number *row = x + t * size, *own = grad + t * size;
        __m512 inverse = inverse_rms(row, size, eps), sum = _mm512_setzero_ps();
        for (long c = 0; c < size; c += LANES) {
            __m512 weighed = _mm512_mul_ps(wide(own + c), _mm512_loadu_ps(weight + c));
            sum = _mm512_fmadd_ps(weighed, _mm512_mul_ps(wide(row + c), inverse), sum);
        }
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)size);
        for (long c = 0; c < size; c += LANES) {
            __m512 weighed = _mm512_mul_ps(wide(own + c), _mm512_loadu_ps(weight + c));
            __m512 unit = _mm512_mul_ps(wide(row + c), inverse);
            __m512 found = _mm512_sub_ps(weighed, _mm512_mul_ps(unit, mean));
            put(out + t * size + c, _mm512_mul_ps(found, inverse));
        }
    }
    return 0;
}

static __m512 sigmoid(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/* silu(gate) * up; a part is 16 numbers. */
int gated(const number *gate, const number *up, number *out, long first, long last) {
    for (long i = first * LANES; i < last * LANES; i += LANES) {
        __m512 x = wide(gate + i);
        put(out + i, _mm512_mul_ps(rounded(_mm512_mul_ps(x, sigmoid(x))), wide(up + i)));
    }
    return 0;
}

/* The gradients of gate and up. */
int gated_back(const number *gate, const number *up, const number *grad, number *gate_grad,
                number *up_grad, long first, long last) {
    __m512 one = _mm512_set1_ps(1.0f);
    for (long i = first * LANES; i < last * LANES; i += LANES) {
        __m512 x = wide(gate + i), g = wide(grad + i), s = sigmoid(x);
        __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(x, _mm512_sub_ps(one, s), one));
        put(gate_grad + i, _mm512_mul_ps(rounded(_mm512_mul_ps(g, wide(up + i))), slope));
        put(up_grad + i, _mm512_mul_ps(g, rounded(_mm512_mul_ps(x, s))));
    }
    return 0;
}

/* Rotate x, positions first..last-1 of (S, heads, size) by tables (S, size), `sign` -1 to rotate
   back; half of size is a multiple of 16. Strides are those of positions. */
int rotated(const number *x, const number *cosines, const number *sines, number *out, long heads,
             long size, long stride, long table, long to, float sign, long first, long last) {
    __m512 direction = _mm512_set1_ps(sign);
    long half = size / 2;
    for (long t = first; t < last; t++) {
        const number *cosine = cosines + t * table, *sine = sines + t * table;
        for (long h = 0; h < heads; h++)
            for (long c = 0; c < half; c += LANES) {
                const number *own = x + t * stride + h * size + c;
                number *into = out + t * to + h * size + c;
                __m512 a = wide(own), b = wide(own + half);
                __m512 low = wide(sine + c), high = wide(sine + c + half);
                /* back, each sine is that of the number it was multiplied with */
                __m512 first_sine = sign < 0 ? high : low, second_sine = sign < 0 ? low : high;
                __m512 one = rounded(_mm512_mul_ps(b, first_sine));
                __m512 two = rounded(_mm512_mul_ps(a, second_sine));
                put(into, _mm512_fnmadd_ps(direction, one, rounded(_mm512_mul_ps(a, wide(cosine + c)))));
                put(into + half,
                    _mm512_fmadd_ps(direction, two, rounded(_mm512_mul_ps(b, wide(cosine + c + half)))));
            }
    }
    return 0;
}
