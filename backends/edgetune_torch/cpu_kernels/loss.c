/* Cross entropy over tiles of bfloat16 logits (C, W), for processors with AVX-512: a tile is read once
   for the softmax of its rows, and once turned into its gradient in place. A call takes rows
   first..last-1 and returns 0. Logits are never widened in memory. */

#include "numbers.h"

#include <math.h>

typedef struct {
    number *at;
    long width, start; /* columns of the tile, and which token the first one is */
} tile;

/* What is known of each row after some tiles: (C) each. */
typedef struct {
    const int64_t *targets;
    float *highest, *total, *wanted;
    int64_t *best;
} softmax;

/* Return LANES numbers of a row from column c on, `filling` behind the last one. */
static __m512 some(const number *row, long c, long width, float filling) {
    __mmask16 there = lanes(width - c);
    __m512 x = widened(_mm256_maskz_loadu_epi16(there, row + c));
    return _mm512_mask_blend_ps(there, _mm512_set1_ps(filling), x);
}

static float value(const number *x) {
    return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32((int)((uint32_t)*x << 16))));
}

/* Return the first column that has a value; one of them does. */
static long column_of(float sought, const number *row, long width) {
    for (long c = 0; c < width; c += LANES) {
        __mmask16 found = lanes(width - c) & _mm512_cmp_ps_mask(some(row, c, width, 0.0f),
                                                                _mm512_set1_ps(sought), _CMP_EQ_OQ);
        if (found)
            return c + __builtin_ctz(found);
    }
    return 0;
}

static int inside(int64_t target, const tile *x) {
    return target >= x->start && target < x->start + x->width;
}

/* Take in a tile. */
int softened(const tile *x, const softmax *now, long first, long last) {
    for (long t = first; t < last; t++) {
        const number *row = x->at + t * x->width;
        __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (long c = 0; c < x->width; c += LANES)
            largest = _mm512_max_ps(some(row, c, x->width, -INFINITY), largest);
        float high = _mm512_reduce_max_ps(largest), before = now->highest[t];
        if (high > before) {
            now->best[t] = x->start + column_of(high, row, x->width);
            now->highest[t] = high;
        }
        __m512 highest = _mm512_set1_ps(now->highest[t]);
        for (long c = 0; c < x->width; c += LANES) {
            __m512 y = exponential_below(_mm512_sub_ps(some(row, c, x->width, -INFINITY), highest));
            sum = _mm512_mask_add_ps(sum, lanes(x->width - c), sum, y);
        }
        now->total[t] *= expf(before - now->highest[t]);
        now->total[t] += _mm512_reduce_add_ps(sum);
        if (inside(now->targets[t], x))
            now->wanted[t] = value(row + now->targets[t] - x->start);
    }
    return 0;
}

/* Turn a tile into `scales` (C) times the gradient of the rows' losses. */
int differentiated_loss(const tile *x, const int64_t *targets, const float *log_total,
                        const float *scales, long first, long last) {
    for (long t = first; t < last; t++) {
        number *row = x->at + t * x->width;
        __m512 total = _mm512_set1_ps(log_total[t]), scale = _mm512_set1_ps(scales[t]);
        long target = inside(targets[t], x) ? targets[t] - x->start : -1;
        for (long c = 0; c < x->width; c += LANES) {
            __m512 y = exponential_below(_mm512_sub_ps(some(row, c, x->width, 0.0f), total));
            if (target >= c && target < c + LANES) {
                __mmask16 own = (__mmask16)(1u << (target - c));
                y = _mm512_mask_sub_ps(y, own, y, _mm512_set1_ps(1.0f));
            }
            _mm256_mask_storeu_epi16(row + c, lanes(x->width - c), narrowed(_mm512_mul_ps(y, scale)));
        }
    }
    return 0;
}
