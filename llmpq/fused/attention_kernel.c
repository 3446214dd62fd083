/* Attention of one new token against keys and values as a cache holds them: scores, softmax and sums in fp32, rounded once at the end.

   Queries that share keys go together. Positions are taken in blocks that begin at multiples of BLOCK, and what a mask hides adds
   nothing at all, so a sequence's result does not depend on how many positions longer ones beside it have. */
#include <stdint.h>
#include <string.h>
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "bfloat16.h"

enum { PAIRS = 32, BLOCK = 64, MOST_QUERIES = 8, MOST_DIM = 512, VECTORS = 4 };
enum { NO_MASK, ALLOWED, ADDED }; /* no mask; bytes, 0 where hidden; bfloat16, added to scores */
#define LOWEST (-3.4028235e38f)

int has_attention(void) { return 1; }

typedef struct {
    const uint16_t *query, *key, *value;
    const void *mask;
    uint16_t *out;                                           /* [slots][heads][value_dim] */
    int64_t heads, kv_heads, positions, dim, value_dim;      /* heads: a multiple of kv_heads */
    int64_t query_slot, query_head;                          /* elements from one to the next; vectors lie without gaps */
    int64_t key_slot, key_head, key_position, value_slot, value_head, value_position;
    int64_t mask_slot, mask_head;
    int64_t mask_kind;
    float scale;
} attention_t;

/* Of the queries of one head of keys: what was added up so far. */
typedef struct {
    float most[MOST_QUERIES], total[MOST_QUERIES];
    float sum[MOST_QUERIES][MOST_DIM];
} state_t;

/* The sums of the 16 vectors, one in each lane. */
INLINE __m512 sums_of(__m512 v[LANES]) {
    __m512 a[LANES], b[LANES];
    for (int i = 0; i < 8; i++) {
        a[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    for (int i = 0; i < 8; i++) b[i] = _mm512_add_ps(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 4; i++) { /* lanes of four: sums of vectors 4i .. 4i + 3 */
        __m512d low = _mm512_castps_pd(b[2 * i]), high = _mm512_castps_pd(b[2 * i + 1]);
        a[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
    b[0] = _mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x88), _mm512_shuffle_f32x4(a[0], a[1], 0xdd));
    b[1] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2], a[3], 0x88), _mm512_shuffle_f32x4(a[2], a[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
}

/* Products of one query with 16 keys, of which the last are perhaps not there: they repeat the first. */
INLINE __m512 products(const attention_t *p, const uint16_t *query, const uint16_t *key, int64_t left) {
    __m512 sum[LANES];
    const uint16_t *row[LANES];
    for (int i = 0; i < LANES; i++) sum[i] = _mm512_setzero_ps(), row[i] = key + (i < left ? i : 0) * p->key_position;
    for (int64_t d = 0; d < p->dim; d += PAIRS) {
        __mmask32 in = p->dim - d >= PAIRS ? ~0u : (1u << (p->dim - d)) - 1;
        __m512bh q = (__m512bh)_mm512_maskz_loadu_epi16(in, query + d);
        for (int i = 0; i < LANES; i++) sum[i] = _mm512_dpbf16_ps(sum[i], q, (__m512bh)_mm512_maskz_loadu_epi16(in, row[i] + d));
    }
    return sums_of(sum);
}

/* Scores with the mask, LOWEST where a position is hidden or not there. */
INLINE __m512 masked(const attention_t *p, int64_t slot, int64_t head, int64_t position, __m512 score, int64_t left) {
    __mmask16 in = lanes(left);
    int64_t at = slot * p->mask_slot + head * p->mask_head + position;
    if (p->mask_kind == ALLOWED) in &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(in, (const uint8_t *)p->mask + at), _mm_set1_epi8(-1));
    if (p->mask_kind == ADDED) score = _mm512_add_ps(score, load((const uint16_t *)p->mask + at, in));
    return _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), in, score);
}

/* What the values of a block add to the sums of some queries, `vectors` at a time so that sums stay in registers. */
INLINE void add_values(const attention_t *p, const uint16_t *value, float weight[][BLOCK], state_t *state, int64_t count, int first,
                       int queries, int64_t d, int vectors) {
    __m512 sum[4][VECTORS];
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) sum[q][v] = _mm512_loadu_ps(state->sum[first + q] + d + v * LANES);
    for (int64_t i = 0; i < count; i++) {
        __m512 x[VECTORS];
        for (int v = 0; v < vectors; v++) {
            int64_t at = d + v * LANES;
            x[v] = load(value + i * p->value_position + at, lanes(p->value_dim - at));
        }
        for (int q = 0; q < queries; q++) {
            __m512 w = _mm512_set1_ps(weight[first + q][i]);
            for (int v = 0; v < vectors; v++) sum[q][v] = _mm512_fmadd_ps(w, x[v], sum[q][v]);
        }
    }
    for (int q = 0; q < queries; q++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(state->sum[first + q] + d + v * LANES, sum[q][v]);
}

