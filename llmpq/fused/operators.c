/* Small operators in bfloat16, computed in fp32: norms, rotations of queries and keys, gated activations. Rows are rounded as the
   modules round that they stand for, so that results differ by the order of sums alone. */
#include <stdint.h>
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };
enum { ROUNDED, WIDE, ONE_MORE, CENTERED }; /* norms: see rms_norm */
enum { SILU, GELU_TANH };

int has_operators(void) { return 1; }

INLINE __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

INLINE __m512 load(const uint16_t *from, __mmask16 in) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, from)), 16));
}

INLINE __m512i bits_of(__m512 value) { /* rounded to bfloat16, which the low half holds */
    __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
}

INLINE __m512 rounded(__m512 value) { return _mm512_castsi512_ps(_mm512_slli_epi32(bits_of(value), 16)); }

INLINE void store(uint16_t *to, __mmask16 in, __m512 value) { _mm256_mask_storeu_epi16(to, in, _mm512_cvtepi32_epi16(bits_of(value))); }

/* e^x, 0 below -87 and as e^88 above; what is no number stays none. */
INLINE __m512 exponential(__m512 x) {
    __mmask16 in = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(terms[i]));
    return _mm512_maskz_scalef_ps(in, y, n);
}

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
