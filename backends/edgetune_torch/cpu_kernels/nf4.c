/* NF4 with doubly quantized scales to bfloat16, for processors with AVX512-BF16: the scales too are
   made here, block by block, with the roundings of the text in edgetune_torch/nf4.py. */

#include "numbers.h"

enum { BLOCK = 64, GROUP = 256, BYTES = 16 };

/* Blocks first..last-1 of codes (N / 2), two in a byte, the first in the high bits. A block has one scale and so
   sixteen numbers at most, which are made once and looked up. */
int unpacked(const uint8_t *codes, const uint8_t *scales, const float *groups, const float *offset,
             const float *map, const float *quantiles, number *out, long first, long last) {
    __m512 table = _mm512_loadu_ps(quantiles);
    for (long b = first; b < last; b++) {
        float own = map[scales[b]] * groups[b / GROUP];
        __m512i numbers = _mm512_broadcast_i64x4(
            narrowed(_mm512_mul_ps(table, _mm512_set1_ps(own + offset[0]))));
        for (int half = 0; half < BLOCK / 2; half += BYTES) {
            const __m128i *from = (const __m128i *)(codes + b * (BLOCK / 2) + half);
            __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
            /* The numbers are there twice: which half of them a fifth bit points to does not matter. */
            __m512i which = _mm512_or_si512(_mm512_srli_epi32(both, 4), _mm512_slli_epi32(both, 16));
            _mm512_storeu_si512(out + b * BLOCK + 2 * half, _mm512_permutexvar_epi16(which, numbers));
        }
    }
    return 0;
}
