/* Products with bfloat16 weights in pairs: [blocks][pairs][16][2], 16 rows of the weight, 2 columns of each beside each other; the last
   block is padded. For CPUs with AVX-512 BF16, BW and VL. */
#include <immintrin.h>
#include <stdint.h>
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, MOST_BLOCKS = 4, TOGETHER = 6 /* tokens */ };

/* Where a product goes: y [tokens][rows], bfloat16, with bias [rows], NULL for none. */
typedef struct {
    const uint16_t *bias;
    uint16_t *y;
    int64_t rows;
} output_t;

INLINE void put(const output_t *out, int64_t token, int64_t row, __m512 sum) {
    int64_t left = out->rows - row;
    __mmask16 in = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
    if (out->bias) {
        __m512i bias = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, out->bias + row)), 16);
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(bias));
    }
    __m512i bits = _mm512_castps_si512(sum), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_mask_storeu_epi16(out->y + token * out->rows + row, in, _mm512_cvtepi32_epi16(bits));
}

/* Adds to sum[block][token] the products of some blocks, each of so many pairs, and of tokens that are `apart` pairs from each other. */
INLINE void add_tile(const uint32_t *packed, int64_t pairs, const uint32_t *x, int64_t apart, int blocks, int tokens,
                     __m512 sum[MOST_BLOCKS][TOGETHER]) {
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh w[MOST_BLOCKS];
        for (int b = 0; b < blocks; b++) w[b] = (__m512bh)_mm512_loadu_si512(packed + (b * pairs + pair) * LANES);
        for (int t = 0; t < tokens; t++) {
            __m512bh same = (__m512bh)_mm512_set1_epi32((int)x[t * apart + pair]);
            for (int b = 0; b < blocks; b++) sum[b][t] = _mm512_dpbf16_ps(sum[b][t], w[b], same);
        }
    }
}

/* CALL(tokens from, how many of them) for all tokens, every number of them compiled apart, so that sums stay in registers. */
#define TILES(TOKENS, CALL)                                                        \
    do {                                                                           \
        int64_t tile_at = 0;                                                       \
        for (; tile_at + TOGETHER <= (TOKENS); tile_at += TOGETHER) CALL(tile_at, TOGETHER); \
        switch ((TOKENS) - tile_at) {                                              \
        case 1: CALL(tile_at, 1); break;                                           \
        case 2: CALL(tile_at, 2); break;                                           \
        case 3: CALL(tile_at, 3); break;                                           \
        case 4: CALL(tile_at, 4); break;                                           \
        case 5: CALL(tile_at, 5); break;                                           \
        }                                                                          \
    } while (0)
