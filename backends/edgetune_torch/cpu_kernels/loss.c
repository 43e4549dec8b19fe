/* Cross entropy over tiles of bfloat16 logits (C, W), for processors with AVX-512: a tile is read once
   for the softmax of its rows, which leaves weights in its place where they are wanted; that of a
   trained head is turned into its gradient later. A call takes rows first..last-1 and returns 0. Logits
   are never widened in memory. */

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

/* Take in row t of a tile and return by how much what was summed before shrinks. `leave`: e^(logit - highest)
   takes the place of each logit, nothing that of the target's. */
static inline float take_in(const tile *x, const softmax *now, long t, int leave) {
    number *row = x->at + t * x->width;
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (long c = 0; c < x->width; c += LANES)
        largest = _mm512_max_ps(some(row, c, x->width, -INFINITY), largest);
    float high = _mm512_reduce_max_ps(largest), before = now->highest[t];
    if (high > before) {
        now->best[t] = x->start + column_of(high, row, x->width);
        now->highest[t] = high;
    }
    number *target = inside(now->targets[t], x) ? row + now->targets[t] - x->start : 0;
    if (target)
        now->wanted[t] = value(target);
    __m512 highest = _mm512_set1_ps(now->highest[t]);
    for (long c = 0; c < x->width; c += LANES) {
        __mmask16 there = lanes(x->width - c);
        __m512 y = exponential_below(_mm512_sub_ps(some(row, c, x->width, -INFINITY), highest));
        sum = _mm512_mask_add_ps(sum, there, sum, y);
        if (leave)
            _mm256_mask_storeu_epi16(row + c, there, narrowed(y));
    }
    if (leave && target)
        *target = 0;
    float shrunk = expf(before - now->highest[t]);
    now->total[t] = now->total[t] * shrunk + _mm512_reduce_add_ps(sum);
    return shrunk;
}

/* Take in a tile. */
int softened(const tile *x, const softmax *now, long first, long last) {
    for (long t = first; t < last; t++)
        take_in(x, now, t, 0);
    return 0;
}

/* Take in a tile and leave weights in it; `shrunk` (C). */
int weighed(const tile *x, const softmax *now, float *shrunk, long first, long last) {
    for (long t = first; t < last; t++)
        shrunk[t] = take_in(x, now, t, 1);
    return 0;
}

/* Let each row of sums (C, width) shrink, and add a part. */
int shrunk_and_added(float *sums, const float *shrunk, const number *part, long width, long first,
                     long last) {
    for (long t = first; t < last; t++) {
        float *to = sums + t * width;
        const number *from = part + t * width;
        __m512 factor = _mm512_set1_ps(shrunk[t]);
        for (long c = 0; c < width; c += LANES) {
            __mmask16 there = lanes(width - c);
            __m512 was = _mm512_maskz_loadu_ps(there, to + c);
            _mm512_mask_storeu_ps(to + c, there, _mm512_fmadd_ps(was, factor, some(from, c, width, 0.0f)));
        }
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
