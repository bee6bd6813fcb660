// Sixteen rows of packed experts times eight pairs, on tensor cores: the one order of additions
// that moe_few.cu and moe_direct.cu share, so that a pair has the same bits in either.
//
// The weights are the 16-row operand of mma.sync, the pairs its eight columns: a column's result
// depends on that column alone. A slab, 192 columns, is added by one warp from the first column to
// the last, hi parts and lo parts by themselves, or of one part the features of the first and of
// the second mma of each word; then the two; then all slabs, in order.
#pragma once
#include "moe.cuh"
#include "packed.cuh"

// A lane's share of a slab of a tile.
struct SlabWeights {
    uint4 words[SLAB_64];
    uint32_t scales[SLAB_64];
};

// `columns(j, w, part)`: of 64 columns j, word w and a part, the operands of the features of pair
// lane / 4, register by register as in packed.cuh. A lane of the result has rows g = lane / 4 (x,
// y) and g + 8 (z, w) of pairs 2 · (lane % 4) and the next.
template <int PARTS, class Columns>
__device__ __forceinline__ float4 slab_product(const SlabWeights &a, const Columns &columns) {
    float sum[2][4] = {};
#pragma unroll
    for (int j = 0; j < SLAB_64; j++) {
#pragma unroll
        for (int w = 0; w < 2; w++) {
            uint32_t upper[4], lower[4];  // rows g, g + 8
            unpack(upper, w == 0 ? a.words[j].x : a.words[j].y);
            unpack(lower, w == 0 ? a.words[j].z : a.words[j].w);
            const uint32_t factor = scale_factor(a.scales[j] >> 8 * w & 0xff);
            const uint32_t factor_lower = scale_factor(a.scales[j] >> (16 + 8 * w) & 0xff);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                upper[r] = bf16x2_multiply(upper[r], factor);
                lower[r] = bf16x2_multiply(lower[r], factor_lower);
            }
            const uint32_t first[4] = {upper[0], lower[0], upper[1], lower[1]};
            const uint32_t second[4] = {upper[2], lower[2], upper[3], lower[3]};
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const uint4 v = columns(j, w, p);
                const uint32_t v0[2] = {v.x, v.y}, v1[2] = {v.z, v.w};
                mma_bf16(sum[p], first, v0);
                mma_bf16(sum[PARTS == 1 ? 1 : p], second, v1);
            }
        }
    }
    return make_float4(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1], sum[0][2] + sum[1][2],
                       sum[0][3] + sum[1][3]);
}

// Adds what a slab gave.
__device__ __forceinline__ void add(float4 &sum, float4 of_slab) {
    sum.x += of_slab.x, sum.y += of_slab.y, sum.z += of_slab.z, sum.w += of_slab.w;
}

// Row 2i is gate i, row 2i + 1 up i, so of a tile's rows every lane finishes one output for its two
// pairs: an even g that of rows g and g + 1, an odd one that of g + 7 and g + 8.
__device__ __forceinline__ int gate_row(int g) { return g % 2 == 0 ? g : g + 7; }

// The outputs gate_row(g) / 2 of the tile, of pairs 2 · (lane % 4) and the next. `sum` as
// slab_product gives it, `bias` of rows gate_row(g) and the next.
__device__ __forceinline__ float2 gate_up(float4 sum, float2 bias, float alpha, float limit) {
    const bool odd = threadIdx.x / 4 % 2;
    const float other0 = __shfl_xor_sync(ALL_LANES, odd ? sum.x : sum.z, 4);
    const float other1 = __shfl_xor_sync(ALL_LANES, odd ? sum.y : sum.w, 4);
    const float gate0 = odd ? other0 : sum.x, up0 = odd ? sum.z : other0;
    const float gate1 = odd ? other1 : sum.y, up1 = odd ? sum.w : other1;
    return make_float2(clamped_swiglu(gate0 + bias.x, up0 + bias.y, alpha, limit),
                       clamped_swiglu(gate1 + bias.x, up1 + bias.y, alpha, limit));
}
