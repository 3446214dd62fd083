/* The int8 product of w8a8 for CPUs with AVX-512 VNNI: activations rounded per token, codes multiplied as integers.

   packed: [blocks][quads][16][4] int8: 16 rows of the weight, 4 columns of each beside each other; rows and columns are padded by zeros;
   x: [tokens][4 * quads] codes + 128, since the instruction takes unsigned by signed; 128 times the sum of a row is subtracted. */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, MOST_BLOCKS = 4, MOST_TOKENS = 6 };
typedef int32_t ints_t __attribute__((vector_size(64))); /* sums in the instruction's own type: gcc 12 keeps others in memory */

int has_vnni(void) { return 1; }

void arrange_codes(const int8_t *codes, int8_t *packed, int64_t rows, int64_t columns) {
    int64_t quads = (columns + 3) / 4, blocks = (rows + LANES - 1) / LANES;
    memset(packed, 0, (size_t)(blocks * quads * LANES * 4));
    for (int64_t row = 0; row < rows; row++) {
        int8_t *to = packed + row / LANES * quads * LANES * 4 + row % LANES * 4;
        for (int64_t column = 0; column < columns; column++)
            to[column / 4 * LANES * 4 + column % 4] = codes[row * columns + column];
    }
}

INLINE __m512 floats_of(__m256i bfloat16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16)); }

/* codes + 128 of x [tokens][columns] bfloat16 with one step per token: absmax / 127, at least `least`. */
void round_tokens(const uint16_t *x, uint8_t *codes, float *steps, int64_t tokens, int64_t columns, float least) {
    int64_t stride = (columns + 3) / 4 * 4;
    for (int64_t token = 0; token < tokens; token++, x += columns, codes += stride) {
        __m512i most = _mm512_setzero_si512();
        for (int64_t i = 0; i < columns; i += 32) {
            __mmask32 in = columns - i >= 32 ? ~0u : (1u << (columns - i)) - 1;
            __m512i size = _mm512_and_si512(_mm512_maskz_loadu_epi16(in, x + i), _mm512_set1_epi16(0x7fff));
            most = _mm512_max_epu16(most, size);
        }
        __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
        float absmax = _mm512_reduce_max_ps(floats_of(half)), step = absmax / 127.0f;
        steps[token] = step = step > least ? step : least;
        for (int64_t i = 0; i < stride; i += LANES) {
            __mmask16 in = columns - i >= LANES ? 0xffff : columns > i ? (__mmask16)((1u << (columns - i)) - 1) : 0;
            __mmask16 out = stride - i >= LANES ? 0xffff : (__mmask16)((1u << (stride - i)) - 1);
            __m512 wide = floats_of(_mm256_maskz_loadu_epi16(in, x + i));
            __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_div_ps(wide, _mm512_set1_ps(step))), _mm512_set1_epi32(128));
            _mm_mask_storeu_epi8(codes + i, out, _mm512_cvtepi32_epi8(code));
        }
    }
}

typedef struct {
    const int8_t *packed;
    const uint16_t *scale, *bias; /* float16 (half) or bfloat16; bias: NULL for none */
    const uint8_t *x;
    const float *steps;
    void *y; /* [tokens][rows], bfloat16 or (wide) float */
    int64_t rows, quads, tokens;
    int half, wide;
} product_t;

INLINE __m512 values_at(const uint16_t *from, __mmask16 in, int half) {
    __m256i bits = _mm256_maskz_loadu_epi16(in, from);
    return half ? _mm512_cvtph_ps(bits) : floats_of(bits);
}

INLINE void put(const product_t *p, int64_t token, int64_t row, __m512i sum) {
    int64_t left = p->rows - row;
    __mmask16 in = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
    __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), values_at(p->scale + row, in, p->half));
    y = _mm512_mul_ps(y, _mm512_set1_ps(p->steps[token]));
    if (p->bias) y = _mm512_add_ps(y, values_at(p->bias + row, in, p->half));
    if (p->wide) {
        _mm512_mask_storeu_ps((float *)p->y + token * p->rows + row, in, y);
    } else {
        __m512i bits = _mm512_castps_si512(y), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
        _mm256_mask_storeu_epi16((uint16_t *)p->y + token * p->rows + row, in, _mm512_cvtepi32_epi16(bits));
    }
}

