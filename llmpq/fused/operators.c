/* Small operators in bfloat16, computed in fp32: norms, rotations of queries and keys, gated activations. Rows are rounded as the
   modules round that they stand for, so that results differ by the order of sums alone. */
#include <stdint.h>
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "bfloat16.h"

enum { ROUNDED, WIDE, ONE_MORE, CENTERED }; /* norms: see norm */
enum { SILU, GELU_TANH };

int has_operators(void) { return 1; }

INLINE __m512 rounded(__m512 value) { return _mm512_castsi512_ps(_mm512_slli_epi32(bits_of(value), 16)); }

INLINE float mean_of(const uint16_t *x, int64_t columns) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < columns; i += LANES) sum = _mm512_add_ps(sum, load(x + i, lanes(columns - i)));
    return _mm512_reduce_add_ps(sum) / (float)columns;
}

INLINE float variance_of(const uint16_t *x, int64_t columns, float mean) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < columns; i += LANES) {
        __mmask16 in = lanes(columns - i);
        __m512 apart = _mm512_maskz_sub_ps(in, load(x + i, in), _mm512_set1_ps(mean));
        sum = _mm512_fmadd_ps(apart, apart, sum);
    }
    return _mm512_reduce_add_ps(sum) / (float)columns;
}

INLINE void norm_rows(const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *y, int64_t columns, float epsilon,
                      int form, int64_t first, int64_t last) {
    x += first * columns, y += first * columns;
    for (int64_t row = first; row < last; row++, x += columns, y += columns) {
        float mean = form == CENTERED ? mean_of(x, columns) : 0.0f;
        __m512 by = _mm512_set1_ps(1.0f / __builtin_sqrtf(variance_of(x, columns, mean) + epsilon));
        for (int64_t i = 0; i < columns; i += LANES) {
            __mmask16 in = lanes(columns - i);
            __m512 value = _mm512_mul_ps(_mm512_sub_ps(load(x + i, in), _mm512_set1_ps(mean)), by);
            __m512 gain = weight ? load(weight + i, in) : _mm512_set1_ps(1.0f);
            if (form == ROUNDED) value = rounded(value);
            if (form == ONE_MORE) gain = _mm512_add_ps(gain, _mm512_set1_ps(1.0f));
            value = _mm512_mul_ps(value, gain);
            store(y + i, in, bias ? _mm512_add_ps(value, load(bias + i, in)) : value);
        }
    }
}

/* n = x / sqrt(mean(x^2) + epsilon), and of it ROUNDED: weight times n rounded; WIDE: weight n; ONE_MORE: (1 + weight) n.
   CENTERED: as WIDE, of x without its mean. weight, bias: NULL for none; x, y: [rows][columns], of which rows first .. last - 1. */
void norm(const uint16_t *x, const uint16_t *weight, const uint16_t *bias, uint16_t *y, int64_t columns, float epsilon, int form,
          int64_t first, int64_t last) {
    switch (form) {
    case ROUNDED: norm_rows(x, weight, bias, y, columns, epsilon, ROUNDED, first, last); break;
    case WIDE: norm_rows(x, weight, bias, y, columns, epsilon, WIDE, first, last); break;
    case ONE_MORE: norm_rows(x, weight, bias, y, columns, epsilon, ONE_MORE, first, last); break;
    default: norm_rows(x, weight, bias, y, columns, epsilon, CENTERED, first, last);
    }
}

/* In place: x [tokens][heads][dim], tokens `stride` apart; the first half of a vector and its second are the two coordinates.
   cosine, sine: [tokens][dim]. For tokens first .. last - 1. */
void rotate(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, int64_t heads, int64_t dim, int64_t stride, int64_t first,
            int64_t last) {
    int64_t half = dim / 2;
    cosine += first * dim, sine += first * dim;
    for (int64_t token = first; token < last; token++, cosine += dim, sine += dim)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t i = 0; i < half; i += LANES) {
                __mmask16 in = lanes(half - i);
                uint16_t *low = x + token * stride + head * dim + i, *high = low + half;
                __m512 a = load(low, in), b = load(high, in);
                __m512 first = _mm512_mul_ps(b, load(sine + i, in)), second = _mm512_mul_ps(a, load(sine + half + i, in));
                store(low, in, _mm512_fmsub_ps(a, load(cosine + i, in), first));
                store(high, in, _mm512_fmadd_ps(b, load(cosine + half + i, in), second));
            }
}

INLINE __m512 activated(__m512 x, int form) {
    __m512 inner = x;
    if (form == GELU_TANH) { /* x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)) */
        __m512 square = _mm512_mul_ps(x, x);
        inner = _mm512_mul_ps(x, _mm512_fmadd_ps(square, _mm512_set1_ps(2 * 0.7978845608f * 0.044715f), _mm512_set1_ps(2 * 0.7978845608f)));
    }
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), inner))));
}

INLINE void gated_rows(const uint16_t *gate, const uint16_t *up, uint16_t *y, int64_t columns, int64_t gate_stride, int64_t up_stride,
                       int form, int64_t first, int64_t last) {
    gate += first * gate_stride, up += first * up_stride, y += first * columns;
    for (int64_t row = first; row < last; row++, gate += gate_stride, up += up_stride, y += columns)
        for (int64_t i = 0; i < columns; i += LANES) {
            __mmask16 in = lanes(columns - i);
            store(y + i, in, _mm512_mul_ps(rounded(activated(load(gate + i, in), form)), load(up + i, in)));
        }
}

/* activation(gate), rounded, times up: [rows][columns], rows as many elements apart as the strides say, those of y without gaps;
   rows first .. last - 1. */
void gated(const uint16_t *gate, const uint16_t *up, uint16_t *y, int64_t columns, int64_t gate_stride, int64_t up_stride, int form,
           int64_t first, int64_t last) {
    if (form == SILU)
        gated_rows(gate, up, y, columns, gate_stride, up_stride, SILU, first, last);
    else
        gated_rows(gate, up, y, columns, gate_stride, up_stride, GELU_TANH, first, last);
}
#else
int has_operators(void) { return 0; }
#endif
