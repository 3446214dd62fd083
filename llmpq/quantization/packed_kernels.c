/* Products with packed weights, for few tokens, and unpacking for many; one row of the weight is out of one row of the file.

   packed: [rows][row_bytes], a dense stream of b-bit fields from the low end, code + 2^(b-1) each (b is 3, 4 or 8);
   scale:  [rows][columns / group], bfloat16 or (half != 0) float16;  group % 8 == 0.
   A group is decoded in an order that vectors write at once, and the caller gives activations in that order: b = 8: as stored;
   b = 4: all even columns, then all odd ones; b = 3: columns 0 and 1 of every eight, then 2 and 3, and so on. */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VBMI__)
#include "pairs.h"
#define VECTORS 1
#endif

#define MOST_GROUP 4096
#define MOST_TOKENS 32 /* of few */

static float float_of(uint16_t bits, int half) {
    uint32_t wide;
    float value;
    if (!half) {
        wide = (uint32_t)bits << 16;
    } else {
        uint32_t exponent = (bits >> 10) & 31, fraction = bits & 1023;
        if (exponent == 0) {
            value = (float)fraction / 16777216.0f;
            return bits & 0x8000 ? -value : value;
        }
        wide = (uint32_t)(bits & 0x8000) << 16 | (exponent + 112) << 23 | fraction << 13;
    }
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* out[plane][i] = scale * code of the field i * planes + plane, of one group. */
static void decode(const uint8_t *stream, int64_t group, int bits, float scale, float *restrict out) {
    if (bits == 8) {
        for (int64_t i = 0; i < group; i++) out[i] = scale * (float)((int)stream[i] - 128);
    } else if (bits == 4) {
        int64_t half = group / 2;
        for (int64_t i = 0; i < half; i++) {
            out[i] = scale * (float)((int)(stream[i] & 15) - 8);
            out[half + i] = scale * (float)((int)(stream[i] >> 4) - 8);
        }
    } else {
        int64_t eighth = group / 8;
        uint32_t octet[MOST_GROUP / 8];
        for (int64_t i = 0; i < eighth; i++)
            octet[i] = stream[3 * i] | (uint32_t)stream[3 * i + 1] << 8 | (uint32_t)stream[3 * i + 2] << 16;
        for (int pair = 0; pair < 4; pair++)
            for (int64_t i = 0; i < eighth; i++) {
                out[2 * (pair * eighth + i)] = scale * (float)((int)(octet[i] >> (6 * pair) & 7) - 4);
                out[2 * (pair * eighth + i) + 1] = scale * (float)((int)(octet[i] >> (6 * pair + 3) & 7) - 4);
            }
    }
}

/* x: [tokens][columns], of 16 bits; out: the same with every group in the order of `decode`; bits 3 or 4. */
void arrange(const uint16_t *restrict x, uint16_t *restrict out, int64_t tokens, int64_t columns, int64_t group, int bits) {
    int64_t half = group / 2, eighth = group / 8;
    for (int64_t at = 0; at < tokens * columns; at += group) {
        if (bits == 4) {
            for (int64_t i = 0; i < half; i++) out[at + i] = x[at + 2 * i], out[at + half + i] = x[at + 2 * i + 1];
        } else {
            for (int64_t pair = 0; pair < 4; pair++)
                for (int64_t i = 0; i < eighth; i++) memcpy(out + at + 2 * (pair * eighth + i), x + at + 8 * i + 2 * pair, 4);
        }
    }
}

static void dot4(const float *restrict w, const float *restrict x, int64_t stride, int64_t length, float *restrict y) {
    float a = 0, b = 0, c = 0, d = 0;
    const float *x1 = x + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    for (int64_t i = 0; i < length; i++) {
        a += w[i] * x[i];
        b += w[i] * x1[i];
        c += w[i] * x2[i];
        d += w[i] * x3[i];
    }
    y[0] = a, y[1] = b, y[2] = c, y[3] = d;
}

static float dot1(const float *restrict w, const float *restrict x, int64_t length) {
    float sum = 0;
    for (int64_t i = 0; i < length; i++) sum += w[i] * x[i];
    return sum;
}

/* y[row][token] = dequantized row . x[token], for rows first..last - 1; x: [tokens][columns], each group in the order of `decode`;
   row_scratch: [columns]. */
void few_tokens(const uint8_t *packed, const uint16_t *scale, int half, const float *x, float *y, float *row_scratch,
                int64_t columns, int64_t group, int bits, int64_t row_bytes, int64_t tokens, int64_t first, int64_t last) {
    int64_t groups = columns / group, group_bytes = group * bits / 8, t;
    for (int64_t row = first; row < last; row++) {
        for (int64_t g = 0; g < groups; g++)
            decode(packed + row * row_bytes + g * group_bytes, group, bits, float_of(scale[row * groups + g], half),
                   row_scratch + g * group);
        for (t = 0; t + 4 <= tokens; t += 4) dot4(row_scratch, x + t * columns, columns, columns, y + row * tokens + t);
        for (; t < tokens; t++) y[row * tokens + t] = dot1(row_scratch, x + t * columns, columns);
    }
}

static uint32_t rounded(float value) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    return (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
}

/* out: [rows][columns] in the order of the columns, rounded to the nearest even bfloat16. */
void unpack_bfloat16(const uint8_t *packed, const uint16_t *scale, int half, uint16_t *out, int64_t columns, int64_t group, int bits,
                     int64_t row_bytes, int64_t first, int64_t last) {
    float values[MOST_GROUP];
    int64_t groups = columns / group, group_bytes = group * bits / 8;
    for (int64_t row = first; row < last; row++)
        for (int64_t g = 0; g < groups; g++) {
            decode(packed + row * row_bytes + g * group_bytes, group, bits, float_of(scale[row * groups + g], half), values);
            uint16_t *to = out + row * columns + g * group;
            if (bits == 8) {
                for (int64_t i = 0; i < group; i++) to[i] = (uint16_t)rounded(values[i]);
            } else if (bits == 4) {
                for (int64_t i = 0; i < group / 2; i++) {
                    uint32_t pair = rounded(values[i]) | rounded(values[group / 2 + i]) << 16;
                    memcpy(to + 2 * i, &pair, sizeof pair);
                }
            } else {
                for (int64_t pair = 0; pair < 4; pair++)
                    for (int64_t i = 0; i < group / 8; i++) {
                        const float *from = values + 2 * (pair * (group / 8) + i);
                        uint32_t two = rounded(from[0]) | rounded(from[1]) << 16;
                        memcpy(to + 8 * i + 2 * pair, &two, sizeof two);
                    }
            }
        }
}

/* Whether this build has `few_tokens_vectors`, and columns of a group must be a multiple of how many at that width. */
int vector_columns(int bits) {
#ifdef VECTORS
    return bits == 3 ? 128 : 64;
#else
    (void)bits;
    return 0;
#endif
}

#ifdef VECTORS
INLINE __m512 floats_at(const uint8_t *codes) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(128)));
}

