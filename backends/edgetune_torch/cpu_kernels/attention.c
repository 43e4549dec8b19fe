/* Causal attention of bfloat16 numbers, forward and back, for processors with AVX512-BF16.

   One row at a time: S positions, H heads that share G key/value heads, h channels (a multiple
   of 32). Tensors are (S, heads, h) by the strides of positions and heads; channels follow each other.
   Scores, sums and gradients are float32; what is multiplied is rounded to bfloat16, as flash
   attention does on cards (Dao 2022). A call computes the key/value heads first..last-1 with all
   heads that share them, so what it returns does not depend on how calls share the work. */

#include "numbers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64, ROWS = 8 };

#define LOG2E 1.44269504f

/* Two bfloat16 numbers that are multiplied together; they are also written as numbers. */
typedef uint32_t __attribute__((may_alias)) pair;

typedef struct {
    number *at;
    long position, head;
} tensor;

typedef struct {
    long positions, heads, shared, channels; /* `shared` heads read one key/value head */
    float scale;
} shape;

static number *row_of(tensor x, long position, long head) {
    return x.at + position * x.position + head * x.head;
}

/* C (m, n) float32 = A B, or C + A B, over k pairs: A is at a[i * row + p * step], B at b[p * n + j].
   m is a multiple of ROWS, n of 32. */
static void multiply(float *c, const pair *a, long row, long step, const pair *b, long m, long n,
                     long k, int add) {
    for (long j = 0; j < n; j += 2 * LANES)
        for (long i = 0; i < m; i += ROWS) {
            __m512 left[ROWS], right[ROWS];
            for (int r = 0; r < ROWS; r++) {
                const float *own = c + (i + r) * n + j;
                left[r] = add ? _mm512_loadu_ps(own) : _mm512_setzero_ps();
                right[r] = add ? _mm512_loadu_ps(own + LANES) : _mm512_setzero_ps();
            }
            const pair *own = a + i * row;
            for (long p = 0; p < k; p++) {
                __m512bh first = (__m512bh)_mm512_loadu_si512(b + p * n + j);
                __m512bh second = (__m512bh)_mm512_loadu_si512(b + p * n + j + LANES);
                for (int r = 0; r < ROWS; r++) {
                    __m512bh x = (__m512bh)_mm512_set1_epi32((int)own[r * row + p * step]);
                    left[r] = _mm512_dpbf16_ps(left[r], x, first);
                    right[r] = _mm512_dpbf16_ps(right[r], x, second);
                }
            }
            for (int r = 0; r < ROWS; r++) {
                _mm512_storeu_ps(c + (i + r) * n + j, left[r]);
                _mm512_storeu_ps(c + (i + r) * n + j + LANES, right[r]);
            }
        }
}

