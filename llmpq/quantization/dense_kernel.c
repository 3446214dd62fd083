/* Products with a bfloat16 weight: in a layout of its own for any number of tokens, or as it lies in the file for few of them.

   packed: [blocks][pairs][16][2]: 16 rows of the weight, 2 columns of each beside each other; the last block is padded by zeros. */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "pairs.h"

enum { FEW_ROWS = 4, FEW_TOKENS = 4 };

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
    output_t out;
    int64_t pairs, tokens;
} product_t;

INLINE void tile(const product_t *p, int64_t block, int64_t token, int blocks, int together) {
    __m512 sum[MOST_BLOCKS][TOGETHER];
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < together; t++) sum[b][t] = _mm512_setzero_ps();
    add_tile(p->packed + block * p->pairs * LANES, p->pairs, p->x + token * p->pairs, p->pairs, blocks, together, sum);
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < together; t++) put(&p->out, token + t, (block + b) * LANES, sum[b][t]);
}

INLINE void panel(const product_t *p, int64_t block, int blocks) {
#define TILE(token, together) tile(p, block, token, blocks, together)
    TILES(p->tokens, TILE);
#undef TILE
}

/* Rows from the block that begins at or after `first` to the one at or after `last`; neighbouring ranges share nothing. */
void packed_product(const uint32_t *packed, const uint32_t *x, const uint16_t *bias, uint16_t *y, int64_t rows, int64_t columns,
                    int64_t tokens, int64_t first, int64_t last) {
    product_t p = {packed, x, {bias, y, rows}, columns / 2, tokens};
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