/* Codes of 32 columns each, as bfloat16: all that one load of the stream holds. Their columns are `32 * load + apart * part`. */
INLINE void codes_at(const uint8_t *stream, int bits, int64_t load, __m512i table, __m512bh *codes) {
    if (bits == 8) {
        for (int part = 0; part < 2; part++) {
            const uint8_t *from = stream + 64 * load + 32 * part;
            codes[part] = _mm512_cvtne2ps_pbh(floats_at(from + 16), floats_at(from));
        }
    } else if (bits == 4) {
        __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(stream + 32 * load)));
        codes[0] = (__m512bh)_mm512_permutexvar_epi16(_mm512_and_si512(bytes, _mm512_set1_epi16(15)), table);
        codes[1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 4), table);
    } else {
        const __m512i places = _mm512_set_epi32(0xff2f2e2d, 0xff2c2b2a, 0xff292827, 0xff262524, 0xff232221, 0xff201f1e, 0xff1d1c1b,
                                                0xff1a1918, 0xff171615, 0xff141312, 0xff11100f, 0xff0e0d0c, 0xff0b0a09, 0xff080706,
                                                0xff050403, 0xff020100);
        __m512i bytes = _mm512_maskz_loadu_epi8(0xffffffffffffULL, stream + 48 * load);
        __m512i octets = _mm512_maskz_permutexvar_epi8(0x7777777777777777ULL, places, bytes);
        for (int part = 0; part < 4; part++) {
            __m512i low = _mm512_and_si512(octets, _mm512_set1_epi32(7));
            __m512i high = _mm512_slli_epi32(_mm512_and_si512(octets, _mm512_set1_epi32(7 << 3)), 13);
            codes[part] = (__m512bh)_mm512_permutexvar_epi16(_mm512_or_si512(low, high), table);
            octets = _mm512_srli_epi32(octets, 6);
        }
    }
}

