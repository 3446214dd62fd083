/* Products with a bfloat16 weight: in a layout of its own for any number of tokens, or as it lies in the file for few of them.

   packed: [blocks][pairs][16][2]: 16 rows of the weight, 2 columns of each beside each other; the last block is padded by zeros. */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, MOST_BLOCKS = 4, MOST_TOKENS = 6, FEW_ROWS = 4, FEW_TOKENS = 4 };

int has_bfloat16(void) { return 1; }

INLINE uint16_t half_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float float_of(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* weight: [rows][pairs] of two columns each. */
void arrange_pairs(const uint32_t *weight, uint32_t *packed, int64_t rows, int64_t pairs) {
    for (int64_t block = 0; block * LANES < rows; block++)
        for (int64_t pair = 0; pair < pairs; pair++)
            for (int64_t lane = 0; lane < LANES; lane++) {
                int64_t row = block * LANES + lane;
                packed[(block * pairs + pair) * LANES + lane] = row < rows ? weight[row * pairs + pair] : 0;
            }
}

typedef struct {
    const uint32_t *packed, *x; /* x: [tokens][pairs] */
    const uint16_t *bias;       /* NULL for none */
    uint16_t *y;                /* [tokens][rows] */
    int64_t rows, pairs, tokens;
} product_t;

INLINE void put(const product_t *p, int64_t token, int64_t row, __m512 sum) {
    int64_t left = p->rows - row;
    __mmask16 in = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
    if (p->bias) {
        __m512i bias = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, p->bias + row)), 16);
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(bias));
    }
    __m512i bits = _mm512_castps_si512(sum), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_mask_storeu_epi16(p->y + token * p->rows + row, in, _mm512_cvtepi32_epi16(bits));
}

INLINE void tile(const product_t *p, int64_t block, int64_t token, int blocks, int together) {
    const uint32_t *packed = p->packed + block * p->pairs * LANES, *x = p->x + token * p->pairs;
    __m512 sum[MOST_BLOCKS][MOST_TOKENS];
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < together; t++) sum[b][t] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < p->pairs; pair++) {
        __m512bh w[MOST_BLOCKS];
        for (int b = 0; b < blocks; b++) w[b] = (__m512bh)_mm512_loadu_si512(packed + (b * p->pairs + pair) * LANES);
        for (int t = 0; t < together; t++) {
            __m512bh same = (__m512bh)_mm512_set1_epi32((int)x[t * p->pairs + pair]);
            for (int b = 0; b < blocks; b++) sum[b][t] = _mm512_dpbf16_ps(sum[b][t], w[b], same);
        }
    }
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < together; t++) put(p, token + t, (block + b) * LANES, sum[b][t]);
}

/* Every number of tokens at a time is compiled apart, so that sums stay in registers. */
INLINE void panel(const product_t *p, int64_t block, int blocks) {
    int64_t token = 0;
    for (; token + MOST_TOKENS <= p->tokens; token += MOST_TOKENS) tile(p, block, token, blocks, MOST_TOKENS);
    switch (p->tokens - token) {
    case 1: tile(p, block, token, blocks, 1); break;
    case 2: tile(p, block, token, blocks, 2); break;
    case 3: tile(p, block, token, blocks, 3); break;
    case 4: tile(p, block, token, blocks, 4); break;
    case 5: tile(p, block, token, blocks, 5); break;
    }
}

/* Rows from the block that begins at or after `first` to the one at or after `last`; neighbouring ranges share nothing. */
void packed_product(const uint32_t *packed, const uint32_t *x, const uint16_t *bias, uint16_t *y, int64_t rows, int64_t columns,
                    int64_t tokens, int64_t first, int64_t last) {
    product_t p = {packed, x, bias, y, rows, columns / 2, tokens};
    int64_t block = (first + LANES - 1) / LANES, end = (last + LANES - 1) / LANES;
    for (; block + MOST_BLOCKS <= end; block += MOST_BLOCKS) panel(&p, block, MOST_BLOCKS);
    for (; block < end; block++) panel(&p, block, 1);
}

INLINE void few(const uint16_t *weight, const uint16_t *x, const uint16_t *bias, uint16_t *y, int64_t y_stride, int64_t columns, int rows,
                int together) {
    __m512 sum[FEW_ROWS][FEW_TOKENS];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < together; t++) sum[r][t] = _mm512_setzero_ps();
    for (int64_t column = 0; column < columns; column += 32) {
        __mmask32 in = columns - column >= 32 ? ~0u : (1u << (columns - column)) - 1;
        __m512bh w[FEW_ROWS];
        for (int r = 0; r < rows; r++) w[r] = (__m512bh)_mm512_maskz_loadu_epi16(in, weight + r * columns + column);
        for (int t = 0; t < together; t++) {
            __m512bh one = (__m512bh)_mm512_maskz_loadu_epi16(in, x + t * columns + column);
            for (int r = 0; r < rows; r++) sum[r][t] = _mm512_dpbf16_ps(sum[r][t], w[r], one);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < together; t++)
            y[t * y_stride + r] = half_of(_mm512_reduce_add_ps(sum[r][t]) + (bias ? float_of(bias[r]) : 0.0f));
}

INLINE void few_of_rows(const uint16_t *weight, const uint16_t *x, const uint16_t *bias, uint16_t *y, int64_t y_stride, int64_t columns,
                        int rows, int64_t tokens) {
    for (; tokens >= FEW_TOKENS; tokens -= FEW_TOKENS, x += FEW_TOKENS * columns, y += FEW_TOKENS * y_stride)
        few(weight, x, bias, y, y_stride, columns, rows, FEW_TOKENS);
    switch (tokens) {
    case 1: few(weight, x, bias, y, y_stride, columns, rows, 1); break;
    case 2: few(weight, x, bias, y, y_stride, columns, rows, 2); break;
    case 3: few(weight, x, bias, y, y_stride, columns, rows, 3); break;
    }
}

/* weight [rows][columns], x [tokens][columns], bias [rows] or NULL, y [tokens][rows], all bfloat16; for rows first..last - 1. */
void few_tokens(const uint16_t *weight, const uint16_t *x, const uint16_t *bias, uint16_t *y, int64_t rows, int64_t columns, int64_t tokens,
                int64_t first, int64_t last) {
    int64_t row = first;
    for (; row + FEW_ROWS <= last; row += FEW_ROWS)
        few_of_rows(weight + row * columns, x, bias ? bias + row : 0, y + row, rows, columns, FEW_ROWS, tokens);
    for (; row < last; row++) few_of_rows(weight + row * columns, x, bias ? bias + row : 0, y + row, rows, columns, 1, tokens);
}
#else
int has_bfloat16(void) { return 0; }
#endif