/* Where `corrected` is asked for, 128 times the sum of each row is made beside, for the tokens to come as well. */
INLINE void tile(const product_t *p, int64_t block, int64_t token, int blocks, int together, int corrected, __m512i *correction) {
    const int8_t *packed = p->packed + block * p->quads * LANES * 4;
    const int32_t *x = (const int32_t *)(p->x + token * p->quads * 4);
    ints_t sum[MOST_BLOCKS][MOST_TOKENS], extra[MOST_BLOCKS];
    for (int b = 0; b < blocks; b++) {
        for (int t = 0; t < together; t++) sum[b][t] = (ints_t){0};
        extra[b] = (ints_t){0};
    }
    for (int64_t quad = 0; quad < p->quads; quad++) {
        __m512i w[MOST_BLOCKS];
        for (int b = 0; b < blocks; b++) {
            w[b] = _mm512_loadu_si512(packed + (b * p->quads + quad) * LANES * 4);
            if (corrected) extra[b] = (ints_t)_mm512_dpbusd_epi32((__m512i)extra[b], _mm512_set1_epi8((char)128), w[b]);
        }
        for (int t = 0; t < together; t++) {
            __m512i same = _mm512_set1_epi32(x[t * p->quads + quad]);
            for (int b = 0; b < blocks; b++) sum[b][t] = (ints_t)_mm512_dpbusd_epi32((__m512i)sum[b][t], same, w[b]);
        }
    }
    for (int b = 0; b < blocks; b++) {
        if (corrected) correction[b] = (__m512i)extra[b];
        for (int t = 0; t < together; t++) put(p, token + t, (block + b) * LANES, _mm512_sub_epi32((__m512i)sum[b][t], correction[b]));
    }
}

/* Every number of tokens at a time is compiled apart, so that sums stay in registers. */
INLINE void some(const product_t *p, int64_t block, int64_t token, int blocks, int together, int corrected, __m512i *correction) {
    switch (together) {
    case 1: tile(p, block, token, blocks, 1, corrected, correction); break;
    case 2: tile(p, block, token, blocks, 2, corrected, correction); break;
    case 3: tile(p, block, token, blocks, 3, corrected, correction); break;
    case 4: tile(p, block, token, blocks, 4, corrected, correction); break;
    case 5: tile(p, block, token, blocks, 5, corrected, correction); break;
    default: tile(p, block, token, blocks, 6, corrected, correction);
    }
}

INLINE void panel(const product_t *p, int64_t block, int blocks) {
    __m512i correction[MOST_BLOCKS];
    int64_t first = p->tokens < MOST_TOKENS ? p->tokens : MOST_TOKENS - 1; /* the correction takes registers of one token */
    some(p, block, 0, blocks, (int)first, 1, correction);
    for (int64_t token = first; token < p->tokens; token += MOST_TOKENS) {
        int64_t left = p->tokens - token;
        some(p, block, token, blocks, left < MOST_TOKENS ? (int)left : MOST_TOKENS, 0, correction);
    }
}

/* Rows from the block that begins at or after `first` to the one at or after `last`; neighbouring ranges share nothing. */
void int8_product(const int8_t *packed, const uint16_t *scale, const uint16_t *bias, int half, const uint8_t *x, const float *steps,
                  void *y, int wide, int64_t rows, int64_t columns, int64_t tokens, int64_t first, int64_t last) {
    product_t p = {packed, scale, bias, x, steps, y, rows, (columns + 3) / 4, tokens, half, wide};
    int64_t block = (first + LANES - 1) / LANES, end = (last + LANES - 1) / LANES;
    for (; block + MOST_BLOCKS <= end; block += MOST_BLOCKS) panel(&p, block, MOST_BLOCKS);
    for (; block < end; block++) panel(&p, block, 1);
}
#else
int has_vnni(void) { return 0; }
#endif