static inline __m512i table_of(int bits) {
    uint16_t table[32];
    for (int field = 0; field < 32; field++) table[field] = (uint16_t)rounded((float)((field & ((1 << bits) - 1)) - (1 << (bits - 1))));
    return _mm512_loadu_si512(table);
}

/* y[k] of one row for `together` tokens (a constant where it is called). */
INLINE void row_of(const uint8_t *stream, const uint16_t *scale, int half, const uint16_t *x, float *y, int64_t columns, int64_t group,
                   int bits, int together, __m512i table) {
    int64_t parts = bits == 3 ? 4 : 2, loads = group / (32 * parts);
    int64_t step = bits == 8 ? 64 : 32, apart = bits == 8 ? 32 : group / parts;
    __m512 sum[4];
    for (int k = 0; k < together; k++) sum[k] = _mm512_setzero_ps();
    for (int64_t g = 0; g < columns / group; g++, stream += group * bits / 8) {
        __m512 part_sum[4];
        for (int k = 0; k < together; k++) part_sum[k] = _mm512_setzero_ps();
        for (int64_t load = 0; load < loads; load++) {
            __m512bh codes[4];
            codes_at(stream, bits, load, table, codes);
            for (int64_t part = 0; part < parts; part++) {
                const uint16_t *at = x + g * group + step * load + apart * part;
                for (int k = 0; k < together; k++)
                    part_sum[k] = _mm512_dpbf16_ps(part_sum[k], codes[part], (__m512bh)_mm512_loadu_si512(at + k * columns));
            }
        }
        __m512 s = _mm512_set1_ps(float_of(scale[g], half));
        for (int k = 0; k < together; k++) sum[k] = _mm512_fmadd_ps(s, part_sum[k], sum[k]);
    }
    for (int k = 0; k < together; k++) y[k] = _mm512_reduce_add_ps(sum[k]);
}

/* y[token] of one row. */
INLINE void tokens_of(const uint8_t *stream, const uint16_t *scale, int half, const uint16_t *x, float *y, int64_t columns,
                      int64_t group, int bits, int64_t tokens, __m512i table) {
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) row_of(stream, scale, half, x + t * columns, y + t, columns, group, bits, 4, table);
    for (; t < tokens; t++) row_of(stream, scale, half, x + t * columns, y + t, columns, group, bits, 1, table);
}

/* Of some rows to `wide`, [rows][tokens], or, rounded, to `out`, [tokens][rows]. */
INLINE void rows_of(const uint8_t *packed, const uint16_t *scale, int half, const uint16_t *x, float *wide, uint16_t *out,
                    int64_t columns, int64_t group, int bits, int64_t row_bytes, int64_t tokens, int64_t rows, int64_t first,
                    int64_t last) {
    __m512i table = bits == 8 ? _mm512_setzero_si512() : table_of(bits);
    float sums[MOST_TOKENS];
    for (int64_t row = first; row < last; row++) {
        float *y = wide ? wide + row * tokens : sums;
        tokens_of(packed + row * row_bytes, scale + row * (columns / group), half, x, y, columns, group, bits, tokens, table);
        for (int64_t t = 0; out && t < tokens; t++) out[t * rows + row] = (uint16_t)rounded(y[t]);
    }
}