/* Pairs of the numbers of two rows. */
static __m512i paired(__m256i low, __m256i high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

/* Copy a block of one head as rows (BLOCK, h), with zeros behind the last position. */
static void copied(number *rows, tensor x, long head, long start, const shape *s) {
    long size = s->channels;
    for (long i = 0; i < BLOCK; i++) {
        if (start + i < s->positions)
            memcpy(rows + i * size, row_of(x, start + i, head), 2 * size);
        else
            memset(rows + i * size, 0, 2 * size);
    }
}

/* Pairs of channels, positions side by side: (h / 2, BLOCK). */
static void by_channels(pair *out, const number *rows, long size) {
    for (long i = 0; i < BLOCK; i++)
        for (long p = 0; p < size / 2; p++)
            memcpy(out + p * BLOCK + i, rows + i * size + 2 * p, sizeof(pair));
}

/* Pairs of positions, channels side by side: (BLOCK / 2, h). */
static void by_positions(pair *out, const number *rows, long size) {
    for (long i = 0; i < BLOCK; i += 2)
        for (long c = 0; c < size; c += LANES) {
            __m256i low = _mm256_loadu_si256((const __m256i *)(rows + i * size + c));
            __m256i high = _mm256_loadu_si256((const __m256i *)(rows + (i + 1) * size + c));
            _mm512_storeu_si512(out + i / 2 * size + c, paired(low, high));
        }
}

/* Which of LANES keys a query sees: those up to itself. */
static __mmask16 seen(long query, long key) {
    long count = query - key + 1;
    return count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

static long blocks_of(const shape *s) { return (s->positions + BLOCK - 1) / BLOCK; }

typedef struct {
    float scores[BLOCK * BLOCK], highest[BLOCK], total[BLOCK];
    number weights[BLOCK * BLOCK];
} progress;

/* Turn a block of scores into weights against the highest score so far, and scale what was summed.
   On the diagonal some keys are not `seen`. */
static inline __attribute__((always_inline)) void weighed(progress *now, float *sum, int diagonal,
                                                          const shape *s) {
    __m512 scale = _mm512_set1_ps(s->scale * LOG2E);
    for (long i = 0; i < BLOCK; i++) {
        __m512 x[BLOCK / LANES], high = _mm512_set1_ps(now->highest[i]);
        for (int l = 0; l < BLOCK / LANES; l++) {
            x[l] = _mm512_mul_ps(_mm512_loadu_ps(now->scores + i * BLOCK + l * LANES), scale);
            if (diagonal)
                x[l] = _mm512_mask_blend_ps(seen(i, l * LANES), _mm512_set1_ps(-INFINITY), x[l]);
            high = _mm512_max_ps(high, x[l]);
        }
        float highest = _mm512_reduce_max_ps(high), before = now->highest[i];
        __m512 total = _mm512_setzero_ps();
        for (int l = 0; l < BLOCK / LANES; l++) {
            __m512 y = power_below(_mm512_sub_ps(x[l], _mm512_set1_ps(highest)));
            if (diagonal)
                y = _mm512_maskz_mov_ps(seen(i, l * LANES), y);
            total = _mm512_add_ps(total, y);
            _mm256_storeu_si256((__m256i *)(now->weights + i * BLOCK + l * LANES), narrowed(y));
        }
        now->highest[i] = highest;
        if (highest != before) {
            float factor = exp2f(before - highest);
            now->total[i] *= factor;
            for (long c = 0; c < s->channels; c += LANES) {
                float *own = sum + i * s->channels + c;
                _mm512_storeu_ps(own, _mm512_mul_ps(_mm512_loadu_ps(own), _mm512_set1_ps(factor)));
            }
        }
        now->total[i] += _mm512_reduce_add_ps(total);
    }
}

static void *space(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

/* Attend: `out` and the logarithms to base 2 (H, S) of the sums of exponents. Return 0, or 1 without
   memory. */
int attend(const shape *s, const tensor *q, const tensor *k, const tensor *v, const tensor *out,
           float *logarithms, long first, long last) {
    long size = s->channels, blocks = blocks_of(s), each = BLOCK * size / 2;
    pair *keys = space(sizeof(pair) * each * blocks), *values = space(sizeof(pair) * each * blocks);
    number *rows = space(2 * BLOCK * size);
    float *sum = space(sizeof(float) * BLOCK * size);
    progress *now = space(sizeof(progress));
    int failed = !keys || !values || !rows || !sum || !now;
    for (long group = first; group < last && !failed; group++) {
        for (long b = 0; b < blocks; b++) {
            copied(rows, *k, group, b * BLOCK, s);
            by_channels(keys + b * each, rows, size);
            copied(rows, *v, group, b * BLOCK, s);
            by_positions(values + b * each, rows, size);
        }
        for (long head = group * s->shared; head < (group + 1) * s->shared; head++)
            for (long query = 0; query < s->positions; query += BLOCK) {
                copied(rows, *q, head, query, s);
                memset(sum, 0, sizeof(float) * BLOCK * size);
                for (int i = 0; i < BLOCK; i++) {
                    now->highest[i] = -INFINITY;
                    now->total[i] = 0;
                }
                for (long b = 0; b <= query / BLOCK; b++) {
                    multiply(now->scores, (pair *)rows, size / 2, 1, keys + b * each, BLOCK, BLOCK,
                             size / 2, 0);
                    if (b == query / BLOCK)
                        weighed(now, sum, 1, s);
                    else
                        weighed(now, sum, 0, s);
                    multiply(sum, (pair *)now->weights, BLOCK / 2, 1, values + b * each, BLOCK,
                             size, BLOCK / 2, 1);
                }
                for (long i = 0; i < BLOCK && query + i < s->positions; i++) {
                    __m512 factor = _mm512_set1_ps(1.0f / now->total[i]);
                    number *to = row_of(*out, query + i, head);
                    for (long c = 0; c < size; c += LANES) {
                        __m512 y = _mm512_mul_ps(_mm512_loadu_ps(sum + i * size + c), factor);
                        _mm256_storeu_si256((__m256i *)(to + c), narrowed(y));
                    }
                    logarithms[head * s->positions + query + i] =
                        now->highest[i] + log2f(now->total[i]);
                }
            }
    }
    free(keys), free(values), free(rows), free(sum), free(now);
    return failed;
}

typedef struct {
    float scores[BLOCK * BLOCK], slopes[BLOCK * BLOCK], logarithm[BLOCK], inner[BLOCK];
    pair weights[BLOCK * BLOCK / 2], turned[BLOCK * BLOCK / 2];
    number straight[BLOCK * BLOCK];
} way_back;

/* Of scores and the gradients of weights make weights, and the gradients of scores in two orders. */
static inline __attribute__((always_inline)) void differentiated(way_back *now, int diagonal,
                                                                 const shape *s) {
    __m512 scale = _mm512_set1_ps(s->scale), turned = _mm512_set1_ps(s->scale * LOG2E);
    for (long i = 0; i < BLOCK; i += 2)
        for (long l = 0; l < BLOCK; l += LANES) {
            __m256i weights[2], slopes[2];
            for (int r = 0; r < 2; r++) {
                long at = (i + r) * BLOCK + l;
                __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(now->scores + at), turned,
                                           _mm512_set1_ps(now->logarithm[i + r]));
                x = power_below(_mm512_min_ps(_mm512_setzero_ps(), x));
                if (diagonal)
                    x = _mm512_maskz_mov_ps(seen(i + r, l), x);
                __m512 y = _mm512_sub_ps(_mm512_loadu_ps(now->slopes + at),
                                         _mm512_set1_ps(now->inner[i + r]));
                y = _mm512_mul_ps(_mm512_mul_ps(x, y), scale);
                weights[r] = narrowed(x);
                slopes[r] = narrowed(y);
                _mm256_storeu_si256((__m256i *)(now->straight + at), slopes[r]);
            }
            _mm512_storeu_si512(now->weights + i / 2 * BLOCK + l, paired(weights[0], weights[1]));
            _mm512_storeu_si512(now->turned + i / 2 * BLOCK + l, paired(slopes[0], slopes[1]));
        }
}

/* Note the logarithms of a block's queries and the products of outputs with their gradients. */
static void prepared(way_back *now, tensor out, tensor grad, const float *logarithms, long head,
                     long query, const shape *s) {
    for (long i = 0; i < BLOCK; i++) {
        __m512 inner = _mm512_setzero_ps();
        int there = query + i < s->positions;
        for (long c = 0; there && c < s->channels; c += 2 * LANES)
            inner = _mm512_dpbf16_ps(
                inner, (__m512bh)_mm512_loadu_si512(row_of(out, query + i, head) + c),
                (__m512bh)_mm512_loadu_si512(row_of(grad, query + i, head) + c));
        now->inner[i] = _mm512_reduce_add_ps(inner);
        now->logarithm[i] = there ? logarithms[head * s->positions + query + i] : INFINITY;
    }
}

/* Write gradients that are summed by blocks as (h, BLOCK) to (S, h) of one key/value head. */
static void turned_back(tensor to, const float *sums, long group, const shape *s) {
    for (long i = 0; i < s->positions; i++) {
        const float *own = sums + i / BLOCK * BLOCK * s->channels + i % BLOCK;
        number *row = row_of(to, i, group);
        float line[LANES];
        for (long c = 0; c < s->channels; c += LANES) {
            for (int l = 0; l < LANES; l++)
                line[l] = own[(c + l) * BLOCK];
            _mm256_storeu_si256((__m256i *)(row + c), narrowed(_mm512_loadu_ps(line)));
        }
    }
}

/* Go back: the gradients of q, k and v for that of `out`. Return 0, or 1 without memory. */
int attend_back(const shape *s, const tensor *q, const tensor *k, const tensor *v,
                const tensor *out, const tensor *grad, const float *logarithms,
                const tensor *q_grad, const tensor *k_grad, const tensor *v_grad, long first,
                long last) {
    long size = s->channels, blocks = blocks_of(s), each = BLOCK * size / 2;
    pair *keys = space(sizeof(pair) * each * blocks), *values = space(sizeof(pair) * each * blocks);
    pair *others = space(sizeof(pair) * each * blocks), *queries = space(sizeof(pair) * each);
    pair *slopes = space(sizeof(pair) * each);
    float *of_keys = space(2 * sizeof(float) * each * blocks), *sum = space(2 * sizeof(float) * each);
    float *of_values = space(2 * sizeof(float) * each * blocks);
    number *rows = space(2 * BLOCK * size), *slope_rows = space(2 * BLOCK * size);
    way_back *now = space(sizeof(way_back));
    int failed = !keys || !values || !others || !queries || !slopes || !of_keys || !of_values ||
                 !sum || !rows || !slope_rows || !now;
    for (long group = first; group < last && !failed; group++) {
        for (long b = 0; b < blocks; b++) {
            copied(rows, *k, group, b * BLOCK, s);
            by_channels(keys + b * each, rows, size);
            by_positions(others + b * each, rows, size);
            copied(rows, *v, group, b * BLOCK, s);
            by_channels(values + b * each, rows, size);
        }
        memset(of_keys, 0, 2 * sizeof(float) * each * blocks);
        memset(of_values, 0, 2 * sizeof(float) * each * blocks);
        for (long head = group * s->shared; head < (group + 1) * s->shared; head++)
            for (long query = 0; query < s->positions; query += BLOCK) {
                copied(rows, *q, head, query, s);
                by_positions(queries, rows, size);
                copied(slope_rows, *grad, head, query, s);
                by_positions(slopes, slope_rows, size);
                prepared(now, *out, *grad, logarithms, head, query, s);
                memset(sum, 0, 2 * sizeof(float) * each);
                for (long b = 0; b <= query / BLOCK; b++) {
                    multiply(now->scores, (pair *)rows, size / 2, 1, keys + b * each, BLOCK, BLOCK,
                             size / 2, 0);
                    multiply(now->slopes, (pair *)slope_rows, size / 2, 1, values + b * each, BLOCK,
                             BLOCK, size / 2, 0);
                    if (b == query / BLOCK)
                        differentiated(now, 1, s);
                    else
                        differentiated(now, 0, s);
                    multiply(of_values + 2 * b * each, slopes, 1, size, now->weights, size, BLOCK,
                             BLOCK / 2, 1);
                    multiply(of_keys + 2 * b * each, queries, 1, size, now->turned, size, BLOCK,
                             BLOCK / 2, 1);
                    multiply(sum, (pair *)now->straight, BLOCK / 2, 1, others + b * each, BLOCK,
                             size, BLOCK / 2, 1);
                }
                for (long i = 0; i < BLOCK && query + i < s->positions; i++)
                    for (long c = 0; c < size; c += LANES)
                        _mm256_storeu_si256(
                            (__m256i *)(row_of(*q_grad, query + i, head) + c),
                            narrowed(_mm512_loadu_ps(sum + i * size + c)));
            }
        turned_back(*k_grad, of_keys, group, s);
        turned_back(*v_grad, of_values, group, s);
    }
    free(keys), free(values), free(others), free(queries), free(slopes), free(of_keys);
    free(of_values), free(sum), free(rows), free(slope_rows), free(now);
    return failed;
}
