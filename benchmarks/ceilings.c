/* What one core of this machine can do at most: read memory, multiply bfloat16 pairs, multiply 8-bit quads; out of registers. */
#include <stdint.h>
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

enum { SUMS = 12 }; /* independent, to hide what a product takes until the next may use its sum */

int is_supported(void) { return 1; }

int64_t read_all(const uint8_t *from, int64_t bytes) {
    __m512i sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm512_setzero_si512();
    for (int64_t at = 0; at + 512 <= bytes; at += 512)
        for (int i = 0; i < 8; i++) sum[i] = _mm512_xor_si512(sum[i], _mm512_loadu_si512(from + at + 64 * i));
    for (int i = 1; i < 8; i++) sum[0] = _mm512_xor_si512(sum[0], sum[i]);
    return _mm512_reduce_add_epi64(sum[0]);
}

/* Products and sums: `turns` times SUMS times 64 (bfloat16), or 128 (8 bits). */
float bfloat16_products(int64_t turns) {
    __m512 sum[SUMS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3c00);
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t turn = 0; turn < turns; turn++) {
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < SUMS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    return _mm512_reduce_add_ps(sum[0]);
}

int64_t int8_products(int64_t turns) {
    __m512i sum[SUMS], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(1);
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_setzero_si512();
    for (int64_t turn = 0; turn < turns; turn++) {
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < SUMS; i++) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
    return _mm512_reduce_add_epi32(sum[0]);
}
#else
int is_supported(void) { return 0; }
#endif
