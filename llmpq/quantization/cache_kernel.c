/* What attention sees of an int8 KV cache, in bfloat16: codes times the scale of their head and token.

   codes: dim values for each position, positions one after the other; scale: one for each position. Slots and heads lie as many
   elements apart as the strides say. out: [slots][heads][positions][dim]. Rows are positions of heads of slots, in that order. */
#include <stdint.h>
#include <string.h>

static uint16_t bfloat16_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void read_int8_cache(const int8_t *codes, const float *scale, uint16_t *restrict out, int64_t heads, int64_t positions, int64_t dim,
                     int64_t slot_codes, int64_t head_codes, int64_t slot_scales, int64_t head_scales, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        int64_t position = row % positions, head = row / positions % heads, slot = row / positions / heads;
        const int8_t *restrict code = codes + slot * slot_codes + head * head_codes + position * dim;
        float step = scale[slot * slot_scales + head * head_scales + position];
        uint16_t *restrict seen = out + row * dim;
        for (int64_t i = 0; i < dim; i++) seen[i] = bfloat16_of(step * (float)code[i]);
    }
}
