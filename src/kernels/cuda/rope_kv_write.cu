// Rotary positions and the writing of the cache.
#include "pages.cuh"

// Four neighbours of a row of the cache, converted and stored as whole words.
__device__ __forceinline__ void store_words(uint32_t *__restrict__ pages, size_t at,
                                            const float (&x)[4], int format, float scale) {
    uint32_t *word = pages + at / 4;
    if (format == KV_F32) {
        for (int i = 0; i < 4; i++) word[i] = __float_as_uint(x[i]);
    } else if (format == KV_BF16) {
        word[0] = bf16_encode(x[0]) | bf16_encode(x[1]) << 16;
        word[1] = bf16_encode(x[2]) | bf16_encode(x[3]) << 16;
    } else {
        // A true division: multiplying by 1 / scale would round twice.
        uint32_t codes = 0;
        for (int i = 0; i < 4; i++) codes |= e4m3_encode(__fdiv_rn(x[i], scale)) << 8 * i;
        word[0] = codes;
    }
}

// Rotates q [T, Q, D] in place and k [T, K, D] on its way into the cache, in pairs (i, i + D/2) by
// cos, sin [T, D/2]; writes k and v [T, K, D] of row t at slots[t]. A slot outside the pool is not
// written. Slots are distinct: of two rows with the same one either may stay.
//
// A thread takes four neighbouring pairs of a head, or eight neighbours of v. Blocks (t, j) share
// the row's heads, so that a single row occupies more than one multiprocessor. Each element is
// computed by itself: row-invariant.
extern "C" __global__ void rope_kv_write(float *__restrict__ q, const float *__restrict__ k,
                                         const float *__restrict__ v, const float *__restrict__ cos,
                                         const float *__restrict__ sin,
                                         uint32_t *__restrict__ pages,
                                         const uint64_t *__restrict__ slots, uint64_t slot_count,
                                         int q_heads, int kv_heads, int head_dim, int format,
                                         float k_scale, float v_scale) {
    const size_t t = blockIdx.x;
    const int half = head_dim / 2, pieces = half / 4;
    const int items = (q_heads + 2 * kv_heads) * pieces;
    const uint64_t slot = slots[t];
    const int row_bytes = head_dim * element_bytes(format);
    for (int item = blockIdx.y * blockDim.x + threadIdx.x; item < items;
         item += gridDim.y * blockDim.x) {
        const int head = item / pieces, first = item % pieces * 4;
        const int kv_head = (head - q_heads) % kv_heads;
        const bool is_query = head < q_heads, is_key = !is_query && head < q_heads + kv_heads;
        const float *x = is_query ? q + (t * q_heads + head) * head_dim
                                  : (is_key ? k : v) + (t * kv_heads + kv_head) * head_dim;
        float low[4], high[4];
        for (int i = 0; i < 4; i++) {
            const float x1 = x[first + i], x2 = x[half + first + i];
            low[i] = x1, high[i] = x2;
            if (is_query || is_key) {
                const float c = cos[t * half + first + i], s = sin[t * half + first + i];
                low[i] = x1 * c - x2 * s;
                high[i] = x2 * c + x1 * s;
            }
        }
        if (is_query) {
            float *out = q + (t * q_heads + head) * head_dim;
            for (int i = 0; i < 4; i++) out[first + i] = low[i], out[half + first + i] = high[i];
        } else if (slot < slot_count) {
            const size_t at = row_start(slot / PAGE_TOKENS, !is_key, kv_head, slot % PAGE_TOKENS,
                                        kv_heads, row_bytes);
            const float scale = is_key ? k_scale : v_scale;
            store_words(pages, at + first * element_bytes(format), low, format, scale);
            store_words(pages, at + (half + first) * element_bytes(format), high, format, scale);
        }
    }
}