/* As `few_tokens`, with bfloat16 activations and products of 32 columns at a time; group a multiple of vector_columns(bits). */
void few_tokens_vectors(const uint8_t *packed, const uint16_t *scale, int half, const uint16_t *x, float *y, int64_t columns,
                        int64_t group, int bits, int64_t row_bytes, int64_t tokens, int64_t first, int64_t last) {
    if (bits == 8) rows_of(packed, scale, half, x, y, 0, columns, group, 8, row_bytes, tokens, 0, first, last);
    else if (bits == 4) rows_of(packed, scale, half, x, y, 0, columns, group, 4, row_bytes, tokens, 0, first, last);
    else rows_of(packed, scale, half, x, y, 0, columns, group, 3, row_bytes, tokens, 0, first, last);
}

/* The same rounded to bfloat16, out: [tokens][rows], at most MOST_TOKENS. */
void few_tokens_rounded(const uint8_t *packed, const uint16_t *scale, int half, const uint16_t *x, uint16_t *out, int64_t columns,
                        int64_t group, int bits, int64_t row_bytes, int64_t tokens, int64_t rows, int64_t first, int64_t last) {
    if (bits == 8) rows_of(packed, scale, half, x, 0, out, columns, group, 8, row_bytes, tokens, rows, first, last);
    else if (bits == 4) rows_of(packed, scale, half, x, 0, out, columns, group, 4, row_bytes, tokens, rows, first, last);
    else rows_of(packed, scale, half, x, 0, out, columns, group, 3, row_bytes, tokens, rows, first, last);
}

/* 32 columns of one row, dequantized and rounded: 16 pairs of bfloat16. */
INLINE __m512i pairs_at(const uint8_t *stream, int bits, __m512 scale) {
    __m512i even, odd;
    if (bits == 8) {
        __m512 low = _mm512_mul_ps(floats_at(stream), scale), high = _mm512_mul_ps(floats_at(stream + 16), scale);
        return (__m512i)_mm512_cvtne2ps_pbh(high, low);
    }
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)stream)), eight = _mm512_set1_epi32(8);
    even = _mm512_sub_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(15)), eight);
    odd = _mm512_sub_epi32(_mm512_srli_epi32(bytes, 4), eight);
    __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_cvtepi32_ps(even), scale));
    __m256i high = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_cvtepi32_ps(odd), scale));
    return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

