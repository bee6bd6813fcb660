// Experts' weights from the stored order to that of packed.cuh, while they are uploaded.
#include "packed.cuh"

namespace {

// Where unpack finds the codes of one half of its four registers.
__device__ __forceinline__ uint32_t pack_half(const uint32_t (&c)[4]) {
    return (c[0] & 8) << 12 | (c[0] & 7) << 6 | (c[1] & 8) << 9 | (c[1] & 7) << 3 |
           (c[2] & 8) << 11 | (c[2] & 7) << 9 | (c[3] & 8) << 10 | (c[3] & 7);
}

}  // namespace

// `tiles` tiles from rows of `stride` stored blocks. *extreme becomes 1 when a scale is outside
// LEAST_CODE ..= MOST_CODE and its block is not all zero. A thread per 16 bytes of FP4. Grid: tiles
// · slabs · 96 / THREADS rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
    moe_pack(uint8_t *__restrict__ to, uint32_t *__restrict__ extreme,
             const uint8_t *__restrict__ blocks, const uint8_t *__restrict__ scales, uint64_t tiles,
             int slabs, int stride) {
    const uint64_t i = blockIdx.x * uint64_t(THREADS) + threadIdx.x;
    const int words = slabs * (SLAB_WEIGHTS / 16);
    const uint64_t tile = i / words, first_row = tile * TILE_ROWS_PACKED;
    if (tile >= tiles) return;
    const int t = int(i % words), lane = t % 32, j = t / 32 % SLAB_64, slab = t / (32 * SLAB_64);
    const int g = lane / 4, q = lane % 4, first_block = (slab * SLAB_64 + j) * 2;
    uint8_t *slab_at = to + (tile * slabs + slab) * SLAB_BYTES;
    uint32_t word[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int block = first_block + k % 2;
        const uint8_t *from = blocks + ((first_row + g + k / 2 * 8) * stride + block) * 16 + q;
        uint32_t low[4], high[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint32_t both = block < stride ? from[4 * r] : 0;
            low[r] = both & 15, high[r] = both >> 4;
        }
        word[k] = pack_half(low) | pack_half(high) << 16;
    }
    reinterpret_cast<uint4 *>(slab_at)[j * 32 + lane] =
        make_uint4(word[0], word[1], word[2], word[3]);
    // Of the four scales of (j, g) lane q has one.
    const int block = first_block + q % 2;
    uint32_t code = 127;
    if (block < stride) {
        const size_t at = (first_row + g + q / 2 * 8) * stride + block;
        code = scales[at];
        if (code < LEAST_CODE || code > MOST_CODE) {
            const uint8_t *of_block = blocks + at * 16;
            uint32_t magnitudes = code == 255;
            for (int b = 0; b < 16; b++) magnitudes |= of_block[b] & 0x77;
            if (magnitudes) atomicOr(extreme, 1u);
            code = 127;
        }
    }
    slab_at[SLAB_WEIGHTS + (j * 8 + g) * 4 + q] = uint8_t(code);
}
