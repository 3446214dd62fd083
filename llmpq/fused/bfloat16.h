/* Vectors of 16 values in fp32, from and to bfloat16; for CPUs with AVX-512 BW, VL and DQ. */
#include <immintrin.h>
#include <stdint.h>
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

/* The lanes of what is left, none if that is below 1. */
INLINE __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0; }

INLINE __m512 load(const uint16_t *from, __mmask16 in) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, from)), 16));
}

INLINE __m512i bits_of(__m512 value) { /* rounded to bfloat16, which the low half holds */
    __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
}

INLINE void store(uint16_t *to, __mmask16 in, __m512 value) { _mm256_mask_storeu_epi16(to, in, _mm512_cvtepi32_epi16(bits_of(value))); }

/* e^x, exactly 1 at 0, exactly 0 below -87 and as e^88 above; what is no number stays none. */
INLINE __m512 exponential(__m512 x) {
    __mmask16 in = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_maskz_mov_ps(in, x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(terms[i]));
    return _mm512_maskz_scalef_ps(in, y, n);
}