/* Rows of 16 words become columns. */
INLINE void transpose(__m512i *row) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(row[i], row[4 + i], 0x88), b = _mm512_shuffle_i32x4(row[8 + i], row[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(row[i], row[4 + i], 0xdd), d = _mm512_shuffle_i32x4(row[8 + i], row[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    memcpy(row, t, sizeof t);
}

enum { PANEL_COLUMNS = 256, PANEL_TOKENS = 384 }; /* 32 and 96 KiB of a thread's stack, whatever the weight's size and the tokens */

typedef struct {
    const uint8_t *packed;
    const uint16_t *scale;
    int half;
    int64_t columns, group, row_bytes, rows;
} weight_t;

/* Some columns of a block of 16 rows in pairs, dequantized and rounded to bfloat16: out [pairs][16]. */
INLINE void block_of(const weight_t *w, int bits, int64_t block, int64_t from, int64_t to, uint32_t *out) {
    for (int64_t column = from; column < to; column += 32) {
        __m512i row[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            int64_t at = block * LANES + lane < w->rows ? block * LANES + lane : w->rows - 1; /* padding is multiplied, and dropped */
            __m512 s = _mm512_set1_ps(float_of(w->scale[at * (w->columns / w->group) + column / w->group], w->half));
            row[lane] = pairs_at(w->packed + at * w->row_bytes + column * bits / 8, bits, s);
        }
        transpose(row);
        for (int pair = 0; pair < LANES; pair++) _mm512_storeu_si512(out + ((column - from) / 2 + pair) * LANES, row[pair]);
    }
}

/* sums [token][block][16] += the products of some columns, so far in the order in which one sum would go. */
INLINE void add_to(float *sums, const uint32_t *panel, int64_t pairs, const uint32_t *x, int64_t apart, int blocks, int together) {
    __m512 sum[MOST_BLOCKS][TOGETHER];
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < together; t++) sum[b][t] = _mm512_loadu_ps(sums + (t * blocks + b) * LANES);
    add_tile(panel, pairs, x, apart, blocks, together, sum);
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < together; t++) _mm512_storeu_ps(sums + (t * blocks + b) * LANES, sum[b][t]);
}

/* Some blocks of rows by at most PANEL_TOKENS tokens from `token` on. */
INLINE void panel_of(const weight_t *w, int bits, const uint16_t *x, const output_t *out, int64_t block, int blocks, int64_t token,
                     int64_t tokens) {
    uint32_t panel[MOST_BLOCKS * PANEL_COLUMNS / 2 * LANES];
    float sums[PANEL_TOKENS * MOST_BLOCKS * LANES];
    memset(sums, 0, (size_t)(tokens * blocks * LANES) * sizeof *sums);
    for (int64_t from = 0; from < w->columns; from += PANEL_COLUMNS) {
        int64_t to = from + PANEL_COLUMNS < w->columns ? from + PANEL_COLUMNS : w->columns, pairs = (to - from) / 2;
        const uint32_t *at = (const uint32_t *)(x + token * w->columns + from);
        for (int b = 0; b < blocks; b++) block_of(w, bits, block + b, from, to, panel + b * pairs * LANES);
#define ADD(t, together) add_to(sums + (t) * blocks * LANES, panel, pairs, at + (t) * w->columns / 2, w->columns / 2, blocks, together)
        TILES(tokens, ADD);
#undef ADD
    }
    for (int64_t t = 0; t < tokens; t++)
        for (int b = 0; b < blocks; b++) put(out, token + t, (block + b) * LANES, _mm512_loadu_ps(sums + (t * blocks + b) * LANES));
}

INLINE void panels_of(const weight_t *w, int bits, const uint16_t *x, const output_t *out, int64_t tokens, int64_t first, int64_t last) {
    int64_t block = (first + LANES - 1) / LANES, end = (last + LANES - 1) / LANES;
    for (int blocks; block < end; block += blocks) {
        blocks = end - block < MOST_BLOCKS ? 1 : MOST_BLOCKS;
        for (int64_t token = 0; token < tokens; token += PANEL_TOKENS) {
            int64_t some = tokens - token < PANEL_TOKENS ? tokens - token : PANEL_TOKENS;
            if (blocks == 1) panel_of(w, bits, x, out, block, 1, token, some);
            else panel_of(w, bits, x, out, block, MOST_BLOCKS, token, some);
        }
    }
}

/* y = x dequantized^T + bias for any number of tokens, x [tokens][columns] and y [tokens][rows] bfloat16, bias [rows] or NULL; bits 4 or
   8, group a multiple of 32. Rows from the block that begins at or after `first` to the one at or after `last`. */
void many_tokens(const uint8_t *packed, const uint16_t *scale, int half, const uint16_t *x, const uint16_t *bias, uint16_t *y,
                 int64_t columns, int64_t group, int bits, int64_t row_bytes, int64_t rows, int64_t tokens, int64_t first, int64_t last) {
    weight_t w = {packed, scale, half, columns, group, row_bytes, rows};
    output_t out = {bias, y, rows};
    if (bits == 8) panels_of(&w, 8, x, &out, tokens, first, last);
    else panels_of(&w, 4, x, &out, tokens, first, last);
}
#endif