INLINE void add_block(const attention_t *p, const uint16_t *value, float weight[][BLOCK], state_t *state, int64_t count, int queries) {
    for (int64_t d = 0; d < p->value_dim; d += VECTORS * LANES) {
        int first = 0;
        for (; first + 4 <= queries; first += 4) add_values(p, value, weight, state, count, first, 4, d, VECTORS);
        for (; first < queries; first++) add_values(p, value, weight, state, count, first, 1, d, VECTORS);
    }
}

/* The weights of a block's positions for one query, and what was added up so far brought to its new largest score. */
INLINE void weigh(const attention_t *p, int64_t slot, int64_t head, const uint16_t *key, int64_t position, int64_t count, float *weight,
                  float *most, float *total, float *sum) {
    const uint16_t *query = p->query + slot * p->query_slot + head * p->query_head;
    __m512 score[BLOCK / LANES], largest = _mm512_set1_ps(*most), added = _mm512_setzero_ps();
    for (int i = 0; i * LANES < count; i++) {
        int64_t at = i * LANES;
        score[i] = _mm512_mul_ps(products(p, query, key + at * p->key_position, count - at), _mm512_set1_ps(p->scale));
        score[i] = masked(p, slot, head, position + at, score[i], count - at);
        largest = _mm512_max_ps(largest, score[i]);
    }
    float now = _mm512_reduce_max_ps(largest);
    if (now > *most) {
        float by = _mm512_cvtss_f32(exponential(_mm512_set1_ps(*most - now)));
        *total *= by;
        for (int64_t d = 0; d < p->value_dim; d += LANES)
            _mm512_storeu_ps(sum + d, _mm512_mul_ps(_mm512_loadu_ps(sum + d), _mm512_set1_ps(by)));
        *most = now;
    }
    for (int i = 0; i * LANES < count; i++) {
        __mmask16 seen = _mm512_cmp_ps_mask(score[i], _mm512_set1_ps(LOWEST), _CMP_NLE_UQ);
        __m512 w = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score[i], _mm512_set1_ps(now))));
        _mm512_storeu_ps(weight + i * LANES, w);
        added = _mm512_add_ps(added, w);
    }
    *total += _mm512_reduce_add_ps(added);
}

static void attend_some(const attention_t *p, int64_t slot, int64_t kv_head, int64_t head, int queries) {
    float weight[MOST_QUERIES][BLOCK];
    state_t state;
    for (int q = 0; q < queries; q++) {
        state.most[q] = LOWEST, state.total[q] = 0.0f;
        memset(state.sum[q], 0, sizeof(float) * (size_t)((p->value_dim + 63) / 64 * 64));
    }
    const uint16_t *key = p->key + slot * p->key_slot + kv_head * p->key_head;
    const uint16_t *value = p->value + slot * p->value_slot + kv_head * p->value_head;
    for (int64_t position = 0; position < p->positions; position += BLOCK) {
        int64_t count = p->positions - position < BLOCK ? p->positions - position : BLOCK;
        for (int q = 0; q < queries; q++)
            weigh(p, slot, head + q, key + position * p->key_position, position, count, weight[q], &state.most[q], &state.total[q],
                  state.sum[q]);
        add_block(p, value + position * p->value_position, weight, &state, count, queries);
    }
    for (int q = 0; q < queries; q++) {
        uint16_t *out = p->out + (slot * p->heads + head + q) * p->value_dim;
        __m512 by = _mm512_set1_ps(state.total[q] > 0.0f ? 1.0f / state.total[q] : 0.0f);
        for (int64_t d = 0; d < p->value_dim; d += LANES) {
            store(out + d, lanes(p->value_dim - d), _mm512_mul_ps(_mm512_loadu_ps(state.sum[q] + d), by));
        }
    }
}

/* For the heads of keys first .. last - 1 of all slots, slot by slot. */
void attend(const attention_t *p, int64_t first, int64_t last) {
    int64_t group = p->heads / p->kv_heads;
    for (int64_t row = first; row < last; row++) {
        int64_t slot = row / p->kv_heads, kv_head = row % p->kv_heads;
        for (int64_t q = 0; q < group; q += MOST_QUERIES)
            attend_some(p, slot, kv_head, kv_head * group + q, group - q < MOST_QUERIES ? (int)(group - q) : MOST_QUERIES);
    }
}
#else
int has_attention(void) { return 0; }
#endif
